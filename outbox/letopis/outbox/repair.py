"""Repair: what a person can do about events that are stuck; each a function on an open write transaction.

Only the front of a lane, the event that holds up the rest, can be fixed or skipped, and only while its lane is blocked,
paused or retrying: an event that is simply waiting its turn needs no repair. Nothing is destroyed: the event as it was
goes to ``letopis_outbox_repairs``.

A relay may have the event as it was under way at this very moment. Its result is then refused by the fence of the
lease, and the event as it is now is sent. If the history store took the old one all the same, it finds that the two
differ and the lane is blocked as ``diverged``: :func:`restore` ends that. In no case is one taken for the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.effects import erase, was_redacted
from letopis.outbox.incident_log import note_skipped
from letopis.outbox.lanes import find_lane
from letopis.store.codec import DEFAULT_LIMITS, EncodedEvent, Limits, decode, digest_of, encode
from letopis.store.erasure import OF_A_MESSAGE
from letopis.store.errors import InvalidInput, LetopisError
from letopis.store.events import Event, from_microseconds
from letopis.store.messages import EMPTY
from letopis.store.vocabulary import ConversationStarted, EventSkipped, MessageAppended

STATES: Final = ("ready", "retrying", "blocked", "paused")
REPAIRABLE: Final = ("blocked", "retrying", "paused")
MAX_REASON: Final = 2_000
UNKNOWN: Final = "unknown"
"""What a tombstone says of an event that the file no longer holds."""

Verb = Literal["fix", "skip", "restore"]

_PENDING: Final = (
    " FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e"
    " ON e.conversation_id = l.conversation_id AND e.sequence > l.delivered"
)
_ENTRY: Final = (
    "SELECT e.event_id, e.conversation_id, e.sequence, e.type, e.schema_version, e.data, e.metadata, e.digest,"
    " e.occurred_at, e.appended_at, l.owner_id, l.state, l.attempts, l.due_at, l.fault_class, l.fault, l.delivered,"
    f" l.head{_PENDING} WHERE l.delivered < l.head"
)
_REPAIR: Final = (
    "SELECT verb, conversation_id, sequence, event_id, type, schema_version, data, metadata, digest, occurred_at,"
    " reason, repaired_by, repaired_at FROM letopis_outbox_repairs"
)
_KEEP: Final = (
    "INSERT INTO letopis_outbox_repairs (verb, conversation_id, sequence, event_id, type, schema_version, data,"
    " metadata, digest, occurred_at, reason, repaired_by, repaired_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REPLACE: Final = (
    "UPDATE letopis_outbox_events SET event_id = ?, type = ?, schema_version = ?, data = ?, metadata = ?, digest = ?,"
    " redacted = 0 WHERE event_id = ?"
)
_ADD: Final = (
    "INSERT INTO letopis_outbox_events (event_id, conversation_id, sequence, type, schema_version, data, metadata,"
    " digest, occurred_at, appended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_READY: Final = (
    "UPDATE letopis_outbox_lanes SET state = 'ready', attempts = 0, due_at = 0, fault_class = NULL, fault = NULL"
    " WHERE conversation_id = ?"
)
_PAUSE: Final = "UPDATE letopis_outbox_lanes SET state = 'paused' WHERE conversation_id = ?"
_RESUME: Final = (
    "UPDATE letopis_outbox_lanes SET state = CASE WHEN attempts > 0 THEN 'retrying' ELSE 'ready' END, due_at = 0"
    " WHERE conversation_id = ?"
)
# What a relay reports under an earlier number is refused, as after a takeover.
_FENCE: Final = "UPDATE letopis_outbox_relay SET incarnation = incarnation + 1"


class NotRepairable(LetopisError):
    """The event is not there, not pending, or not the one that holds up its conversation; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pending events or lanes a verb is about; what is not said does not narrow, all that is said must hold.

    :ivar fronts: only the event of each lane that the others wait for.
    :raises InvalidInput: a state is not known.
    """

    event_ids: tuple[UUID, ...] = ()
    conversation_ids: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    fault_classes: tuple[str, ...] = ()
    fronts: bool = False

    def __post_init__(self) -> None:
        for state in self.states:
            if state not in STATES:
                raise InvalidInput("state", f"must be one of {', '.join(STATES)}")

    @property
    def of_events(self) -> bool:
        """Whether events have to be looked at to know the lanes."""
        return self.fronts or bool(self.event_ids)

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
        if self.fronts:
            words.append(" AND e.sequence = l.delivered + 1")
        return "".join(words), tuple(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One pending event and the state of its lane. Moments are UTC microseconds.

    :ivar front: whether it is the event that its conversation waits for.
    :ivar behind: how many events of the conversation come after it.
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
    front: bool
    behind: int

    @property
    def size(self) -> int:
        """Bytes of data and metadata."""
        return len(self.data.encode()) + len((self.metadata or "").encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was done to an event, and the event as it was before. Moments are UTC microseconds.

    :ivar repaired_by: who did it, as far as the caller said.
    """

    verb: str
    conversation_id: str
    sequence: int
    event_id: UUID
    type: str
    schema_version: int
    data: str
    metadata: str | None
    digest: bytes
    occurred_at: int
    reason: str
    repaired_by: str | None
    repaired_at: int


