"""Prove that the state of conversations and messages is the fold of their events."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from letopis.store.rules.fold import fold
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from letopis.store.testing.random_events import Talk

CONVERSATIONS = ("a", "b", "A")


class StateConformance(StoreConformance):
    """Compare what is stored after random events with the fold."""

    @pytest.mark.parametrize("seed", range(4))
    async def test_the_projection_is_the_fold(self, store: DestinationStore, seed: int) -> None:
        """Two outboxes write, ids are used again, times step back, and deliveries are repeated."""
        chance, talk = random.Random(seed), Talk(seed)
        outboxes = [Outbox(), Outbox()]
        for _ in range(30):
            outbox = chance.choice(outboxes)
            for _ in range(chance.randrange(1, 9)):
                conversation_id = chance.choice(CONVERSATIONS)
                outbox.append(conversation_id, talk.next(conversation_id))
            await outbox.deliver(store)
            if chance.random() < 0.3:  # again, as after a lost acknowledgement
                outbox.delivered = {name: chance.randrange(head + 1) for name, head in outbox.delivered.items()}

        for conversation_id in CONVERSATIONS:
            page = await store.events(conversation_id, first=10_000)
            folded = fold(page)
            conversation = await store.conversation(conversation_id)
            assert folded.conversation is not None and conversation is not None
            assert replace(conversation, number=None) == folded.conversation
            assert (conversation.number is None) == (conversation.owner_id is None)
            assert (await store.messages(conversation_id, every=True)).items == folded.messages
            assert (await store.messages(conversation_id)).items == folded.path
            assert (await store.messages(conversation_id, last=5)).items == folded.path[-5:]
        await assert_no_gaps(store)
