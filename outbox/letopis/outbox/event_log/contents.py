"""Keep the large content of messages in the outbox file, each string once a conversation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from letopis.outbox.event_log.statements import fetch_all, query_all

if TYPE_CHECKING:
    import sqlalchemy as sa

_INSERT: Final = (
    "INSERT INTO letopis_outbox_contents (lane, name, first_position, position, size, body) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (lane, name) DO UPDATE SET position = excluded.position"
)
# ruff: noqa: S608 - the statements are ours
_OF_CONVERSATION: Final = "lane = (SELECT lane FROM letopis_outbox_lanes WHERE conversation_id = ?1)"
_LAST_SHOWN: Final = (
    "UPDATE letopis_outbox_contents AS c SET position = coalesce((SELECT max(e.position) FROM letopis_outbox_events"
    " AS e WHERE e.lane = c.lane AND e.salt IS NOT NULL AND e.type IN ('message.appended', 'message.edited')"
    " AND instr(e.data, ':content:' || c.name)), 0)"
    f" WHERE c.{_OF_CONVERSATION}"
)
# A fix or a skip keeps the event as it was, which may be put back.
_DELETE_UNSHOWN: Final = (
    f"DELETE FROM letopis_outbox_contents AS c WHERE c.{_OF_CONVERSATION} AND c.position = 0 AND NOT EXISTS"
    " (SELECT 1 FROM letopis_outbox_repairs AS r WHERE r.conversation_id = ?1 AND r.salt IS NOT NULL"
    " AND instr(r.data, c.name))"
)
_DELETE_PRUNED: Final = (
    "DELETE FROM letopis_outbox_contents AS c WHERE (?1 IS NULL OR c.lane = ?1)"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_events AS e WHERE e.position = c.position)"
)
_SIZES: Final = (
    "SELECT e.sequence, sum(c.size) FROM letopis_outbox_contents AS c"
    " JOIN letopis_outbox_events AS e ON e.position = c.first_position WHERE c.lane = ? AND e.sequence > ? GROUP BY 1"
)
_READ: Final = (
    f"SELECT name, body FROM letopis_outbox_contents WHERE {_OF_CONVERSATION}"
    " AND name IN (SELECT value FROM json_each(?2))"
)

ContentRow = tuple[int, str, int, int, int, bytes]


def content_rows(contents: Mapping[str, bytes], lane: int, position: int) -> list[ContentRow]:
    """Return the rows of the large content of an event."""
    return [(lane, name, position, position, len(body), body) for name, body in contents.items()]


def insert_contents(cursor: Any, rows: Collection[ContentRow]) -> None:
    """Write content that events show, once for each name; their events are written."""
    cursor.executemany(_INSERT, rows)


def remove_unshown(cursor: Any, conversation_id: str) -> None:
    """Remove the content of a conversation that no event and no repair shows any more."""
    cursor.execute(_LAST_SHOWN, (conversation_id,))
    cursor.execute(_DELETE_UNSHOWN, (conversation_id,))


def remove_pruned(cursor: Any, lane: int | None = None) -> None:
    """Remove content whose events are not in the file any more, of a lane or of all."""
    cursor.execute(_DELETE_PRUNED, (lane,))


def content_sizes(cursor: Any, lane: int, after: int) -> dict[int, int]:
    """Return the bytes of content that each event of a lane after a sequence is the first to show."""
    return dict(query_all(cursor, _SIZES, (lane, after)))


def read_contents(connection: sa.Connection, conversation_id: str, names: Collection[str]) -> dict[str, bytes]:
    """Return content of a conversation by name, as far as the file holds it."""
    return dict(fetch_all(connection, _READ, (conversation_id, orjson.dumps(list(names)).decode())))
