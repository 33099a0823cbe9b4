"""Watch the event loop of a bot in a process of its own while flushes are slow."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from letopis import Message
from letopis.store.database.worker_thread import Done, WorkerThread
from tests.campaigns.states import Ack
from tests.proof.harness import Setting, Tally, World
from tests.support.child import call

DELAY: Final = 0.3
STANDSTILL: Final = 0.2
"""Seconds without a turn of the event loop that a loaded machine does not explain; a flush takes longer."""
TICK: Final = 0.005
TIMEOUT_SECONDS: Final = 120.0


def slow_flushes(setting: Setting) -> Tally:
    """Run the bot on a disk whose every flush takes its time: commits take as long, and the event loop goes on."""
    world, appends = World(setting.folder), setting.many(12, 3)
    inject = f"inject=fdatasync:delay_enter={round(DELAY * 1_000_000)}"
    trace = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(world.folder / "trace"), "-e", "trace=fdatasync")
    how: dict[str, Any] = {"under": (*trace, "-e", inject), "timeout": TIMEOUT_SECONDS}
    seen = call(append_slowly, world.folder, appends=appends, blocking=setting.control, **how)
    world.acks += [Ack("slow", UUID(hex=event_id), sequence) for event_id, sequence in seen["acks"]]
    tally = asyncio.run(world.judge())
    tally.require(seen["drained"], "not drained")
    took, still = seen["appends"], seen["still"]
    tally.blame(f"an append took {one:.2f} s: it cannot have been flushed" for one in took if one < DELAY)
    # A machine that is busy stands still now and then; a loop that waits for the disk does at each append.
    standstills = sum(one > STANDSTILL for one in still)
    tally.untold += standstills if standstills > appends // 4 else 0
    tally.count = appends
    tally.notes = (
        f"an append took {min(took):.2f} to {max(took):.2f} s; the loop stood still for"
        f" {1000 * sorted(still)[len(still) // 2]:.0f} ms, {1000 * max(still):.0f} at most"
    )
    return tally


class _Pulse:
    def __init__(self) -> None:
        self._last, self._longest = time.monotonic(), 0.0
        self._loop = asyncio.get_running_loop()
        self._beat()

    def _beat(self) -> None:
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last - TICK), now
        self._loop.call_later(TICK, self._beat)

    def longest(self) -> float:
        """Return the longest since it was asked last."""
        longest, self._longest = self._longest, 0.0
        return longest


async def append_slowly(folder: str, *, appends: int, blocking: bool) -> dict[str, Any]:
    if blocking:
        WorkerThread.submit = _in_the_loop  # type: ignore[method-assign]
    took, still, acks = [], [], []
    async with World(Path(folder)).open() as history:
        await history.append("slow", Message.user("the first"))
        await history.drained(60)
        pulse = _Pulse()
        for number in range(appends):
            pulse.longest()
            begun = time.monotonic()
            receipt = await history.append("slow", Message.user(f"message {number}"))
            took.append(time.monotonic() - begun)
            await asyncio.sleep(3 * TICK)
            still.append(pulse.longest())
            acks.append((receipt.event_ids[-1].hex, receipt.sequence))
        drained = await history.drained(60)
    return {"appends": took, "still": still, "drained": drained, "acks": acks}


def _in_the_loop(self: WorkerThread, fn: Callable[[], Any], done: Done) -> None:
    """What a library does that has no thread for its disk."""
    loop = asyncio.get_running_loop()
    try:
        value = fn()
    except BaseException as error:  # as the thread does
        loop.call_soon(done, None, error)
    else:
        loop.call_soon(done, value, None)
