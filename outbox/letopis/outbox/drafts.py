"""Drafts: the rows of replies that are being written, and of those that nobody has confirmed yet.

Statements on a DBAPI cursor, in a transaction that is open; those that change something need the write lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson

Key = tuple[str, str]
"""A conversation and a message in it."""

# Not where the message is in the log already, nor where its conversation was deleted: a checkpoint may come late.
_KEEP: Final = (
    "INSERT INTO letopis_outbox_drafts"
    " (conversation_id, message_id, event_id, owner_id, data, writer, started_at, updated_at)"
    " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8"
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_events WHERE event_id = ?3)"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ?1 AND deleted > 0)"
    " ON CONFLICT (conversation_id, message_id) DO UPDATE SET data = excluded.data, updated_at = excluded.updated_at"
    " WHERE event_id = excluded.event_id AND writer = excluded.writer"
)
_COLUMNS: Final = "conversation_id, message_id, event_id, owner_id, data, writer, started_at, updated_at"
_FIND: Final = f"SELECT {_COLUMNS} FROM letopis_outbox_drafts WHERE conversation_id = ? AND message_id = ?"  # noqa: S608
_OF: Final = (
    "SELECT conversation_id, message_id FROM letopis_outbox_drafts WHERE writer = ?"
    " ORDER BY started_at, conversation_id, message_id"
)
_DROP: Final = "DELETE FROM letopis_outbox_drafts WHERE conversation_id = ? AND message_id = ? AND event_id = ?"
_OWE: Final = (
    "INSERT INTO letopis_outbox_unconfirmed (conversation_id, message_id, event_id, owner_id, writer, appended_at)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (conversation_id, message_id) DO UPDATE SET writer = excluded.writer"
)
_CONFIRMED: Final = "DELETE FROM letopis_outbox_unconfirmed WHERE conversation_id = ? AND message_id = ?"
_WRITERS: Final = (
    "SELECT writer FROM letopis_outbox_drafts UNION SELECT writer FROM letopis_outbox_unconfirmed ORDER BY writer"
)
_UNCONFIRMED: Final = (
    "SELECT u.conversation_id, u.message_id, u.event_id, u.owner_id, u.writer, u.appended_at,"
    " e.schema_version, CASE WHEN e.redacted = 0 THEN e.data END"
    " FROM letopis_outbox_unconfirmed AS u LEFT JOIN letopis_outbox_events AS e ON e.event_id = u.event_id"
    " WHERE ?1 IS NULL OR u.owner_id = ?1 ORDER BY u.appended_at, u.conversation_id, u.message_id"
)
_ADOPT: Final = "UPDATE letopis_outbox_unconfirmed SET writer = ? WHERE writer IN (SELECT value FROM json_each(?))"
_OLD: Final = (
    "FROM letopis_outbox_unconfirmed WHERE appended_at < ?"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_events AS e WHERE e.event_id = letopis_outbox_unconfirmed.event_id)"
)
_ANY_OLD: Final = f"SELECT 1 {_OLD} LIMIT 1"
_DROP_OLD: Final = f"DELETE {_OLD}"
_FORGET: Final = "DELETE FROM letopis_outbox_{table} WHERE conversation_id = ?1 AND (?2 IS NULL OR message_id = ?2)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A reply as far as it has been kept.

    :ivar data: the data of the message that it becomes if nothing more is kept, as JSON.
    :ivar writer: who writes it; see :mod:`~letopis.outbox.liveness`.
    """

    conversation_id: str
    message_id: str
    event_id: UUID
    owner_id: str | None
    data: str
    writer: str
    started_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """A reply that was appended, and that nobody has confirmed.

    :ivar data: of the message, as JSON; ``None`` where the outbox holds its event no more. ``schema_version`` likewise.
    """

    conversation_id: str
    message_id: str
    event_id: UUID
    owner_id: str | None
    writer: str
    appended_at: int
    schema_version: int | None
    data: str | None


