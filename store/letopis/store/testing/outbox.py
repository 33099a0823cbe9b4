"""Deliver to a store without an outbox file and a relay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID, uuid4

from letopis.store import Event, Message
from letopis.store.model.codec import SALT_BYTES, EncodedEvent, digest_of, encode
from letopis.store.model.event_types import Body
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin, SequencedEvent
from letopis.store.testing.destination_store import DestinationStore


class Outbox:
    """An outbox in memory that delivers its lanes, all or any part, once or again."""

    def __init__(self, name: str = "bot.outbox.db", *, epoch: int = 1, origin_id: UUID | None = None) -> None:
        self.origin = Origin(origin_id=origin_id or uuid4(), epoch=epoch, name=name)
        self.lanes: dict[str, list[EncodedEvent]] = {}
        self.delivered: dict[str, int] = {}

    def append(self, conversation_id: str, *what: Message | Body | Event) -> list[EncodedEvent]:
        """Append to a lane, and return the encoded events."""
        encoded = [
            encode(Event.of(one, conversation_id=conversation_id), conversation_id=conversation_id) for one in what
        ]
        self.append_encoded(conversation_id, encoded)
        return encoded

    def append_encoded(self, conversation_id: str, encoded: Iterable[EncodedEvent]) -> None:
        """Append events that are encoded already."""
        self.lanes.setdefault(conversation_id, []).extend(encoded)

    def batch(self, conversation_id: str, first: int = 1, last: int | None = None) -> LaneBatch:
        """Return the events of a lane from one sequence to another, both included."""
        lane = self.lanes[conversation_id]
        return LaneBatch(
            conversation_id=conversation_id,
            deliveries=tuple(
                SequencedEvent(sequence=sequence, event=event)
                for sequence, event in enumerate(lane[first - 1 : last], start=first)
            ),
        )

    def pending(self) -> list[LaneBatch]:
        """Return what was never delivered."""
        return [
            self.batch(name, self.delivered.get(name, 0) + 1)
            for name, lane in self.lanes.items()
            if len(lane) > self.delivered.get(name, 0)
        ]

    async def deliver(self, store: DestinationStore) -> ApplyResult:
        """Deliver everything that is pending, and remember how far the store holds the lanes."""
        result = await store.apply(self.origin, self.pending())
        self.delivered.update({applied.conversation_id: applied.head for applied in result.applied})
        return result

    def copy(self, *, epoch: int | None = None) -> Outbox:
        """Return a copy under the same identity, as of a copied file."""
        copied = Outbox(self.origin.name, epoch=epoch or self.origin.epoch, origin_id=self.origin.origin_id)
        copied.lanes = {name: list(lane) for name, lane in self.lanes.items()}
        copied.delivered = dict(self.delivered)
        return copied


def with_text(event: EncodedEvent, data: str) -> EncodedEvent:
    """Return the event with other data under the same id and the digest of that data."""
    salt = event.salt or bytes(SALT_BYTES)
    digest = digest_of(event.conversation_id, event.type, event.schema_version, data, event.metadata, salt)
    return replace(event, data=data, digest=digest, salt=salt)


async def whole_log(store: DestinationStore, partition: int = 0) -> list[tuple[int, str, int, UUID]]:
    """Return position, conversation, version and id of every event in a partition of the log."""
    head = await store.head(partition)
    log: list[tuple[int, str, int, UUID]] = []
    if head:
        async for event in store.subscribe(partition=partition):
            assert event.position is not None and event.version is not None
            log.append((event.position, event.conversation_id, event.version, event.event_id))
            if event.position == head:
                break
    return log


async def log_size(store: DestinationStore) -> int:
    """Return how many events the log holds, in all partitions."""
    return sum([await store.head(partition) for partition in range(await store.partitions())])


async def assert_no_gaps(store: DestinationStore) -> None:
    """Check that positions count from 1 to the head, and versions from 1 in every conversation."""
    versions: dict[str, int] = {}
    for partition in range(await store.partitions()):
        log = await whole_log(store, partition)
        assert [position for position, *_ in log] == list(range(1, await store.head(partition) + 1))
        for _, conversation_id, version, _ in log:
            assert version == versions.get(conversation_id, 0) + 1
            versions[conversation_id] = version
    for conversation_id, version in versions.items():
        conversation = await store.conversation(conversation_id)
        assert conversation is not None and conversation.version == version
