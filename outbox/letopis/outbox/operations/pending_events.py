"""List pending events with the state of their lanes and the repairs made to them, as values and as JSON."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from letopis.outbox.event_log.contents import read_contents
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import decode
from letopis.store.model.event_types import EventSkipped
from letopis.store.model.events import from_microseconds, to_microseconds, utc_now
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.large_content import references_in, restored

if TYPE_CHECKING:
    import sqlalchemy as sa

STATES: Final = ("ready", "retrying", "blocked", "paused")

PENDING: Final = (
    " FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e ON e.lane = l.lane AND e.sequence > l.delivered"
)
_EVENT: Final = (
    "SELECT e.event_id, l.conversation_id, e.sequence, e.type, e.schema_version, e.data, e.metadata, e.digest, e.salt,"
    " e.occurred_at, e.appended_at, l.owner_id, l.state, l.attempts, l.due_at, l.fault_class, l.fault,"
    " e.sequence = l.delivered + 1 AS front, l.head - e.sequence AS behind"
    f"{PENDING} WHERE l.pending_since IS NOT NULL AND l.delivered < l.head"
)
_MISSING: Final = (
    "SELECT l.conversation_id, l.owner_id, l.state, l.attempts, l.fault_class, l.fault"
    " FROM letopis_outbox_lanes AS l"
    " WHERE (l.state = 'blocked' OR (l.state IN ('retrying', 'paused') AND l.pending_since IS NOT NULL"
    " AND l.delivered < l.head))"
    " AND NOT EXISTS (SELECT 1 FROM letopis_outbox_events AS e WHERE e.lane = l.lane AND e.sequence = l.delivered + 1)"
    " ORDER BY l.conversation_id LIMIT ?"
)
_HAS_ID: Final = "e.position IN (SELECT position FROM letopis_outbox_known_ids WHERE event_id IN ({0}))"
_VALUE: Final = (
    "SELECT b.body FROM letopis_outbox_log AS e JOIN letopis_outbox_record_bodies AS b ON b.position = e.position"
    " WHERE e.conversation_id = ? AND e.sequence = ?"
)
_REPAIR: Final = (
    "SELECT verb, conversation_id, sequence, event_id, type, schema_version, data, metadata, digest, salt, occurred_at,"
    " reason, repaired_by, repaired_at FROM letopis_outbox_repairs"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pending events or conversations a verb concerns. Empty fields do not narrow; all others must match.

    :ivar states: of conversations: ``ready``, ``retrying``, ``blocked`` or ``paused``.
    :ivar fronts: only the event that each conversation waits for.
    :raises InvalidInput: a state is not known, or an id is none that a conversation can have.
    """

    event_ids: tuple[UUID, ...] = ()
    conversation_ids: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    fault_classes: tuple[str, ...] = ()
    fronts: bool = False

    def __post_init__(self) -> None:
        if not set(STATES).issuperset(self.states):
            raise InvalidInput("state", f"must be one of {', '.join(STATES)}")
        for conversation_id in self.conversation_ids:
            check_identifier(conversation_id, "conversation_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEvent:
    """An event as the file holds it. Moments are UTC microseconds."""

    event_id: UUID
    conversation_id: str
    sequence: int
    type: str
    schema_version: int
    data: str
    metadata: str | None
    digest: bytes
    salt: bytes | None
    occurred_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEvent(FileEvent):
    """One pending event and the state of its lane."""

    owner_id: str | None
    appended_at: int
    state: str
    attempts: int
    due_at: int
    fault_class: str | None
    fault: str | None
    front: bool  # it is the event that its conversation waits for
    behind: int  # how many events of the conversation come after it

    @property
    def size(self) -> int:
        """Bytes of data and metadata."""
        return len(self.data.encode()) + len((self.metadata or "").encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair(FileEvent):
    """What was done to an event, and the event as it was before."""

    verb: str
    reason: str
    repaired_by: str | None
    repaired_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneWithLosses:
    """A stuck conversation without an event to show: the history store lost events that the outbox no longer holds."""

    conversation_id: str
    owner_id: str | None
    state: str
    attempts: int
    fault_class: str | None
    fault: str | None


def where_clause(selection: Selection) -> tuple[str, tuple[Any, ...]]:
    """Return the condition on lanes ``l`` and events ``e``, beginning with ``AND``, and its parameters."""
    conditions: list[str] = []
    parameters: list[Any] = []
    for condition, items in (
        (_HAS_ID, tuple(event_id.bytes for event_id in selection.event_ids)),
        ("l.conversation_id IN ({0})", selection.conversation_ids),
        ("l.state IN ({0})", selection.states),
        ("l.fault_class IN ({0})", selection.fault_classes),
    ):
        if items:
            conditions.append(" AND " + condition.format(", ".join("?" * len(items))))
            parameters.extend(items)
    if selection.fronts:
        conditions.append(" AND e.sequence = l.delivered + 1")
    return "".join(conditions), tuple(parameters)


def list_pending(
    connection: sa.Connection, selection: Selection, *, limit: int, after: tuple[str, int] = ("", 0)
) -> list[PendingEvent]:
    """Return at most ``limit`` pending events by conversation and sequence, the first one behind ``after``."""
    conditions, parameters = where_clause(selection)
    rows = connection.exec_driver_sql(
        f"{_EVENT} AND l.conversation_id >= ? AND (l.conversation_id, e.sequence) > (?, ?){conditions}"
        " ORDER BY l.conversation_id, e.sequence LIMIT ?",
        (after[0], *after, *parameters, limit),
    ).fetchall()
    return [PendingEvent(**_values(row), front=bool(row.front)) for row in rows]


def list_missing(connection: sa.Connection, *, limit: int) -> list[LaneWithLosses]:
    """Return at most ``limit`` stuck conversations whose next event is not in the outbox, in the order of their ids."""
    rows = connection.exec_driver_sql(_MISSING, (limit,)).fetchall()
    return [LaneWithLosses(**row._mapping) for row in rows]


def list_repairs(connection: sa.Connection, event: PendingEvent) -> list[Repair]:
    """Return the repairs of a pending event, or of the event that it is the tombstone of, oldest first."""
    ids = [event.event_id]
    if event.type == EventSkipped.type:
        with suppress(ValueError):  # damaged, or of an event that the file no longer held
            ids.append(UUID(str(decode(event.data).get("skipped_event_id"))))
    # By ids, not by sequence: a file that was given a new identity renumbers its events.
    rows = connection.exec_driver_sql(
        f"{_REPAIR} WHERE event_id IN ({', '.join('?' * len(ids))}) ORDER BY repair_id",
        tuple(event_id.bytes for event_id in ids),
    ).fetchall()
    return [Repair(**_values(row)) for row in rows]


def _values(row: sa.Row[Any]) -> dict[str, Any]:
    values = {name: value for name, value in row._mapping.items() if name != "front"}
    return values | {"event_id": UUID(bytes=row.event_id)}


def value_of(connection: sa.Connection, entry: PendingEvent) -> bytes | None:
    """Return the value of a pending put of a record; ``None`` for other events, and where a later put replaced it."""
    row = connection.exec_driver_sql(_VALUE, (entry.conversation_id, entry.sequence)).first()
    return None if row is None else bytes(row[0])


def whole_data(connection: sa.Connection, entry: PendingEvent) -> Any:
    """Return the data of a pending event as JSON values, with its large content in place."""
    data = json_value(entry.data)
    return restored(data, read_contents(connection, entry.conversation_id, references_in(entry.type, entry.data)))


def picked(value: object, *names: str) -> dict[str, Any]:
    """Return some attributes by their names, for JSON."""
    return {name: getattr(value, name) for name in names}


def event_summary(entry: PendingEvent) -> dict[str, Any]:
    """Return an event as JSON values, without its content."""
    return {
        "event_id": str(entry.event_id),
        **picked(entry, "conversation_id", "owner_id", "sequence", "type", "schema_version"),
        "bytes": entry.size,
        "digest": entry.digest.hex(),
        "occurred_at": iso_moment(entry.occurred_at),
        "appended_at": iso_moment(entry.appended_at),
        **picked(entry, "front", "behind", "state", "attempts"),
        "due_at": iso_moment(entry.due_at) if next_attempt(entry.state, entry.due_at) else None,
        **picked(entry, "fault_class", "fault"),
    }


def event_json(entry: PendingEvent) -> dict[str, Any]:
    """Return an event as JSON values, content included."""
    return {**event_summary(entry), "data": json_value(entry.data), "metadata": json_value(entry.metadata)}


def json_value(text: str | None) -> Any:
    """Return the value of stored JSON; the text itself if it is damaged."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def iso_moment(microseconds: int) -> str:
    """Return a moment of UTC microseconds as ISO 8601."""
    return from_microseconds(microseconds).isoformat()


def next_attempt(state: str, due_us: int) -> datetime | None:
    """Return when a retrying lane is tried next; ``None`` if it is due, or not retried."""
    return from_microseconds(due_us) if state == "retrying" and due_us > to_microseconds(utc_now()) else None
