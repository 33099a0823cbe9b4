"""Find events by their ids, which are put into their index many at a time.

An index of all ids, kept with each append, would cost every commit a page that holds nothing else. So the ids of the
last few events are found in the events themselves. Which those are is in ``letopis_outbox_origin.indexed``: the
position up to which ids are in ``letopis_outbox_event_ids``. The view ``letopis_outbox_known_ids`` has both.

Positions after ``indexed`` are never deleted, because all that deletes events calls :func:`index_event_ids` first. The
next position comes after ``indexed`` and after all events, so none is used twice.

All functions take a DBAPI cursor; those that write need the write lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from letopis.outbox.event_log.statements import query_all, query_one

MAX_UNINDEXED_EVENTS: Final = 32
"""Events whose ids are found by reading them. More make each look-up slower, fewer write the index more often."""
MAX_IDS_IN_STATEMENT: Final = 512  # a power of two, and fewer than the parameters that any SQLite accepts

_BOUNDS: Final = (
    "SELECT indexed, max(indexed, coalesce((SELECT max(position) FROM letopis_outbox_events), 0))"
    " FROM letopis_outbox_origin"
)
NEWEST_POSITION: Final = (
    "SELECT max(coalesce((SELECT indexed FROM letopis_outbox_origin), 0),"
    " coalesce((SELECT max(position) FROM letopis_outbox_events), 0))"
)
"""Selects the last position that was given out; 0 before the first."""
UNCOUNTED: Final = f"({NEWEST_POSITION}) - (SELECT coalesce(sum(head), 0) FROM letopis_outbox_lanes)"  # noqa: S608 - ours
"""An expression: how many positions no head of a lane counts. Appends and pruning leave it as it is."""
RECOUNT: Final = f"UPDATE letopis_outbox_origin SET uncounted = {UNCOUNTED}"  # noqa: S608 - ours
_INDEX: Final = (
    "INSERT INTO letopis_outbox_event_ids (event_id, position)"
    " SELECT event_id, position FROM letopis_outbox_events WHERE position > ? ORDER BY event_id"
)
_INDEXED: Final = "UPDATE letopis_outbox_origin SET indexed = ?"


@cache
def _find_statement(count: int) -> str:
    ids = ", ".join(f"?{number}" for number in range(1, count + 1))
    return (
        f"SELECT position FROM letopis_outbox_event_ids WHERE event_id IN ({ids}) UNION ALL"  # noqa: S608 - ours
        f" SELECT position FROM letopis_outbox_events WHERE position > ?{count + 1} AND event_id IN ({ids})"
    )


def find_positions(cursor: Any, event_ids: Sequence[bytes], *, indexed: int) -> list[int]:
    """Return the positions of the events with these ids, in no order; ``indexed`` is of the same transaction."""
    positions: list[int] = []
    for start in range(0, len(event_ids), MAX_IDS_IN_STATEMENT):
        chunk = event_ids[start : start + MAX_IDS_IN_STATEMENT]
        # The last id fills a power of two, so that there are ten statements at most, which stay prepared.
        count = 1 << (len(chunk) - 1).bit_length()
        values = (*chunk, *[chunk[-1]] * (count - len(chunk)), indexed)
        positions += [row[0] for row in query_all(cursor, _find_statement(count), values)]
    return positions


def newest_position(cursor: Any) -> int:
    """Return the last position that was given out; 0 before the first."""
    return int(query_all(cursor, NEWEST_POSITION)[0][0])


def index_event_ids(cursor: Any) -> None:
    indexed, newest = query_one(cursor, _BOUNDS) or (0, 0)
    if newest > indexed:
        write_index(cursor, indexed=indexed, newest=newest)


def write_index(cursor: Any, *, indexed: int, newest: int) -> None:
    """Put the ids of the events after ``indexed`` into their index; ``newest`` is the last position."""
    cursor.execute(_INDEX, (indexed,))
    cursor.execute(_INDEXED, (newest,))
