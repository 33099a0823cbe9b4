"""Set the time by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class ManualClock:
    """Both clocks of a machine, which stand still until a test moves them; ``History`` takes ``now=clock.now``."""

    def __init__(self, wall: datetime = datetime(2026, 11, 25, tzinfo=UTC)) -> None:
        self.wall = wall
        self.ticks = 1_000.0

    def now(self) -> datetime:
        """Return the wall clock's time."""
        return self.wall

    def monotonic(self) -> float:
        """Return the monotonic clock's time, in seconds."""
        return self.ticks

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.wall += timedelta(seconds=seconds)
        self.ticks += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone, as an operator does."""
        self.wall += timedelta(seconds=seconds)
