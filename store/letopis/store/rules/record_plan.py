"""Decide what the changes of a record lane come to, given what is stored, without I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final, Self
from uuid import UUID

import orjson

from letopis.store.errors import HistoryDiverged, InvalidInput
from letopis.store.model.codec import SALT_BYTES, EncodedEvent, decode, digest_of
from letopis.store.model.records import (
    ABSENT,
    ANY,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    RECORD_DELETED,
    RECORD_PUT,
    RECORD_TYPES,
    RECORDS_CLEARED,
    Condition,
    Expected,
    Media,
    RecordKey,
    Scope,
    Tag,
    check_tags,
    range_end,
)
from letopis.store.rules.apply_plan import ComparedLane, SequencedEvent
from letopis.store.rules.preconditions import Conflict

SCHEMA_VERSION: Final = 1
SUPERSEDED: Final = Conflict(expected=0, actual=0)
"""The conflict of a change whose condition did not hold: a record has no versions to name."""


@dataclass(slots=True, kw_only=True)
class RecordChange:
    """One event of a record lane, decoded."""

    sequence: int
    event_id: UUID
    type: str
    prefix: bytes = b""  # of what a clear removes, which has no key; otherwise the namespace
    key: bytes = b""
    expected: Expected = ANY
    keep: bool = False  # where it finds another record than it expects, that stays, without a conflict
    erases: bool = False  # a clear whose traces are erased too, because its conversation or owner is
    media: Media = Media.JSON
    size: int = 0
    tags: Mapping[str, Tag] = field(default_factory=dict)
    occurred_at: int = 0
    checksum: str = ""  # the SHA-256 of the value, in hexadecimal
    salt: bytes | None = None  # of the event; None if it was erased
    body: bytes | None = None  # the value; None if a later change took it away, or the change has none

    @property
    def place(self) -> RecordKey:
        """The namespace and key that it changes."""
        return self.prefix, self.key


def record_id(scope: Scope, place: RecordKey) -> UUID:
    """Return the id under which the row of a record is found; derived from all that names it."""
    whole = b"\0".join((scope.name.encode(), *place))
    return UUID(bytes=sha256(whole).digest()[:16])


def record_digest(salt: bytes, *row: object) -> bytes:
    """Return the SHA-256 of a salt and of what the row of a record says."""
    # The columns from its id to its size, then tags, the checksum of the value, and when it was put.
    return sha256(salt + orjson.dumps(row, default=_as_text, option=orjson.OPT_SORT_KEYS)).digest()


def _as_text(value: object) -> str:
    # A driver's subclass of UUID is none to orjson.
    return value.hex() if isinstance(value, bytes) else str(value)


def change_event(
    lane: str, type_name: str, *, event_id: UUID, occurred_at: int, data: bytes, body: bytes | None = None
) -> EncodedEvent:
    """Return the event of a change. Its digest covers the value through the checksum in its data."""
    salt = os.urandom(SALT_BYTES)
    return EncodedEvent(
        conversation_id=lane,
        event_id=event_id,
        type=type_name,
        schema_version=SCHEMA_VERSION,
        data=data.decode(),
        metadata=None,
        digest=digest_of(lane, type_name, SCHEMA_VERSION, data, None, salt),
        salt=salt,
        occurred_at=occurred_at,
        body=body,
    )


def decode_change(delivery: SequencedEvent) -> RecordChange:
    """Return the change that an event of a record lane is; one without effect for a type that is not known here."""
    event = delivery.event
    if not event.intact or (event.salt is None and event.data != "{}"):
        raise InvalidInput("digest", "does not match the content: the event was damaged after it was appended")
    empty = RecordChange(sequence=delivery.sequence, event_id=event.event_id, type=event.type)
    if event.type not in RECORD_TYPES or event.schema_version != SCHEMA_VERSION:
        return empty
    try:
        data = decode(event.data)
    except ValueError as error:
        raise InvalidInput("data", "is no JSON object") from error
    if event.redacted and "namespace" not in data:
        return replace(empty, type="")  # erased: it has no effect any more
    prefix, cleared = _bytes(data, "namespace"), event.type == RECORDS_CLEARED
    key = b"" if cleared else _bytes(data, "key")
    if not (key or cleared):
        raise InvalidInput("data.key", "is missing")
    size, checksum, media = data.get("size", 0), data.get("sha256"), data.get("media", Media.JSON.value)
    if event.type == RECORD_PUT:
        _check_body(event, size, checksum)
    if not isinstance(size, int) or media not in list(Media):
        raise InvalidInput("data.media", "is none that this release knows")
    return replace(
        empty,
        prefix=prefix,
        key=key,
        expected=_expected(data.get("expected")),
        keep=data.get("keep") is True,
        erases=cleared and data.get("erase") is True,
        media=Media(media),
        size=size,
        tags=check_tags(data.get("tags"), "data.tags"),
        occurred_at=event.occurred_at,
        checksum=checksum or "",
        salt=event.salt,
        body=None if event.redacted else event.body,
    )


def _check_body(event: EncodedEvent, size: Any, checksum: Any) -> None:
    if event.redacted:
        return
    if event.body is None:
        raise InvalidInput("value", "is missing in the outbox: the file was damaged after the record was put")
    if len(event.body) != size or len(event.body) > MAX_VALUE_BYTES or sha256(event.body).hexdigest() != checksum:
        raise InvalidInput("value", "does not match its checksum: it was damaged after it was put")


def _bytes(data: Mapping[str, Any], name: str) -> bytes:
    value = data.get(name)
    if not isinstance(value, str):
        raise InvalidInput(f"data.{name}", "must be a string")
    encoded = value.encode()
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidInput(f"data.{name}", f"is longer than {MAX_KEY_BYTES} bytes")
    return encoded


def _expected(value: Any) -> Expected:
    if value is None:
        return ANY
    if value == Condition.ABSENT.value:
        return ABSENT
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput("data.expected", "is no revision") from error


def meets(expected: Expected, found: UUID | None) -> bool:
    """Return True if a record with the revision ``found``, or none, is what a change expects."""
    if expected is ANY:
        return True
    return found is None if expected is ABSENT else found == expected


@dataclass(slots=True, kw_only=True)
class RecordPlan:
    """What the changes of one lane come to."""

    final: dict[RecordKey, RecordChange | None] = field(default_factory=dict)  # None where no record is left
    cleared: list[bytes] = field(default_factory=list)  # prefixes, before the final values are written
    superseded: set[int] = field(default_factory=set)  # sequences of changes whose condition did not hold
    erases: bool = False


def plan_changes(
    changes: Iterable[RecordChange], stored: Mapping[RecordKey, UUID], *, gone: bool = False, held: bool = False
) -> RecordPlan:
    """Return what changes come to, in their order: nothing is kept if the conversation is gone, or erased if held."""
    plan = RecordPlan()
    revisions = dict(stored)
    for change in changes:
        if change.erases and held:
            plan.superseded.add(change.sequence)
        elif change.type == RECORDS_CLEARED:
            end = range_end(change.prefix)
            for key in list(revisions):
                if key[0] >= change.prefix and (end is None or key[0] < end):
                    del revisions[key]
                    plan.final[key] = None
            plan.cleared.append(change.prefix)
            plan.erases = plan.erases or change.erases
        elif change.type == RECORD_DELETED:
            if not meets(change.expected, revisions.get(change.place)):
                if not change.keep:
                    plan.superseded.add(change.sequence)
            elif revisions.pop(change.place, None) is not None:
                plan.final[change.place] = None
        elif change.type == RECORD_PUT:
            revision = revisions.get(change.place)
            if gone:
                plan.superseded.add(change.sequence)
            elif change.body is None:
                continue  # a later change of the same record follows
            elif meets(change.expected, revision):
                revisions[change.place] = change.event_id
                plan.final[change.place] = change
            elif not change.keep:
                plan.superseded.add(change.sequence)
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What the ledger holds of a change."""

    event_id: UUID
    digest: bytes
    superseded: bool

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(event_id=row.event_id, digest=bytes(row.digest), superseded=bool(row.superseded))


def check_known_changes(compared: ComparedLane, ledger: Mapping[int, LedgerEntry], *, floor: int) -> set[int]:
    """Check that the known changes are those that were applied; return the sequences that were superseded."""
    # Up to ``floor`` the ledger was trimmed, because the outbox has pruned these changes.
    superseded = set()
    for delivery in compared.known:
        if delivery.sequence <= floor:
            continue
        entry, event = ledger.get(delivery.sequence), delivery.event
        if entry is None or (entry.event_id, entry.digest) != (event.event_id, event.digest):
            raise HistoryDiverged(
                conversation_id=compared.lane.conversation_id, sequence=delivery.sequence, event_id=event.event_id
            )
        if entry.superseded:
            superseded.add(delivery.sequence)
    return superseded
