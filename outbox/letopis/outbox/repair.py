"""Repair: what a person can do about events that are stuck; each a function on an open write transaction.

Only the head of a lane, the event that holds up the rest, can be fixed or skipped, and only while its lane is blocked,
paused or retrying: an event that is simply waiting its turn needs no repair. Nothing is destroyed: the event as it was
goes to ``letopis_outbox_repairs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import sqlalchemy as sa

from letopis.store.codec import DEFAULT_LIMITS, EncodedEvent, Limits, decode, encode
from letopis.store.errors import InvalidInput, LetopisError
from letopis.store.events import Event, from_microseconds
from letopis.store.messages import EMPTY
from letopis.store.vocabulary import EventSkipped, MessageAppended

STATES: Final = ("ready", "retrying", "blocked", "paused")
REPAIRABLE: Final = ("blocked", "retrying", "paused")
MAX_REASON: Final = 2_000

_ENTRY: Final = (
    "SELECT e.event_id, e.conversation_id, e.sequence, e.type, e.schema_version, e.data, e.metadata, e.digest,"
    " e.occurred_at, e.appended_at, l.owner_id, l.state, l.attempts, l.due_at, l.fault_class, l.fault, l.delivered"
    " FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
    " ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered"
    " WHERE l.delivered < l.head"
)


class NotRepairable(LetopisError):
    """The event is not there, not pending, or not the one that holds up its conversation; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pending events or lanes a verb is about; what is not said does not narrow, all that is said must hold.

    :raises InvalidInput: a state is not known.
    """

    event_ids: tuple[UUID, ...] = ()
    conversation_ids: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    fault_classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for state in self.states:
            if state not in STATES:
                raise InvalidInput("state", f"must be one of {', '.join(STATES)}")

    def where(self) -> tuple[str, tuple[Any, ...]]:
        """Return the condition on lanes ``l`` and events ``e``, beginning with ``AND``, and what it binds."""
        words: list[str] = []
        values: list[Any] = []
        for column, items in (
            ("e.event_id", tuple(one.bytes for one in self.event_ids)),
            ("l.conversation_id", self.conversation_ids),
            ("l.state", self.states),
            ("l.fault_class", self.fault_classes),
        ):
            if items:
                words.append(f" AND {column} IN ({', '.join('?' * len(items))})")
                values.extend(items)
        return "".join(words), tuple(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One pending event and the state of its lane. Moments are UTC microseconds.

    :ivar head: whether it is the event that its conversation waits for.
    :ivar size: bytes of data and metadata.
    """

    event_id: UUID
    conversation_id: str
    owner_id: str | None
    sequence: int
    type: str
    schema_version: int
    data: str
    metadata: str | None
    digest: bytes
    occurred_at: int
    appended_at: int
    state: str
    attempts: int
    due_at: int
    fault_class: str | None
    fault: str | None
    head: bool

    @property
    def size(self) -> int:
        """Bytes of data and metadata."""
        return len(self.data.encode()) + len((self.metadata or "").encode())


def entries(
    connection: sa.Connection, selection: Selection, *, limit: int, after: tuple[str, int] = ("", 0)
) -> list[Entry]:
    """Return pending events, by conversation and sequence, from the one behind ``after`` on; at most ``limit``."""
    words, values = selection.where()
    rows = connection.exec_driver_sql(
        f"{_ENTRY} AND (e.conversation_id, e.sequence) > (?, ?){words} ORDER BY e.conversation_id, e.sequence LIMIT ?",
        (*after, *values, limit),
    ).fetchall()
    return [_entry(row) for row in rows]


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(
        event_id=UUID(bytes=row[0]),
        conversation_id=row[1],
        sequence=row[2],
        type=row[3],
        schema_version=row[4],
        data=row[5],
        metadata=row[6],
        digest=row[7],
        occurred_at=row[8],
        appended_at=row[9],
        owner_id=row[10],
        state=row[11],
        attempts=row[12],
        due_at=row[13],
        fault_class=row[14],
        fault=row[15],
        head=row[2] == row[16] + 1,
    )


def lanes_of(connection: sa.Connection, selection: Selection) -> list[str]:
    """Return the conversations with pending events that the selection is about."""
    words, values = selection.where()
    if selection.event_ids:
        statement = (
            "SELECT DISTINCT l.conversation_id FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
            " ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered WHERE l.delivered < l.head"
        )
    else:
        statement = "SELECT l.conversation_id FROM letopis_outbox_lanes AS l WHERE l.delivered < l.head"
    return list(connection.exec_driver_sql(f"{statement}{words} ORDER BY 1", values).scalars())


def retry(connection: sa.Connection, selection: Selection, *, now_us: int) -> list[str]:
    """Make blocked and retrying lanes due now, with their attempts forgotten; return their conversations.

    A paused lane stays paused: :func:`resume` is for that.
    """
    chosen = [one for one in lanes_of(connection, selection) if _state(connection, one) in ("blocked", "retrying")]
    _set_state(connection, chosen, "ready", now_us)
    return chosen


def pause(connection: sa.Connection, selection: Selection, *, now_us: int) -> list[str]:
    """Hold lanes back until :func:`resume`; what is appended meanwhile waits behind. Return their conversations."""
    chosen = [one for one in lanes_of(connection, selection) if _state(connection, one) != "paused"]
    _set_state(connection, chosen, "paused", now_us)
    return chosen


