"""Store the drafts of replies being written, and the replies whose sending is unconfirmed, by DBAPI cursors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log.statements import query_all, query_one
from letopis.store.errors import Closed
from letopis.store.model.codec import RESERVED

CONFIRM: Final = f"{RESERVED}confirm"
"""The key of a draft's data that is ``false`` if the reply needs no confirmation; not part of the message."""

DraftKey = tuple[str, str]  # conversation id and message id

# Late, when the message is in the log already or its conversation was deleted, it has no effect.
_BEGIN: Final = (
    "INSERT INTO letopis_outbox_drafts"
    " (conversation_id, message_id, event_id, owner_id, data, writer, started_at, updated_at)"
    " SELECT ?1, ?2, ?3, ?4, '', ?5, ?6, ?6"
    " WHERE NOT EXISTS (SELECT 1 FROM letopis_outbox_known_ids WHERE event_id = ?3)"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ?1 AND deleted_at > 0)"
    " ON CONFLICT (conversation_id, message_id) DO NOTHING"
)
_SAVE: Final = (
    "UPDATE letopis_outbox_drafts SET data = ?, updated_at = ?"
    " WHERE conversation_id = ? AND message_id = ? AND event_id = ? AND writer = ?"
)
_STANDS: Final = (
    "SELECT 1 FROM letopis_outbox_drafts WHERE conversation_id = ?1 AND message_id = ?2 AND event_id = ?3"
    " UNION ALL SELECT 1 FROM letopis_outbox_known_ids WHERE event_id = ?3"
    " UNION ALL SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ?1 AND deleted_at > 0 LIMIT 1"
)
_COLUMNS: Final = "conversation_id, message_id, event_id, owner_id, data, writer, started_at, updated_at"
_FIND: Final = f"SELECT {_COLUMNS} FROM letopis_outbox_drafts WHERE conversation_id = ? AND message_id = ?"  # noqa: S608
_KEYS_OF: Final = (
    "SELECT conversation_id, message_id FROM letopis_outbox_drafts WHERE writer = ?"
    " ORDER BY started_at, conversation_id, message_id"
)
_DELETE: Final = "DELETE FROM letopis_outbox_drafts WHERE conversation_id = ? AND message_id = ? AND event_id = ?"
_MARK_UNCONFIRMED: Final = (
    "INSERT INTO letopis_outbox_unconfirmed (conversation_id, message_id, event_id, owner_id, writer, appended_at)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (conversation_id, message_id) DO UPDATE SET writer = excluded.writer"
)
_MARK_CONFIRMED: Final = "DELETE FROM letopis_outbox_unconfirmed WHERE conversation_id = ? AND message_id = ?"
_WRITERS: Final = (
    "SELECT writer FROM letopis_outbox_drafts UNION SELECT writer FROM letopis_outbox_unconfirmed ORDER BY writer"
)
_UNCONFIRMED: Final = (
    "SELECT u.conversation_id, u.message_id, u.event_id, u.owner_id, u.writer, u.appended_at"
    " FROM letopis_outbox_unconfirmed AS u LEFT JOIN letopis_outbox_events AS e ON e.position ="
    " (SELECT k.position FROM letopis_outbox_known_ids AS k WHERE k.event_id = u.event_id LIMIT 1)"
    # Those without an event are the oldest: the outbox no longer holds them.
    " WHERE ?1 IS NULL OR u.owner_id = ?1 ORDER BY e.position, u.appended_at, u.conversation_id, u.message_id"
)
_ADOPT: Final = "UPDATE letopis_outbox_unconfirmed SET writer = ? WHERE writer IN (SELECT value FROM json_each(?))"
_RELEASE: Final = (
    "UPDATE letopis_outbox_unconfirmed SET writer = ''"
    " WHERE conversation_id = ? AND message_id = ? AND writer IN ('', ?)"
)
_EXPIRED: Final = (
    "FROM letopis_outbox_unconfirmed WHERE appended_at < ?"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_known_ids AS k"
    " WHERE k.event_id = letopis_outbox_unconfirmed.event_id)"
)
_ANY_EXPIRED: Final = f"SELECT 1 {_EXPIRED} LIMIT 1"
_DELETE_EXPIRED: Final = f"DELETE {_EXPIRED}"