def entries(
    connection: sa.Connection, selection: Selection, *, limit: int, after: tuple[str, int] = ("", 0)
) -> list[Entry]:
    """Return pending events, by conversation and sequence, from the one behind ``after`` on; at most ``limit``."""
    words, values = selection.where()
    rows = connection.exec_driver_sql(
        f"{_ENTRY} AND l.conversation_id >= ? AND (l.conversation_id, e.sequence) > (?, ?){words}"
        " ORDER BY l.conversation_id, e.sequence LIMIT ?",
        (after[0], *after, *values, limit),
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
        front=row[2] == row[16] + 1,
        behind=row[17] - row[2],
    )


def repairs_of(connection: sa.Connection, entry: Entry) -> list[Repair]:
    """Return what was done to a pending event, or to the one that it is the tombstone of; the first repair first."""
    ids = [entry.event_id]
    if entry.type == EventSkipped.type and (skipped := _uuid(_decoded(entry.data, "data").get("skipped_event_id"))):
        ids.append(skipped)
    # By ids and not by place: a file that was given a new identity numbers its events anew.
    rows = connection.exec_driver_sql(
        f"{_REPAIR} WHERE event_id IN ({', '.join('?' * len(ids))}) ORDER BY repair_id",
        tuple(one.bytes for one in ids),
    ).fetchall()
    return [_repair(row) for row in rows]


def _uuid(text: object) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None


def _repair(row: Sequence[Any]) -> Repair:
    return Repair(
        verb=row[0],
        conversation_id=row[1],
        sequence=row[2],
        event_id=UUID(bytes=row[3]),
        type=row[4],
        schema_version=row[5],
        data=row[6],
        metadata=row[7],
        digest=row[8],
        occurred_at=row[9],
        reason=row[10],
        repaired_by=row[11],
        repaired_at=row[12],
    )


def retry(connection: sa.Connection, selection: Selection) -> list[str]:
    """Make blocked and retrying lanes due now, with their attempts forgotten; return their conversations.

    A paused lane stays paused: :func:`resume` is for that.
    """
    return _set(connection, _READY, _lanes_of(connection, selection, ("blocked", "retrying"), owing=True))


def pause(connection: sa.Connection, selection: Selection) -> list[str]:
    """Hold lanes back until :func:`resume`; what is appended meanwhile waits behind. Return their conversations.

    A conversation that is named need not have anything pending. A blocked lane stays blocked: it is held back already.
    """
    owing = not selection.conversation_ids
    return _set(connection, _PAUSE, _lanes_of(connection, selection, ("ready", "retrying"), owing=owing))


def resume(connection: sa.Connection, selection: Selection) -> list[str]:
    """Let paused lanes go on, due now; return their conversations."""
    return _set(connection, _RESUME, _lanes_of(connection, selection, ("paused",), owing=False))


def _lanes_of(connection: sa.Connection, selection: Selection, states: Sequence[str], *, owing: bool) -> list[str]:
    words, values = selection.where()
    source = _PENDING if selection.of_events else " FROM letopis_outbox_lanes AS l"
    owed = " AND l.delivered < l.head" if owing else ""
    statement = (
        f"SELECT DISTINCT l.conversation_id{source} WHERE l.state IN ({', '.join('?' * len(states))}){owed}{words}"
        " ORDER BY 1"
    )
    return list(connection.exec_driver_sql(statement, (*states, *values)).scalars())


def _set(connection: sa.Connection, statement: str, conversation_ids: list[str]) -> list[str]:
    if conversation_ids:
        connection.exec_driver_sql(statement, [(one,) for one in conversation_ids])
    return conversation_ids


def skip(connection: sa.Connection, event_id: UUID, *, reason: str, now_us: int, by: str | None = None) -> Entry:
    """Let an event go: a tombstone (``event.skipped``) takes its place and its sequence; return the event as it was.

    The lane goes on at once. The history then holds the tombstone, with the reason, where the event would have been.

    :param by: who does it, for the record.
    :raises NotRepairable: see the module; or the event is a tombstone itself.
    :raises InvalidInput: the reason is empty, too long, or no text that a store can hold.
    """
    said = checked_reason(reason)
    old = _front(connection, event_id)
    if old.type == EventSkipped.type:
        raise NotRepairable(f"event {event_id} is a tombstone already: retry it, or put the original back")
    event = _tombstone(
        old.conversation_id,
        EventSkipped(skipped_event_id=str(old.event_id), skipped_type=old.type, digest=old.digest.hex(), reason=said),
        occurred_at=old.occurred_at,
    )
    _replace(connection, old, event, "skip", said, now_us=now_us, by=by)
    note_skipped(connection, old.conversation_id)
    return old


