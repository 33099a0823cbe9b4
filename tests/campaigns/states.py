"""Hold what the invariant checker compares, as plain values."""

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

SHOWN: Final = 20


@contextmanager
def snapshot(path: Path) -> Iterator[tuple[sqlite3.Connection, UUID]]:
    """Give a view of an outbox file, also while others write to it, and the file's origin."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN")
        ((origin,),) = connection.execute("SELECT origin_id FROM letopis_outbox_origin").fetchall()
        yield connection, UUID(bytes=origin)


def uuid_of(value: Any) -> UUID:
    return value if isinstance(value, UUID) else UUID(bytes=bytes(value))


class Ack(NamedTuple):
    """What a bot was promised: the append returned, so this event must never be missing again."""

    conversation_id: str
    event_id: UUID
    sequence: int | None = None


class StoredEvent(NamedTuple):
    """One row of the store's log; ``content`` is the digest of what the row really holds."""

    partition: int
    position: int
    conversation_id: str
    version: int
    event_id: UUID
    origin_id: UUID
    sequence: int
    type: str
    digest: bytes | None
    content: bytes
    message_id: str | None = None
    bare: bool = False  # whether it contains no message text
    resets: bool = False  # whether it erases all that came before it
    resets_upto: int = 0  # the last version that it erases
    noted: Mapping[str, Any] = {}  # what Letopis put in its metadata, without the prefix
    to_message_id: str | None = None  # of a rewind, if it does not take all messages off the path
    forked: bool = False  # whether it begins with what another conversation holds
    trims_upto: int = 0  # the version up to which it takes content away by a rule of retention
    author: str | None = None

    @property
    def verdict(self) -> Mapping[str, int] | None:
        return self.noted.get("superseded")


class StoredMessage(NamedTuple):
    conversation_id: str
    version: int
    left_at: int | None = None
    redacted_at: int | None = None


class StoredConversation(NamedTuple):
    version: int
    message_count: int
    state: str = "active"
    owner_id: str | None = None
    retained: int = 0


class OutboxEvent(NamedTuple):
    """One row of an outbox's log; ``content`` is the digest of what the row really holds."""

    conversation_id: str
    sequence: int
    event_id: UUID
    digest: bytes
    content: bytes
    redacted: bool = False
    bare: bool = False
    type: str = "message.appended"
    batch: UUID | None = None  # the event that decides for the whole append, if that has a condition
    resets: bool = False  # whether it erases all that came before it, and says why


class OutboxLane(NamedTuple):
    """How far one conversation has got in an outbox."""

    head: int
    delivered: int
    pruned: int
    state: str
    deleted: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    events: Sequence[StoredEvent]
    lanes: Mapping[tuple[UUID, str], int]
    conversations: Mapping[str, StoredConversation]
    messages: Sequence[StoredMessage]
    log_heads: Mapping[int, int]
    active: Mapping[str, str | None] = field(default_factory=dict)  # owner to conversation
    duplicates: Mapping[tuple[UUID, str], int] = field(default_factory=dict)  # of a lane: delivered, and there before
    erased: Collection[str] = ()  # whom numbered erasures name: ids of owners, persons and conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxState:
    name: str
    origin_id: UUID
    events: Sequence[OutboxEvent]
    lanes: Mapping[str, OutboxLane]
    superseded: Mapping[tuple[str, int], UUID] = field(default_factory=dict)  # conversation and sequence to event
    integrity: str = "ok"