def resume(connection: sa.Connection, selection: Selection, *, now_us: int) -> list[str]:
    """Let paused lanes go on, due now; return their conversations."""
    chosen = [one for one in lanes_of(connection, selection) if _state(connection, one) == "paused"]
    _set_state(connection, chosen, "ready", now_us)
    return chosen


def _state(connection: sa.Connection, conversation_id: str) -> str | None:
    found: str | None = connection.exec_driver_sql(
        "SELECT state FROM letopis_outbox_lanes WHERE conversation_id = ?", (conversation_id,)
    ).scalar()
    return found


def _set_state(connection: sa.Connection, conversation_ids: Sequence[str], state: str, now_us: int) -> None:
    if conversation_ids:
        connection.exec_driver_sql(
            "UPDATE letopis_outbox_lanes SET state = ?, attempts = 0, due_at = ?, fault_class = NULL, fault = NULL"
            " WHERE conversation_id = ?",
            [(state, now_us, one) for one in conversation_ids],
        )


def skip(connection: sa.Connection, event_id: UUID, *, reason: str, now_us: int) -> Entry:
    """Let an event go: a tombstone (``event.skipped``) takes its place and its sequence; return the event as it was.

    The lane goes on at once. The history then holds the tombstone, with the reason, where the event would have been.

    :raises NotRepairable: see the module.
    :raises InvalidInput: the reason is empty or too long.
    """
    old = _head(connection, event_id)
    tombstone = EventSkipped(
        skipped_event_id=str(old.event_id), skipped_type=old.type, digest=old.digest.hex(), reason=_reason(reason)
    )
    event = Event.of(tombstone, conversation_id=old.conversation_id, occurred_at=from_microseconds(old.occurred_at))
    _replace(connection, old, encode(event, conversation_id=old.conversation_id), "skip", tombstone.reason, now_us)
    return old


def fix(
    connection: sa.Connection,
    event_id: UUID,
    data: dict[str, Any],
    *,
    reason: str,
    now_us: int,
    limits: Limits = DEFAULT_LIMITS,
) -> Entry:
    """Give an event corrected data, under its id, type and sequence; return the event as it was.

    The lane goes on at once.

    :raises NotRepairable: see the module.
    :raises InvalidInput: the data is not what this type of event needs, or a store would refuse it; or the data of a
        message names another message; or the reason is empty or too long.
    """
    old = _head(connection, event_id)
    said = _reason(reason)
    if old.type == MessageAppended.type and data.get("message_id") != decode(old.data).get("message_id"):
        raise InvalidInput("data.message_id", "must stay as it was: other events may point at the message")
    event = Event(
        type=old.type,
        data=data,
        schema_version=old.schema_version,
        metadata=EMPTY if old.metadata is None else decode(old.metadata),
        event_id=old.event_id,
        occurred_at=from_microseconds(old.occurred_at),
    )
    encoded = encode(event, conversation_id=old.conversation_id, limits=limits)
    if encoded.digest == old.digest:
        raise InvalidInput("data", "is the same as before: correct what the fault names, or retry")
    _replace(connection, old, encoded, "fix", said, now_us)
    return old


def _head(connection: sa.Connection, event_id: UUID) -> Entry:
    found = entries(connection, Selection(event_ids=(event_id,)), limit=1)
    if not found:
        raise NotRepairable(f"no pending event has the id {event_id}: it was delivered, skipped, or never appended")
    entry = found[0]
    if not entry.head:
        raise NotRepairable(
            f"event {event_id} only waits behind an earlier one of its conversation: repair that one first"
        )
    if entry.state not in REPAIRABLE:
        raise NotRepairable(f"event {event_id} is not stuck, its lane is {entry.state}: pause the lane to change it")
    return entry


def _reason(reason: str) -> str:
    said = reason.strip()
    if not said:
        raise InvalidInput("reason", "must say why: it is kept in the history")
    if len(said) > MAX_REASON:
        raise InvalidInput("reason", f"has {len(said)} characters, the limit is {MAX_REASON}")
    return said


def _replace(
    connection: sa.Connection,
    old: Entry,
    new: EncodedEvent,
    verb: Literal["fix", "skip"],
    reason: str,
    now_us: int,
) -> None:
    connection.exec_driver_sql(
        "INSERT INTO letopis_outbox_repairs (verb, conversation_id, sequence, event_id, type, schema_version, data,"
        " metadata, digest, occurred_at, reason, repaired_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            verb,
            old.conversation_id,
            old.sequence,
            old.event_id.bytes,
            old.type,
            old.schema_version,
            old.data,
            old.metadata,
            old.digest,
            old.occurred_at,
            reason,
            now_us,
        ),
    )
    changed = connection.exec_driver_sql(
        "UPDATE letopis_outbox_events SET event_id = ?, type = ?, schema_version = ?, data = ?, metadata = ?,"
        " digest = ? WHERE event_id = ?",
        (
            new.event_id.bytes,
            new.type,
            new.schema_version,
            new.data,
            new.metadata,
            new.digest,
            old.event_id.bytes,
        ),
    ).rowcount
    if changed != 1:
        raise NotRepairable(f"event {old.event_id} changed meanwhile: look again")
    _set_state(connection, (old.conversation_id,), "ready", now_us)