def skip_missing(
    connection: sa.Connection, conversation_id: str, *, held: int, reason: str, now_us: int
) -> tuple[int, ...]:
    """Put tombstones where neither the file nor the history store holds an event that is owed; return the sequences.

    For a lane that is blocked as ``damaged`` or ``lost``. It goes on at once, from ``held + 1``. Where the store holds
    all that the file lacks, because an acknowledgement was lost, there is no tombstone.

    :param held: the sequence up to which the history store holds this lane.
    :raises NotRepairable: the lane is not blocked, or nothing is missing.
    :raises InvalidInput: as for :func:`skip`.
    """
    said = checked_reason(reason)
    lane = find_lane(connection, conversation_id)
    if lane is None or lane.state != "blocked":
        raise NotRepairable("the conversation is not blocked: nothing of it has to be given up")
    start = min(held, lane.head)
    looked_from = min(start, lane.delivered)
    rows = connection.exec_driver_sql(
        "SELECT sequence, occurred_at FROM letopis_outbox_events WHERE conversation_id = ? AND sequence > ?"
        " ORDER BY sequence",
        (conversation_id, looked_from),
    ).fetchall()
    there = {row[0] for row in rows}
    lacking = [one for one in range(looked_from + 1, lane.head + 1) if one not in there]
    if not lacking:
        raise NotRepairable("no event of the conversation is missing: skip the one at its front, or retry")
    missing = tuple(one for one in lacking if one > start)
    moment = rows[0][1] if rows else now_us
    body = EventSkipped(skipped_event_id=UNKNOWN, skipped_type=UNKNOWN, digest=UNKNOWN, reason=said)
    for sequence in missing:
        new = _tombstone(conversation_id, body, occurred_at=moment)
        connection.exec_driver_sql(
            _ADD,
            (
                new.event_id.bytes,
                conversation_id,
                sequence,
                new.type,
                new.schema_version,
                new.data,
                new.metadata,
                new.digest,
                new.occurred_at,
                now_us,
            ),
        )
    connection.exec_driver_sql(
        "UPDATE letopis_outbox_lanes SET delivered = ?, pruned = min(pruned, ?),"
        " owed_since = coalesce(owed_since, ?) WHERE conversation_id = ?",
        (start, start, now_us, conversation_id),
    )
    _set(connection, _READY, [conversation_id])
    note_skipped(connection, conversation_id)
    return missing


def _tombstone(conversation_id: str, body: EventSkipped, *, occurred_at: int) -> EncodedEvent:
    event = Event.of(body, conversation_id=conversation_id, occurred_at=from_microseconds(occurred_at))
    return encode(event, conversation_id=conversation_id)


