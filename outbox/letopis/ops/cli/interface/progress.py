"""Show on a terminal how far a long run is, on one line of stderr that is erased at its end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from letopis.ops.cli.interface.output import before_note, format_duration, terminal_width, wants_json

if TYPE_CHECKING:
    from letopis.outbox.history.history import History

REDRAW_SECONDS: Final = 0.2  # least time between two drawings of the line
STEADY_SECONDS: Final = 2.0  # a stage says how much time is left once it has lasted this long
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


@dataclass(slots=True)
class ProgressLine:
    """One line of a terminal that is drawn over and over."""

    _title: str
    _total: int | None
    _unit: str
    _: KW_ONLY
    stream: TextIO
    monotonic: Callable[[], float] = time.monotonic
    _began: tuple[float, int] | None = None  # when the stage did, and how much was done then
    _drawn_at: float | None = None
    _width: int = 0

    def __call__(
        self, done: int, *, total: int | None = None, title: str | None = None, unit: str | None = None
    ) -> None:
        """Show how much is done, at most every 0.2 s."""
        if title is not None and title != self._title:
            self._title, self._began, self._total, self._drawn_at = title, None, None, None
        self._total = self._total if total is None else total
        self._unit = self._unit if unit is None else unit
        now = self.monotonic()
        if self._drawn_at is not None and now - self._drawn_at < REDRAW_SECONDS:
            return
        began, before = self._began = self._began or (now, done)
        self._drawn_at, left = now, None
        if self._total and done > before and now - began >= STEADY_SECONDS:
            left = max(0, self._total - done) * (now - began) / (done - before)
        width = terminal_width(self.stream) or DEFAULT_COLUMNS
        line = describe(self._title, done, self._total, self._unit, left)[: max(20, width) - 1]
        self.stream.write(f"\r{line.ljust(self._width)}")
        self.stream.flush()
        self._width = len(line)

    def clear(self) -> None:
        """Erase the line; the next report draws it again."""
        if self._width:
            self.stream.write(f"\r{'':{self._width}}\r")
            self.stream.flush()
        self._width, self._drawn_at = 0, None


def describe(title: str, done: int, total: int | None, unit: str, left: float | None) -> str:
    """Return the line: ``exporting: 1,200 of 5,000 messages (24 %), 12 s left``."""
    if unit == BYTES:
        words = f"{title}: {done / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB")
    else:
        words = f"{title}: {done:,}" + (f" of {total:,} {unit}" if total else f" {unit}")
    share = f" ({min(100, done * 100 // total)} %)" if total else ""
    return words + share + ("" if left is None else f", {format_duration(left)} left")


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
