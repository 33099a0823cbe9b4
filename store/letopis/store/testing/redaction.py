"""Prove that redacted and deleted content is gone, whenever it arrives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from letopis.store import (
    Event,
    HistoryDiverged,
    Message,
)
from letopis.store.model.conversations import Delivery
from letopis.store.model.event_types import (
    ConversationActivated,
    ConversationAnnotated,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRewound,
    ConversationStarted,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
)
from letopis.store.rules.fold import fold
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox, assert_no_gaps, whole_log

CHAT = "chat-1"


SECRET = "s3cret-t0ken"


async def assert_is_the_fold(store: DestinationStore, conversation_id: str = CHAT) -> None:
    folded = fold(await store.events(conversation_id, first=1000))
    assert (await store.messages(conversation_id, every=True)).items == folded.messages
    assert (await store.messages(conversation_id)).items == folded.path
    found = await store.conversation(conversation_id)
    assert found is not None and folded.conversation is not None
    assert found.with_changes(number=None, active=False) == folded.conversation.with_changes(active=False)


def said(outbox: Outbox) -> None:
    """Append a message whose content is in every kind of event that can hold it, between two others."""
    outbox.append(
        CHAT,
        ConversationStarted(owner_id="42"),
        Message.user("before", id="a"),
        Message.user(SECRET, id="m", name=SECRET, metadata={"k": SECRET}, external_ids={"t": SECRET}, tokens=7),
        MessageEdited(message_id="m", content=f"{SECRET}!", reason=SECRET),
        MessageSent(message_id="m", platform_ids={"telegram": 5}, sent_as="file", file_path=f"/srv/{SECRET}"),
        MessageFailed(message_id="m", reason=SECRET),
        ReactionAdded(message_id="m", key="like", actor="1"),
        Message.user("after", id="z"),
    )


LATE = [
    MessageEdited(message_id="m", content=SECRET, reason=SECRET),
    MessageSent(message_id="m", platform_ids={"telegram": 5}, file_path=SECRET),
    MessageFailed(message_id="m", reason=SECRET),
]


def whole(outbox: Outbox) -> None:
    """Append a conversation that holds the secret in every kind of event."""
    outbox.append(
        CHAT,
        ConversationStarted(owner_id="42", title=SECRET),
        ConversationRenamed(title=f"{SECRET} II"),
        ConversationAnnotated(metadata={"note": SECRET}),
        ConversationActivated(),
        Message.user(SECRET, id="m", tokens=5),
        MessageEdited(message_id="m", content=SECRET),
        ReactionAdded(message_id="m", key=SECRET, actor=SECRET),
        Event(type="custom.note", data={"text": SECRET}, metadata={"by": SECRET}),
        Event(type="weather.changed", data={"text": SECRET}),
    )


class RedactionConformance(StoreConformance):
    """Redact messages and delete conversations before, with and after what they hold."""

    async def assert_gone(self, store: DestinationStore, secret: str = SECRET) -> None:
        """Check that nothing that the store holds contains the secret."""
        assert secret not in await self.stored_text(store)

    async def test_what_was_redacted_is_recognised_when_it_is_delivered_again(self, store: DestinationStore) -> None:
        outbox = Outbox()
        said(outbox)
        await outbox.deliver(store)
        outbox.append(CHAT, MessageRedacted(message_id="m"))
        await outbox.deliver(store)

        for first, last in ((1, None), (3, 3), (2, 6)):
            [applied] = (await store.apply(outbox.origin, [outbox.batch(CHAT, first, last)])).applied
            assert applied.inserted == 0
        other = Outbox("a copy that never heard of it")
        other.append_encoded(CHAT, outbox.lanes[CHAT][:8])
        # The digests are gone, so the content cannot be compared: an operator decides, and nothing comes back.
        [refused] = (await other.deliver(store)).refused
        assert isinstance(refused, HistoryDiverged) and refused.erased
        await self.assert_gone(store)

    @pytest.mark.parametrize("erases", [MessageRedacted(message_id="m"), ConversationRewound(erase=True)])
    async def test_new_content_of_what_was_erased_is_refused_and_its_outbox_is_told(
        self, store: DestinationStore, erases: Any
    ) -> None:
        """So is an outbox whose conversation was deleted: it erases what it retains itself."""
        outbox, other = Outbox(), Outbox("other")
        other.append(CHAT, Message.user(SECRET, id="m"))
        await other.deliver(store)
        outbox.append(CHAT, erases)
        await outbox.deliver(store)
        other.append(CHAT, MessageEdited(message_id="m", content=SECRET))
        for told in ("message", "conversation"):
            [applied] = (await other.deliver(store)).applied
            assert [conflict.erased for conflict in applied.superseded.values()] == [told]
            [again] = (await store.apply(other.origin, [other.batch(CHAT)])).applied
            assert again.superseded[applied.head] == applied.superseded[applied.head]
            outbox.append(CHAT, ConversationDeleted())
            await outbox.deliver(store)
            other.append(CHAT, Message.user("anybody?"))
        await self.assert_gone(store)

    async def test_a_redacted_message_is_gone_from_every_row_and_its_place_stays(self, store: DestinationStore) -> None:
        outbox = Outbox()
        said(outbox)
        await outbox.deliver(store)
        assert SECRET in await self.stored_text(store)
        before, places = (await store.events(CHAT, first=1_000)).items, await whole_log(store)
        outbox.append(CHAT, MessageRedacted(message_id="m", by="1", reason="asked"))
        await outbox.deliver(store)

        await self.assert_gone(store)
        after = (await store.events(CHAT, first=1_000)).items
        assert (await whole_log(store))[:-1] == places
        stripped = [event.version for event in after if event.digest is None]
        assert stripped == [3, 4, 5, 6]
        for old, new in zip(before, after, strict=False):
            if new.version in stripped:
                assert new == replace(old, data=new.data, metadata={}, digest=None)
            else:
                assert new == old
        _, message, _ = await store.messages(CHAT)
        assert (message.id, message.role, message.content, message.message.tokens) == ("m", "user", "", 7)
        assert (message.redacted, message.on_path, message.edited) == (True, True, False)
        assert (message.delivery, message.delivery_data) == (Delivery.FAILED, {})
        assert [one.key for one in message.reactions] == ["like"]
        await assert_is_the_fold(store)
        await assert_no_gaps(store)

    @pytest.mark.parametrize("late", LATE, ids=lambda body: body.type)
    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("elsewhere", [True, False])
    async def test_what_comes_after_the_redaction_arrives_without_content(
        self, store: DestinationStore, late: Any, together: bool, elsewhere: bool
    ) -> None:
        outbox = Outbox()
        outbox.append(CHAT, Message.user("what?", id="m"))
        await outbox.deliver(store)
        outbox.append(CHAT, MessageRedacted(message_id="m"))
        if not together:
            await outbox.deliver(store)
        speaker = Outbox("other") if elsewhere else outbox
        if elsewhere:
            await outbox.deliver(store)
        speaker.append(CHAT, late)
        await speaker.deliver(store)

        await self.assert_gone(store)
        [message] = await store.messages(CHAT)
        assert (message.content, message.redacted, message.edited) == ("", True, False)
        await assert_is_the_fold(store)
        assert [one.inserted for one in (await store.apply(speaker.origin, [speaker.batch(CHAT)])).applied] == [0]

    async def test_an_edit_that_arrived_before_its_message_is_erased(self, store: DestinationStore) -> None:
        """An edit can arrive before its message through another outbox: it has no effect, but it has content."""
        one, two = Outbox("one"), Outbox("two")
        two.append(CHAT, MessageEdited(message_id="m", content=SECRET))
        await two.deliver(store)
        one.append(CHAT, Message.user("what?", id="m"))
        await one.deliver(store)
        one.append(CHAT, MessageRedacted(message_id="m"))
        await one.deliver(store)

        await self.assert_gone(store)
        await assert_is_the_fold(store)

    async def test_an_early_edit_is_erased_when_message_and_redaction_arrive_together(
        self, store: DestinationStore
    ) -> None:
        one, two = Outbox("one"), Outbox("two")
        two.append(CHAT, MessageEdited(message_id="m", content=SECRET))
        await two.deliver(store)
        one.append(CHAT, Message.user("what?", id="m"), MessageRedacted(message_id="m"))
        await one.deliver(store)

        await self.assert_gone(store)
        await assert_is_the_fold(store)

    @pytest.mark.parametrize("when", ["before", "with", "after"])
    async def test_an_edit_of_a_later_release_is_erased(self, store: DestinationStore, when: str) -> None:
        """The shape of the event is unknown, but not the message that it is about."""
        newer = Event(type="message.edited", schema_version=2, data={"message_id": "m", "words": SECRET})
        outbox = Outbox()
        outbox.append(CHAT, Message.user("what?", id="m"))
        if when == "before":
            outbox.append(CHAT, newer)
        await outbox.deliver(store)
        if when == "with":
            outbox.append(CHAT, newer)
        outbox.append(CHAT, MessageRedacted(message_id="m"))
        await outbox.deliver(store)
        if when == "after":
            outbox.append(CHAT, newer)
            await outbox.deliver(store)

        await self.assert_gone(store)
        await assert_is_the_fold(store)

    async def test_a_message_and_its_redaction_in_one_delivery(self, store: DestinationStore) -> None:
        outbox = Outbox()
        said(outbox)
        outbox.append(CHAT, MessageRedacted(message_id="m"))
        await outbox.deliver(store)

        await self.assert_gone(store)
        await assert_is_the_fold(store)

    async def test_redacting_twice_or_an_unknown_message_changes_nothing(self, store: DestinationStore) -> None:
        outbox = Outbox()
        said(outbox)
        outbox.append(CHAT, MessageRedacted(message_id="m"), MessageRedacted(message_id="nobody"))
        await outbox.deliver(store)
        before = (await store.events(CHAT, first=1_000)).items
        outbox.append(CHAT, MessageRedacted(message_id="m"), MessageRedacted(message_id="nobody"))
        await outbox.deliver(store)

        assert (await store.events(CHAT, first=1_000)).items[:-2] == before
        assert [message.text for message in await store.messages(CHAT)] == ["before", "", "after"]
        await assert_is_the_fold(store)

    async def test_other_messages_of_many_stay_as_they_are(self, store: DestinationStore) -> None:
        """Redact among more events than are read at a time, with similar ids."""
        outbox = Outbox()
        ids = ["m", "M", "m ", 'm"', "m%", "_", "п"]
        for number in range(80):
            for name in ids:
                outbox.append(CHAT, MessageEdited(message_id=name, content=f"edit {number}"))
                if number == 0:
                    outbox.append(CHAT, Message.user("x", id=name))
        await outbox.deliver(store)
        outbox.append(CHAT, MessageRedacted(message_id="m"), MessageRedacted(message_id="m%"))
        await outbox.deliver(store)

        gone = {"m", "m%"}
        for event in await store.events(CHAT, first=1_000):
            if event.type in ("message.appended", "message.edited"):
                assert (event.digest is None) == (event.data["message_id"] in gone)
                assert (event.data["content"] == "") == (event.data["message_id"] in gone)
        assert {message.id for message in await store.messages(CHAT) if message.redacted} == gone
        await assert_is_the_fold(store)

    async def test_a_deleted_conversation_leaves_nothing_but_its_place(self, store: DestinationStore) -> None:
        outbox = Outbox()
        whole(outbox)
        await outbox.deliver(store)
        outbox.append("other", ConversationStarted(owner_id="42"), Message.user("stays"))
        outbox.append(CHAT, ConversationDeleted(reason="asked for it"))
        await outbox.deliver(store)

        await self.assert_gone(store)
        found = await store.conversation(CHAT)
        assert found is not None
        assert (found.state, found.owner_id, found.number, found.title) == ("deleted", "42", 1, None)
        assert (found.metadata, found.message_count, found.tokens, found.active) == ({}, 0, 5, False)
        *stripped, deletion = await store.events(CHAT)
        assert all(event.digest is None and event.metadata == {} for event in stripped)
        assert deletion.data == {"reason": "asked for it"}
        assert deletion.digest is not None
        assert (await store.messages(CHAT)).items == ()
        assert [one.conversation_id for one in await store.conversations(owner="42")] == ["other"]
        assert [message.text for message in await store.messages("other")] == ["stays"]
        active = await store.active("42")
        assert active is not None and active.conversation_id == "other"
        await assert_is_the_fold(store)
        await assert_no_gaps(store)

    async def test_what_comes_after_the_deletion_is_kept_without_content_and_put_aside(
        self, store: DestinationStore
    ) -> None:
        one, two = Outbox("one"), Outbox("two")
        whole(one)
        one.append(CHAT, ConversationDeleted())
        await one.deliver(store)
        two.append(
            CHAT,
            ConversationStarted(owner_id="7", title=SECRET),
            ConversationActivated(),
            Message.user(SECRET, id="late", tokens=3),
            ConversationRenamed(title=SECRET),
            ReactionAdded(message_id="m", key=SECRET),
            ConversationDeleted(reason=SECRET),
            Event(type="custom.note", data={"text": SECRET}, metadata={"by": SECRET}),
        )
        [applied] = (await two.deliver(store)).applied

        assert set(applied.superseded) == set(range(1, 8))
        await self.assert_gone(store)
        found = await store.conversation(CHAT)
        assert found is not None
        assert (found.state, found.owner_id, found.number, found.message_count) == ("deleted", "42", 1, 0)
        for event in (await store.events(CHAT)).items[10:]:
            assert event.digest is None
            assert list(event.metadata) == [SUPERSEDED_KEY]
        assert (await store.messages(CHAT)).items == ()
        assert await store.active("42") is None and await store.active("7") is None
        [again] = (await store.apply(two.origin, [two.batch(CHAT)])).applied
        assert (again.inserted, again.superseded) == (0, applied.superseded)
        await assert_is_the_fold(store)
        await assert_no_gaps(store)

    async def test_a_deletion_and_a_later_message_in_one_delivery(self, store: DestinationStore) -> None:
        outbox = Outbox()
        whole(outbox)
        outbox.append(CHAT, ConversationDeleted(), Message.user(SECRET, id="late"))
        [applied] = (await outbox.deliver(store)).applied

        assert set(applied.superseded) == {11}
        await self.assert_gone(store)
        await assert_is_the_fold(store)

    async def test_a_number_is_never_used_again(self, store: DestinationStore) -> None:
        outbox = Outbox()
        for number, name in enumerate(("a", "b", "c"), 1):
            outbox.append(name, ConversationStarted(owner_id="42"), Message.user(name))
            outbox.append(name, ConversationDeleted())
            await outbox.deliver(store)
            found = await store.conversation(name)
            assert found is not None and found.number == number