class Erased(Closed):
    """The conversation was erased while the reply was written."""

    def __init__(self) -> None:
        super().__init__(
            "the conversation was erased while the reply was written, and the reply with it: begin another"
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply as far as it was saved."""

    conversation_id: str
    message_id: str
    event_id: UUID
    owner_id: str | None
    data: str  # of the message that it becomes if nothing more is saved, as JSON; empty until something was saved
    writer: str  # the id of its writer: see ``drafts.writer_lock``
    started_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class UnconfirmedDraft:
    """A reply that was appended and not confirmed."""

    conversation_id: str
    message_id: str
    event_id: UUID
    owner_id: str | None
    writer: str
    appended_at: int


def begin(cursor: Any, draft: Draft) -> bool:
    """Note that a reply is being written, so that an erasure ends it. Return False if it has no place here any more."""
    values = (draft.event_id.bytes, draft.owner_id, draft.writer, draft.started_at)
    cursor.execute(_BEGIN, (draft.conversation_id, draft.message_id, *values))
    return bool(cursor.rowcount == 1)


def save(cursor: Any, draft: Draft) -> bool:
    """Save what a draft that was begun has come to. Return False if there is no such draft any more."""
    place = (draft.conversation_id, draft.message_id, draft.event_id.bytes, draft.writer)
    cursor.execute(_SAVE, (draft.data, draft.updated_at, *place))
    return bool(cursor.rowcount == 1)


def check(cursor: Any, conversation_id: str, message_id: str, event_id: UUID) -> None:
    """Raise Erased if the draft is gone, though its message is not in the log, nor its conversation deleted."""
    if query_one(cursor, _STANDS, (conversation_id, message_id, event_id.bytes)) is None:
        raise Erased


def find(cursor: Any, conversation_id: str, message_id: str) -> Draft | None:
    row = query_one(cursor, _FIND, (conversation_id, message_id))
    if row is None:
        return None
    return Draft(row[0], row[1], UUID(bytes=row[2]), *row[3:])


def list_keys(cursor: Any, writer: str) -> list[DraftKey]:
    """Return the keys of a writer's drafts, oldest first."""
    return [(row[0], row[1]) for row in query_all(cursor, _KEYS_OF, (writer,))]


def delete(cursor: Any, conversation_id: str, message_id: str, event_id: UUID) -> None:
    """Delete the draft that becomes this event; another draft of the same message stays."""
    cursor.execute(_DELETE, (conversation_id, message_id, event_id.bytes))


def mark_unconfirmed(cursor: Any, draft: UnconfirmedDraft) -> None:
    """Record that a reply was appended and is to be confirmed."""
    place = (draft.conversation_id, draft.message_id, draft.event_id.bytes)
    cursor.execute(_MARK_UNCONFIRMED, (*place, draft.owner_id, draft.writer, draft.appended_at))


def mark_confirmed(cursor: Any, messages: Iterable[DraftKey]) -> None:
    """Record that messages were sent or failed. Messages that need no confirmation are ignored."""
    cursor.executemany(_MARK_CONFIRMED, list(messages))


def list_writers(cursor: Any) -> list[str]:
    return [row[0] for row in query_all(cursor, _WRITERS)]


def list_unconfirmed(cursor: Any, owner_id: str | None = None) -> list[UnconfirmedDraft]:
    """Return the unconfirmed replies of one owner or of all, oldest first."""
    rows = query_all(cursor, _UNCONFIRMED, (owner_id,))
    return [UnconfirmedDraft(row[0], row[1], UUID(bytes=row[2]), *row[3:]) for row in rows]


def adopt(cursor: Any, dead: Sequence[str], writer: str) -> list[UnconfirmedDraft]:
    """Make ``writer`` responsible for the unconfirmed replies of dead writers, and return these replies."""
    adopted = [reply for reply in list_unconfirmed(cursor) if reply.writer in dead]
    cursor.execute(_ADOPT, (writer, orjson.dumps(list(dead)).decode()))
    return adopted


def release(cursor: Any, conversation_id: str, message_id: str, writer: str) -> bool:
    """Leave an unconfirmed reply of a writer to whoever adopts it. Return False if there is none."""
    cursor.execute(_RELEASE, (conversation_id, message_id, writer))
    return bool(cursor.rowcount == 1)


def has_expired(cursor: Any, moment_us: int) -> bool:
    """Return True if :func:`delete_expired` would delete a reply."""
    return query_one(cursor, _ANY_EXPIRED, (moment_us,)) is not None


def delete_expired(cursor: Any, moment_us: int) -> None:
    """Delete unconfirmed replies that were appended before a moment and are no longer in the outbox."""
    cursor.execute(_DELETE_EXPIRED, (moment_us,))
