"""Let each flush take 300 ms: commits take as long, and the event loop is not blocked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History
from letopis.store import Message
from letopis.store.database.worker_thread import Done, WorkerThread
from tests.campaigns.invariants import check
from tests.support.child import call
from tests.support.promises import line_of, read_promises
from tests.support.victim import HISTORY, OUTBOX

DELAY: Final = 0.3
STANDSTILL: Final = 0.2
"""Seconds without a turn of the event loop that a loaded machine does not explain; a flush takes longer."""
TICK: Final = 0.005
TIMEOUT_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowness:
    """What the bot saw, in seconds."""

    appends: tuple[float, ...]
    still: tuple[float, ...]
    problems: tuple[str, ...]

    @property
    def standstills(self) -> int:
        """Appends that held up everything else."""
        return sum(one > STANDSTILL for one in self.still)


def measure(folder: Path, *, appends: int, blocking: bool = False) -> Slowness:
    """Run the bot on a disk whose every flush takes its time."""
    folder.mkdir()
    inject = f"inject=fdatasync:delay_enter={round(DELAY * 1_000_000)}"
    trace = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(folder / "trace"), "-e", "trace=fdatasync", "-e", inject)
    seen = call(live, folder, under=trace, timeout=TIMEOUT_SECONDS, appends=appends, blocking=blocking)
    acks = read_promises((folder / "acks").read_bytes()).acks
    store = f"sqlite:///{(folder / HISTORY).as_posix()}"
    verdict = asyncio.run(check([folder / OUTBOX], store, acknowledged=acks, drained=True))
    problems = [*verdict.problems, *(["not drained"] if not seen["drained"] else [])]
    problems += [f"an append took {one:.2f} s: it cannot have been flushed" for one in seen["appends"] if one < DELAY]
    return Slowness(appends=tuple(seen["appends"]), still=tuple(seen["still"]), problems=tuple(problems))


class _Pulse:
    """Tells how long the event loop stood still."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._longest = 0.0
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


async def live(place: str, *, appends: int, blocking: bool) -> dict[str, Any]:
    """Be the bot."""
    if blocking:
        WorkerThread.submit = _in_the_loop  # type: ignore[method-assign]
    folder, took, still, acks = Path(place), [], [], []
    async with History(folder / OUTBOX, store=folder / HISTORY, watch=False, min_free_bytes=None) as history:
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
            acks.append(line_of("slow", receipt.event_ids[-1], receipt.sequence))
        drained = await history.drained(60)
    (folder / "acks").write_bytes(b"".join(acks))
    return {"appends": took, "still": still, "drained": drained}


def _in_the_loop(self: WorkerThread, fn: Callable[[], Any], done: Done) -> None:
    """What a library does that has no thread for its disk."""
    loop = asyncio.get_running_loop()
    try:
        value = fn()
    except BaseException as error:  # as the thread does
        loop.call_soon(done, None, error)
    else:
        loop.call_soon(done, value, None)
