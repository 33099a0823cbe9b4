"""Count what was appended to the outbox between moments, without reading every event."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox.event_log.statements import query_one

_BOUNDS: Final = "SELECT coalesce(min(position), 1), coalesce(max(position), 0) FROM letopis_outbox_events"
_AT: Final = "SELECT position, appended_at FROM letopis_outbox_events WHERE position >= ? ORDER BY position LIMIT 1"


def count_appended(connection: sa.Connection, moments: Sequence[int]) -> list[int]:
    """Return how many events were appended between each two moments, in UTC microseconds, which must rise.

    Positions rise with each append, and delivered events that were pruned since count too. A few dozen rows are read,
    however many events there are.
    """
    with closing(connection.connection.cursor()) as cursor:
        first, last = query_one(cursor, _BOUNDS) or (1, 0)
        edges: list[int] = []
        low = first
        for moment in moments:
            low = _first_from(cursor, moment, low, last + 1)
            edges.append(low)
    return [later - earlier for earlier, later in pairwise(edges)]


def _first_from(cursor: Any, moment: int, low: int, high: int) -> int:
    """Return the first position from ``low`` on that was appended at a moment or later; ``high`` if there is none."""
    while low < high:
        middle = (low + high) // 2
        row = query_one(cursor, _AT, (middle,))
        if row is None or row[1] >= moment:
            high = middle
        else:
            low = row[0] + 1
    return low
