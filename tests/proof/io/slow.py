"""Slow: each flush takes 300 ms; commits take as long, and the event loop goes on all the while.

python -m tests.proof.io.slow FOLDER [--blocking]    # the bot, to be run under strace
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History
from letopis.outbox.thread import Done, OwnThread
from letopis.store import Message
from tests.campaigns.invariants import check
from tests.proof.power.promises import OUTBOX, STORE, read_promises, told

DELAY: Final = 0.3
STANDSTILL: Final = 0.2
"""Seconds without a turn of the event loop that a loaded machine does not explain; a flush takes longer."""
TICK: Final = 0.005
PATIENCE: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowness:
    """What the bot saw, in seconds.

    :ivar appends: how long each took.
    :ivar still: the longest that the event loop stood still, during each of them.
    """

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
    strace = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        str(folder / "trace"),
        "-e",
        "trace=fdatasync",
        "-e",
        inject,
    ]
    bot = [sys.executable, "-m", "tests.proof.io.slow", str(folder), "--appends", str(appends)]
    done = subprocess.run(
        [*strace, *bot, *(["--blocking"] if blocking else [])],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    seen = json.loads(done.stdout)
    acks = read_promises((folder / "acks").read_bytes()).acks
    store = f"sqlite:///{(folder / STORE).as_posix()}"
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


async def _live(folder: Path, appends: int) -> dict[str, Any]:
    took, still, acks = [], [], []
    async with History.open(folder / OUTBOX, store=folder / STORE, watch=False, min_free_bytes=None) as history:
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
            acks.append(told("slow", receipt.event_ids[-1], receipt.sequence))
        drained = await history.drained(60)
    (folder / "acks").write_bytes(b"".join(acks))
    return {"appends": took, "still": still, "drained": drained}


def _in_the_loop(self: OwnThread, fn: Callable[[], Any], done: Done) -> None:
    """What a library does that has no thread for its disk."""
    loop = asyncio.get_running_loop()
    try:
        value = fn()
    except BaseException as error:  # as the thread does
        loop.call_soon(done, None, error)
    else:
        loop.call_soon(done, value, None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--appends", type=int, default=5)
    parser.add_argument("--blocking", action="store_true", help="write in the event loop's own thread")
    given = parser.parse_args()
    logging.disable()
    if given.blocking:
        OwnThread.post = _in_the_loop  # type: ignore[method-assign]
    print(json.dumps(asyncio.run(_live(given.folder, given.appends))))


if __name__ == "__main__":
    main()
