"""Show on a terminal how far a long run is, on one line of stderr that is erased at its end."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from letopis.ops.cli.interface.output import before_note, terminal_width, wants_json

if TYPE_CHECKING:
    from letopis.outbox.history.history import History

REDRAW_SECONDS: Final = 0.2  # least time between two drawings of the line
WINDOW_SECONDS: Final = 30.0  # the pace is that of the last half minute: a slow start does not spoil the estimate
STEADY_SECONDS: Final = 2.0  # a run says how much time is left once it has lasted this long
DEFAULT_COLUMNS: Final = 80  # columns of a terminal that does not say how many it has
BYTES: Final = "bytes"  # the unit of amounts that are shown in megabytes


class ProgressReport(Protocol):
    """Takes how much of a long run is done."""

    def __call__(
        self, done: int, *, total: int | None = None, title: str | None = None, unit: str | None = None
    ) -> None:
        """Show ``done``. What else is given stays; a new title begins a new stage."""


def unseen(done: int, *, total: int | None = None, title: str | None = None, unit: str | None = None) -> None:
    """Take a report that is shown nowhere."""


class Pace:
    """Estimates the rest of a run from its last half minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._began: float | None = None

    def add(self, now: float, done: int) -> None:
        """Note how much is done at a moment, in seconds of a monotonic clock."""
        if self._began is None:
            self._began = now
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[0][0] < now - WINDOW_SECONDS:
            self._samples.popleft()

    def per_second(self) -> float | None:
        """Return the pace; ``None`` while it is not known."""
        if self._began is None or self._samples[-1][0] - self._began < STEADY_SECONDS:
            return None
        (then, before), (now, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - then) if now > then and done > before else None

    def seconds_left(self, total: int) -> float | None:
        """Return how long the rest takes at this pace; ``None`` while that is not known."""
        pace = self.per_second()
        return None if pace is None else max(0, total - self._samples[-1][1]) / pace


@dataclass(slots=True)
class ProgressLine:
    """One line of a terminal that is drawn over and over."""

    _title: str
    _total: int | None
    _unit: str
    _: KW_ONLY
    stream: TextIO
    monotonic: Callable[[], float] = time.monotonic
    _pace: Pace = field(default_factory=Pace)
    _drawn_at: float | None = None
    _width: int = 0

    def __call__(
        self, done: int, *, total: int | None = None, title: str | None = None, unit: str | None = None
    ) -> None:
        """Show how much is done, at most every 0.2 s."""
        if title is not None and title != self._title:
            self._title, self._pace, self._total, self._drawn_at = title, Pace(), None, None
        self._total = self._total if total is None else total
        self._unit = self._unit if unit is None else unit
        now = self.monotonic()
        if self._drawn_at is not None and now - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = now
        self._pace.add(now, done)
        width = terminal_width(self.stream) or DEFAULT_COLUMNS
        line = describe(self._title, done, self._total, self._unit, self._pace)[: max(20, width) - 1]
        self.stream.write(f"\r{line.ljust(self._width)}")
        self.stream.flush()
        self._width = len(line)

    def clear(self) -> None:
        """Erase the line; the next report draws it again."""
        if self._width:
            self.stream.write(f"\r{'':{self._width}}\r")
            self.stream.flush()
        self._width, self._drawn_at = 0, None


def describe(title: str, done: int, total: int | None, unit: str, pace: Pace) -> str:
    """Return the line: ``exporting: 1,200 of 5,000 messages (24 %), 12 s left``."""
    words = f"{title}: "
    if unit == BYTES:
        words += f"{done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB")
    else:
        words += f"{done:,}" + (f" of {total:,} {unit}" if total else f" {unit}")
    if total:
        words += f" ({min(100, done * 100 // total)} %)"
        left = pace.seconds_left(total)
        return words if left is None else f"{words}, {rounded(left)} left"
    speed = pace.per_second()
    return words if speed is None or unit == BYTES else f"{words}, {speed:,.0f} per second"


def rounded(seconds: float) -> str:
    """Return a duration as exact as an estimate is: ``8 s``, ``40 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 55:
        return f"{round(seconds / 5) * 5} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    minutes = round(minutes / 10) * 10
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def can_redraw(stream: TextIO) -> bool:
    """Return True if ``stream`` is a terminal on which a line can be drawn over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(title: str, total: int | None = None, *, unit: str) -> Iterator[ProgressReport]:
    """Show how far the ``with`` block is, as it reports: on a terminal, and never where the output is for programs."""
    if wants_json() or not can_redraw(sys.stderr):
        yield unseen
        return
    line = ProgressLine(title, total, unit, stream=sys.stderr)
    with before_note(line.clear):
        try:
            yield line
        finally:
            line.clear()


POLL_SECONDS: Final = 0.25


async def deliver(history: History, report: ProgressReport, *, longest: float | None) -> None:
    """Wait until nothing is pending, or everything that is waits for an operator."""
    import anyio

    at_first = (await history.status()).pending

    async def show() -> None:
        most = at_first
        while True:
            pending = (await history.status()).pending
            most = max(most, pending)
            report(most - pending, total=most, title="delivering", unit="events")
            await anyio.sleep(POLL_SECONDS)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(show)
        await history.drained(longest)
        tasks.cancel_scope.cancel()