def fix(
    connection: sa.Connection,
    event_id: UUID,
    data: Mapping[str, Any] | None,
    *,
    reason: str,
    now_us: int,
    metadata: Mapping[str, Any] | None = None,
    by: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Entry:
    """Give an event corrected data, under its id, type and sequence; return the event as it was.

    The lane goes on at once.

    :param data, metadata: each stays as it was where it is ``None``.
    :param by: who does it, for the record.
    :raises NotRepairable: see the module.
    :raises InvalidInput: the data is not what this type of event needs, or a store would refuse it; or the data of a
        message names another message; or the reason is empty or too long.
    """
    said = checked_reason(reason)
    old = _front(connection, event_id)
    event = Event(
        type=old.type,
        data=_decoded(old.data, "data") if data is None else dict(data),
        schema_version=old.schema_version,
        metadata=_decoded(old.metadata, "metadata") if metadata is None else metadata,
        event_id=old.event_id,
        occurred_at=from_microseconds(old.occurred_at),
    )
    encoded = encode(event, conversation_id=old.conversation_id, limits=limits)
    if old.type == MessageAppended.type and event.data["message_id"] != _message_id(old.data, event.data["message_id"]):
        raise InvalidInput("data.message_id", "must stay as it was: other events may point at the message")
    if encoded.digest == old.digest:
        raise InvalidInput("data", "is the same as before: correct what the fault names, or retry")
    _replace(connection, old, encoded, "fix", said, now_us=now_us, by=by)
    return old


def restore(connection: sa.Connection, event_id: UUID, *, reason: str, now_us: int, by: str | None = None) -> Entry:
    """Put back an event as it was appended, after :func:`fix` or :func:`skip`; return what stood in its place.

    For a repair that was a mistake, or that came too late: the history store had the event as it was. The lane goes on
    at once.

    :raises NotRepairable: see the module; or nothing was repaired at this place.
    :raises InvalidInput: the reason is empty or too long.
    """
    said = checked_reason(reason)
    now = _front(connection, event_id)
    done = [one for one in repairs_of(connection, now) if one.verb != "restore"]
    if not done:
        raise NotRepairable(f"event {event_id} is as it was appended: there is nothing to put back")
    first = done[0]
    if first.event_id == now.event_id and first.digest == now.digest:
        raise NotRepairable(f"event {event_id} is as it was appended: there is nothing to put back")
    original = EncodedEvent(
        conversation_id=first.conversation_id,
        event_id=first.event_id,
        type=first.type,
        schema_version=first.schema_version,
        data=first.data,
        metadata=first.metadata,
        digest=first.digest,
        occurred_at=first.occurred_at,
    )
    _replace(connection, now, original, "restore", said, now_us=now_us, by=by)
    return now


def _front(connection: sa.Connection, event_id: UUID) -> Entry:
    found = entries(connection, Selection(event_ids=(event_id,)), limit=1)
    if not found:
        raise NotRepairable(f"no pending event has the id {event_id}: it was delivered, skipped, or never appended")
    entry = found[0]
    if not entry.front:
        raise NotRepairable(
            f"event {event_id} only waits behind an earlier one of its conversation: repair that one first"
        )
    if entry.state not in REPAIRABLE:
        raise NotRepairable(f"event {event_id} is not stuck, its lane is {entry.state}: pause the lane to change it")
    return entry


def checked_reason(reason: str) -> str:
    """Return the reason without space around it.

    :raises InvalidInput: there is none, or it is too long.
    """
    said = reason.strip()
    if not said:
        raise InvalidInput("reason", "must say why: it is kept")
    if len(said) > MAX_REASON:
        raise InvalidInput("reason", f"has {len(said)} characters, the limit is {MAX_REASON}")
    return said


def _decoded(text: str | None, field: str) -> Mapping[str, Any]:
    try:
        return EMPTY if text is None else decode(text)
    except ValueError:
        raise InvalidInput(field, "is damaged in the file: give the whole of it anew") from None


def _message_id(data: str, otherwise: str) -> Any:
    """Return the message that the data is of; where it is damaged nobody knows, and who mends it is believed."""
    try:
        return decode(data).get("message_id")
    except ValueError:
        return otherwise


def _replace(
    connection: sa.Connection,
    old: Entry,
    new: EncodedEvent,
    verb: Verb,
    reason: str,
    *,
    now_us: int,
    by: str | None,
) -> None:
    connection.exec_driver_sql(
        _KEEP,
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
            by,
            now_us,
        ),
    )
    connection.exec_driver_sql(
        _REPLACE,
        (
            new.event_id.bytes,
            new.type,
            new.schema_version,
            new.data,
            new.metadata,
            new.digest,
            old.event_id.bytes,
        ),
    )
    _keep_erased(connection, new)
    if ConversationStarted.type in (old.type, new.type):
        _follow_owner(connection, old, new)
    if old.state != "blocked":  # nobody has an event of a blocked lane under way
        connection.exec_driver_sql(_FENCE)
    _set(connection, _READY, [old.conversation_id])


def _keep_erased(connection: sa.Connection, new: EncodedEvent) -> None:
    """Take the content of a message away again, where it was redacted before its event was repaired."""
    if new.type not in OF_A_MESSAGE:
        return
    message_id = str(_decoded(new.data, "data").get("message_id"))
    cursor = connection.connection.cursor()
    try:
        if was_redacted(cursor, new.conversation_id, message_id):
            erase(cursor, new.conversation_id, message_id)
    finally:
        cursor.close()


def _follow_owner(connection: sa.Connection, old: Entry, new: EncodedEvent) -> None:
    """Have the lane know the owner that the history store will hear of, so that a later append may tell it again."""
    if digest_of(old.conversation_id, old.type, old.schema_version, old.data, old.metadata) != old.digest:
        return  # damaged: what it said is not known
    before, after = (
        _decoded(data, "data").get("owner_id") if type_ == ConversationStarted.type else None
        for type_, data in ((old.type, old.data), (new.type, new.data))
    )
    if before != after:
        connection.exec_driver_sql(
            "UPDATE letopis_outbox_lanes SET owner_id = ? WHERE conversation_id = ? AND owner_id IS ?",
            (after, old.conversation_id, before),
        )
