"""Test whether a store accepts ordinary events, by applying some and rolling them back."""

from __future__ import annotations

from itertools import count
from typing import Final
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database.fault_classification import translated
from letopis.store.model.codec import encode, encode_message
from letopis.store.model.event_types import ConversationStarted
from letopis.store.model.events import Event
from letopis.store.model.identifiers import partition_of
from letopis.store.model.messages import Message
from letopis.store.model.upcasters import NO_UPCASTERS
from letopis.store.rules.apply_plan import LaneBatch, Origin, SequencedEvent
from letopis.store.write.applier import Applier, DecodedBatch

_TRIAL_TEXT: Final = (
    "Letopis tests whether this history store accepts an ordinary message of an ordinary length, in a transaction that"
    " is rolled back. If this text can be read, the rollback has failed."
)


class Trial:
    """Applies ordinary events to one history store, and rolls them back."""

    def __init__(self, engine: AsyncEngine, applier: Applier, *, partitions: int) -> None:
        self._engine = engine
        self._applier = applier
        self._partitions = partitions

    async def run(self, conversation_id: str) -> None:
        """Begin and continue a new conversation in the log partition of another one.

        No projection sees it. Faults that only a commit shows, such as a full disk, are not found.
        """
        partition = partition_of(conversation_id, self._partitions)
        origin = Origin(origin_id=uuid4(), epoch=1, name="letopis trial")
        async with self._applier.write_lock:
            with translated():
                async with self._engine.connect() as connection:
                    transaction = self._applier.begin(connection, origin)
                    for part in trial_batches(partition=partition, partitions=self._partitions):
                        decoded = DecodedBatch(NO_UPCASTERS)
                        await decoded.decode([part])
                        await self._applier.run_phases(transaction, [part], decoded)
                    await connection.rollback()


def trial_batches(*, partition: int, partitions: int) -> tuple[LaneBatch, LaneBatch]:
    """Return batches that begin and continue a new conversation: they need different privileges on the tables."""
    key = uuid4().hex
    names = (f"letopis-trial-{key}-{number}" for number in count())
    name = next(name for name in names if partition_of(name, partitions) == partition)
    started = Event.of(ConversationStarted(owner_id=f"letopis-trial-{key}", title="A trial"), conversation_id=name)
    first = Message.user(_TRIAL_TEXT)
    second = Message.assistant(_TRIAL_TEXT, tokens=7)
    return (
        LaneBatch(
            conversation_id=name,
            deliveries=(
                SequencedEvent(sequence=1, event=encode(started, conversation_id=name)),
                SequencedEvent(sequence=2, event=encode_message(first, conversation_id=name, metadata={"trial": True})),
            ),
        ),
        LaneBatch(
            conversation_id=name,
            deliveries=(SequencedEvent(sequence=3, event=encode_message(second, conversation_id=name)),),
        ),
    )