def keep(cursor: Any, draft: Draft) -> bool:
    """Write a draft, over what was kept of it before; whether it was.

    It is not where its message is in the log already, its conversation was deleted, or the place is another draft's.
    """
    cursor.execute(
        _KEEP,
        (
            draft.conversation_id,
            draft.message_id,
            draft.event_id.bytes,
            draft.owner_id,
            draft.data,
            draft.writer,
            draft.started_at,
            draft.updated_at,
        ),
    )
    return bool(cursor.rowcount == 1)


def find(cursor: Any, conversation_id: str, message_id: str) -> Draft | None:
    """Return one draft."""
    cursor.execute(_FIND, (conversation_id, message_id))
    row = cursor.fetchone()
    if row is None:
        return None
    return Draft(
        conversation_id=row[0],
        message_id=row[1],
        event_id=UUID(bytes=row[2]),
        owner_id=row[3],
        data=row[4],
        writer=row[5],
        started_at=row[6],
        updated_at=row[7],
    )


def keys_of(cursor: Any, writer: str) -> list[Key]:
    """Return which drafts a writer has, the oldest first."""
    cursor.execute(_OF, (writer,))
    return [(row[0], row[1]) for row in cursor.fetchall()]


def drop(cursor: Any, conversation_id: str, message_id: str, event_id: UUID) -> None:
    """Delete the draft that is to become this event; another one of the same message stays."""
    cursor.execute(_DROP, (conversation_id, message_id, event_id.bytes))


def owe(
    cursor: Any,
    conversation_id: str,
    message_id: str,
    *,
    event_id: UUID,
    owner_id: str | None,
    writer: str,
    now_us: int,
) -> None:
    """Note that a reply was appended and is to be confirmed."""
    cursor.execute(_OWE, (conversation_id, message_id, event_id.bytes, owner_id, writer, now_us))


def confirmed(cursor: Any, messages: Iterable[Key]) -> None:
    """Note that it was said of messages that they were sent, or were not; of those that wait for it or of others."""
    cursor.executemany(_CONFIRMED, list(messages))


def writers(cursor: Any) -> list[str]:
    """Return everybody who has a draft, or a reply that is not confirmed."""
    cursor.execute(_WRITERS)
    return [row[0] for row in cursor.fetchall()]


def unconfirmed(cursor: Any, owner_id: str | None = None) -> list[Owed]:
    """Return the replies that nobody has confirmed, of one owner or of all, the oldest first."""
    cursor.execute(_UNCONFIRMED, (owner_id,))
    return [
        Owed(
            conversation_id=row[0],
            message_id=row[1],
            event_id=UUID(bytes=row[2]),
            owner_id=row[3],
            writer=row[4],
            appended_at=row[5],
            schema_version=row[6],
            data=row[7],
        )
        for row in cursor.fetchall()
    ]


def adopt(cursor: Any, gone: Sequence[str], writer: str) -> list[Owed]:
    """Make ``writer`` the one who is to confirm the replies of those who are gone; return them."""
    found = [owed for owed in unconfirmed(cursor) if owed.writer in gone]
    cursor.execute(_ADOPT, (writer, orjson.dumps(list(gone)).decode()))
    return found


def any_before(cursor: Any, moment_us: int) -> bool:
    """Whether :func:`let_go` would delete anything."""
    cursor.execute(_ANY_OLD, (moment_us,))
    return cursor.fetchone() is not None


def let_go(cursor: Any, moment_us: int) -> None:
    """Delete the replies that were appended before a moment, not confirmed, and are not in the outbox any more."""
    cursor.execute(_DROP_OLD, (moment_us,))


def forget(cursor: Any, conversation_id: str, message_id: str | None) -> None:
    """Delete what is kept of a message, or of all messages of a conversation, whose content is to be gone."""
    for table in ("drafts", "unconfirmed"):
        cursor.execute(_FORGET.format(table=table), (conversation_id, message_id))
