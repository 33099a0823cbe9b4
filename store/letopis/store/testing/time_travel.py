"""Prove that a conversation can be read as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from letopis.store import InvalidInput, Message, RecordedEvent
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound, MessageRedacted, ReactionAdded
from letopis.store.rules.fold import fold
from letopis.store.testing.capabilities import Capability, requires
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.random_events import START, Talk


async def events_of(store: DestinationStore, conversation_id: str) -> Sequence[RecordedEvent]:
    return (await store.events(conversation_id, first=10_000)).items


async def paged(store: DestinationStore, conversation_id: str, size: int, **given: Any) -> list[RecordedMessage]:
    """Return all messages by pages backward, after comparing them with those by pages forward."""
    backward: list[RecordedMessage] = []
    before = None
    while True:
        page = await store.messages(conversation_id, last=size, before=before, **given)
        assert len(page) == size or page.next is None
        backward[:0] = page
        if (before := page.next) is None:
            break
    forward: list[RecordedMessage] = []
    after = None
    while True:
        page = await store.messages(conversation_id, first=size, after=after, **given)
        assert len(page) == size or page.next is None
        forward += page
        if (after := page.next) is None:
            break
    assert forward == backward
    return forward


@requires(Capability.TIME_TRAVEL)
class TimeTravelConformance(StoreConformance):
    """Compare reads of the past with the fold of the events up to there."""

    @pytest.mark.parametrize("seed", [4, 7])
    async def test_a_past_version_is_the_fold_of_its_events(self, store: DestinationStore, seed: int) -> None:
        talk, outbox = Talk(seed), Outbox()
        outbox.append("c", *(talk.next("c") for _ in range(70)))
        await outbox.deliver(store)
        events = await events_of(store, "c")

        for version in range(len(events) + 1):
            folded = fold(events[:version])
            found = await store.conversation("c", as_of=version)
            if found is not None:
                found = replace(found, number=None)
            assert found == folded.conversation
            assert (await store.messages("c", as_of=version)).items == folded.path
            if version % 4 == 0:
                assert (await store.messages("c", as_of=version, every=True)).items == folded.messages
                assert (await store.messages("c", as_of=version, last=5)).items == folded.path[-5:]
                assert tuple(await paged(store, "c", 4, as_of=version)) == folded.path
        assert any(not message.on_path for message in fold(events).messages)

    async def test_it_is_what_was_read_at_that_moment(self, store: DestinationStore) -> None:
        """Two outboxes write; nothing but a redaction changes the past."""
        talk, outboxes = Talk(7, erasing=False), [Outbox(), Outbox()]
        read = {}
        for number in range(40):
            outbox = outboxes[number % 2]
            outbox.append("c", *(talk.next("c") for _ in range(talk.chance.randrange(1, 5))))
            await outbox.deliver(store)
            conversation = await store.conversation("c")
            assert conversation is not None
            read[conversation.version] = conversation, (await store.messages("c", every=True)).items

        for version, (conversation, messages) in read.items():
            assert await store.conversation("c", as_of=version) == conversation
            assert (await store.messages("c", as_of=version, every=True)).items == messages

    async def test_a_moment_is_the_last_event_in_order_that_had_happened(self, store: DestinationStore) -> None:
        talk, outbox = Talk(3), Outbox()
        outbox.append("c", *(talk.next("c") for _ in range(60)))
        await outbox.deliver(store)
        events = await events_of(store, "c")

        for seconds in range(-8, 70, 3):
            moment = START + timedelta(seconds=seconds)
            version = max((event.version or 0 for event in events if event.occurred_at <= moment), default=0)
            assert await store.messages("c", as_of=moment) == await store.messages("c", as_of=version)
            assert await store.conversation("c", as_of=moment) == await store.conversation("c", as_of=version)
        assert await store.conversation("c", as_of=START - timedelta(days=1)) is None
        assert (await store.messages("c", as_of=START + timedelta(days=1))).items == (await store.messages("c")).items

    async def test_beyond_the_end_is_the_present(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("c", Message.user("hi"), Message.assistant("hello"))
        await outbox.deliver(store)

        assert (await store.messages("c", as_of=10_000)).items == (await store.messages("c")).items
        assert await store.conversation("c", as_of=10_000) == await store.conversation("c")
        assert (await store.messages("nobody", as_of=3)).items == ()
        assert (await store.messages("nobody", as_of=3)).complete
        assert await store.conversation("nobody", as_of=datetime.now(UTC)) is None

    async def test_what_was_redacted_since_is_redacted(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("c", Message.user("secret", id="m"), Message.assistant("fine"))
        await outbox.deliver(store)
        outbox.append("c", MessageRedacted(message_id="m"))
        await outbox.deliver(store)

        first, second = await store.messages("c", as_of=2)
        assert (first.redacted, first.text) == (True, "")
        assert second.text == "fine"

    async def test_a_deleted_conversation_says_nothing_of_its_past(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("c", Message.user("secret", id="m"), ReactionAdded(message_id="m", key="secret"))
        await outbox.deliver(store)
        before = await store.messages("c")
        outbox.append("c", ConversationDeleted())
        await outbox.deliver(store)

        (then,) = await store.messages("c", as_of=2)
        assert then == replace(before[0], message=then.message, redacted=True, reactions=())
        assert "secret" not in repr(then)
        for every in (False, True):
            assert (await store.messages("c", as_of=3, every=every)).items == ()
        assert fold((await events_of(store, "c"))[:2]).path == (then,)
        assert (await store.conversation("c", as_of=2)) == fold((await events_of(store, "c"))[:2]).conversation

    async def test_a_long_log_is_read_in_pages(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("c", *(Message.user(str(number), id=str(number)) for number in range(1_100)))
        outbox.append("c", *(ReactionAdded(message_id=str(number), key="+") for number in range(1_100)))
        outbox.append("c", ConversationRewound(to_message_id="9"))
        await outbox.deliver(store)

        found = await store.conversation("c", as_of=2_200)
        assert found is not None and found.message_count == 1_100
        page = await store.messages("c", as_of=1_101, last=3)
        assert [len(message.reactions) for message in page] == [0, 0, 0]
        page = await store.messages("c", as_of=2_199, first=2, after=1_098)
        assert [(message.text, len(message.reactions)) for message in page] == [("1098", 1), ("1099", 0)]
        assert len(await store.messages("c", as_of=2_201)) == 10

    @pytest.mark.parametrize("wrong", [-1, True, "3", datetime(2026, 1, 1), 2**63, 1.5])  # noqa: DTZ001 - that is wrong
    async def test_an_invalid_moment_is_refused(self, store: DestinationStore, wrong: Any) -> None:
        with pytest.raises(InvalidInput, match="as_of"):
            await store.messages("c", as_of=wrong)
        with pytest.raises(InvalidInput, match="as_of"):
            await store.conversation("c", as_of=wrong)
