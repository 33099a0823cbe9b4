"""A conversation as it was: what folding its events by hand gives, and what was read at that moment."""

from __future__ import annotations

from letopis.store.testing.time_travel import TimeTravelConformance


class TestTimeTravel(TimeTravelConformance):
    """The published contract."""
