"""Prove that every event has the effect that its page promises."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from letopis.store import (
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRestored,
    ConversationRewound,
    ConversationStarted,
    ConversationTagged,
    ConversationTrimmed,
    CustomEvent,
    Delivery,
    Event,
    FaultClass,
    Message,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    StoreFault,
)
from letopis.store.model.conversations import Conversation, Reaction, RecordedMessage
from letopis.store.rules.fold import fold
from letopis.store.rules.projection import ACTIVATION_ORDER_KEY
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox, assert_no_gaps


class CheckedConversation:
    """One conversation of a store whose reads are compared with the fold of its events."""

    def __init__(self, store: DestinationStore, outbox: Outbox, name: str = "c1") -> None:
        self.store, self.outbox, self.name = store, outbox, name

    async def say(self, *what: Any) -> None:
        self.outbox.append(self.name, *what)
        await self.outbox.deliver(self.store)

    async def conversation(self) -> Conversation:
        found = await self.store.conversation(self.name)
        folded = fold(await self.store.events(self.name, first=10_000)).conversation
        assert found is not None
        assert folded is not None
        assert replace(found, number=None, active=False) == folded
        return found

    async def messages(self) -> tuple[RecordedMessage, ...]:
        """Return all messages, those off the path too."""
        found = (await self.store.messages(self.name, every=True)).items
        folded = fold(await self.store.events(self.name, first=10_000))
        assert found == folded.messages
        assert (await self.store.messages(self.name)).items == folded.path
        return found

    async def path(self) -> list[str]:
        await self.messages()
        return [one.id for one in await self.store.messages(self.name)]


def said(*ids: str) -> list[Message]:
    """Return messages with these ids, of user and assistant in turn."""
    return [
        Message(role="assistant" if number % 2 else "user", content=name, id=name) for number, name in enumerate(ids)
    ]


class VocabularyConformance(StoreConformance):
    """The fixtures of the classes below."""

    @pytest.fixture
    def outbox(self) -> Outbox:
        """Return an empty outbox."""
        return Outbox()

    @pytest.fixture
    def chat(self, store: DestinationStore, outbox: Outbox) -> CheckedConversation:
        """Return a conversation of the outbox."""
        return CheckedConversation(store, outbox)


class ConversationConformance(VocabularyConformance):
    """Title, annotate, archive, delete and rewind conversations."""

    async def test_titles_may_be_of_any_length_and_of_any_script(self, chat: CheckedConversation) -> None:
        await chat.say(ConversationStarted(owner_id="42", title="first"), ConversationStarted(title="second"))
        assert (await chat.conversation()).title == "first"
        for title in ("", "Ё 🦔 𝄞 👩‍👩‍👧", "long " * 20_000):
            await chat.say(ConversationRenamed(title=title))
            assert (await chat.conversation()).title == title

    async def test_annotations_merge_and_none_removes(self, chat: CheckedConversation) -> None:
        await chat.say(ConversationAnnotated(metadata={"a": 1, "b": {"x": 1}, "🦔": [None]}))
        await chat.say(ConversationAnnotated(metadata={"b": {"y": 2}, "a": None, "absent": None}))

        assert (await chat.conversation()).metadata == {"b": {"y": 2}, "🦔": [None]}

    async def test_archived_and_restored(self, chat: CheckedConversation) -> None:
        await chat.say(ConversationStarted(owner_id="42"), *said("1"))
        await chat.say(ConversationArchived(reason="old"))

        assert (await chat.conversation()).state == "archived"
        assert await chat.path() == ["1"]
        assert not await chat.store.conversations(owner="42")
        assert [one.conversation_id for one in await chat.store.conversations(owner="42", states=["archived"])] == [
            "c1"
        ]

        await chat.say(ConversationRestored())
        assert (await chat.conversation()).state == "active"
        assert len(await chat.store.conversations(owner="42")) == 1

    async def test_a_deletion_erases_the_content_and_is_final(self, chat: CheckedConversation) -> None:
        await chat.say(
            ConversationStarted(owner_id="42", title="secret plan"), ConversationAnnotated(metadata={"k": "v"})
        )
        await chat.say(Message.user("a secret", id="1", tokens=3), ReactionAdded(message_id="1", key="👍", actor="42"))
        await chat.say(ConversationDeleted(reason="asked to"))

        found = await chat.conversation()
        assert (found.state, found.title, found.metadata, found.message_count) == ("deleted", None, {}, 0)
        assert (found.owner_id, found.number, found.tokens) == ("42", 1, 3)
        assert await chat.path() == []
        await chat.say(Message.user("late secret", id="2"), ConversationRestored(), ConversationRenamed(title="secret"))
        found = await chat.conversation()
        assert (found.state, found.title, found.message_count) == ("deleted", None, 0)
        whole = [(event.type, event.data, event.metadata) for event in await chat.store.events("c1")]
        assert "secret" not in repr(whole)
        assert "asked to" in repr(whole)

    async def test_rewound_takes_the_later_ones_off_the_path(self, chat: CheckedConversation) -> None:
        await chat.say(*said("1", "2", "3", "4"))
        await chat.say(ConversationRewound(to_message_id="2"))
        assert await chat.path() == ["1", "2"]
        await chat.say(*said("5"), ConversationRewound(to_message_id="4"), ConversationRewound(to_message_id="nowhere"))
        assert await chat.path() == ["1", "2", "5"]
        assert (await chat.conversation()).message_count == 3
        await chat.say(ConversationRewound())
        assert await chat.path() == []
        await chat.say(*said("6"))
        assert await chat.path() == ["6"]
        assert [one.on_path for one in await chat.messages()] == [False] * 5 + [True]
        assert (await chat.conversation()).message_count == 1

    async def test_tags_are_added_and_removed(self, chat: CheckedConversation) -> None:
        await chat.say(*said("1"), ConversationTagged(add=("vip", "pinned")), ConversationTagged(remove=("vip",)))
        assert (await chat.conversation()).tags == ("pinned",)

    async def test_trimmed_takes_the_content_up_to_a_version(self, chat: CheckedConversation) -> None:
        await chat.say(ConversationStarted(owner_id="42", title="title"), *said("1", "2", "3"))
        await chat.say(ConversationTrimmed(upto=3, rule="default"))
        assert [(message.id, message.redacted) for message in await chat.messages()] == [
            ("1", True),
            ("2", True),
            ("3", False),
        ]
        found = await chat.conversation()
        assert (found.title, found.message_count) == ("title", 3)

    async def test_custom_events_are_carried_and_change_nothing(self, chat: CheckedConversation) -> None:
        await chat.say(*said("1"), CustomEvent(name="paid", data={"message_id": "1", "state": "deleted"}))
        await chat.say(Event(type="weather.changed", data={"message_id": "1"}, schema_version=9))

        found = await chat.conversation()
        assert (found.version, found.state, found.message_count) == (3, "active", 1)
        assert [event.type for event in await chat.store.events("c1")][1:] == ["custom.paid", "weather.changed"]


class MessageConformance(VocabularyConformance):
    """Edit, send, redact and react to messages."""

    async def test_edited_sent_and_failed(self, chat: CheckedConversation) -> None:
        await chat.say(*said("1", "2"))
        await chat.say(MessageEdited(message_id="2", content="better"), MessageEdited(message_id="absent", content="x"))
        await chat.say(MessageFailed(message_id="2", reason="flood"))
        edited = (await chat.messages())[1]
        assert (edited.text, edited.edited, edited.delivery) == ("better", True, Delivery.FAILED)
        assert edited.delivery_data == {"reason": "flood"}

        await chat.say(
            MessageSent(message_id="2", platform_ids={"telegram": [7, 8]}, sent_as="file", file_path="/r/1.txt")
        )
        sent = (await chat.messages())[1]
        assert sent.delivery is Delivery.SENT
        assert sent.delivery_data == {"platform_ids": {"telegram": [7, 8]}, "sent_as": "file", "file_path": "/r/1.txt"}

    async def test_a_redaction_is_final(self, chat: CheckedConversation) -> None:
        await chat.say(Message.assistant("a secret", id="1", tokens=5, metadata={"m": "secret"}))
        await chat.say(MessageEdited(message_id="1", content="another secret"), ReactionAdded(message_id="1", key="👍"))
        await chat.say(MessageSent(message_id="1", platform_ids={"telegram": 7}, file_path="/secret.txt"))
        await chat.say(MessageRedacted(message_id="1", by="42", reason="asked"))
        await chat.say(MessageEdited(message_id="1", content="secret again"))

        (found,) = await chat.messages()
        assert (found.text, found.redacted, found.edited, found.on_path) == ("", True, False, True)
        assert (found.message.tokens, found.role, found.reactions) == (5, "assistant", (Reaction(key="👍"),))
        assert found.delivery_data == {"platform_ids": {"telegram": 7}}
        events = await chat.store.events("c1")
        assert "secret" not in repr([(event.data, event.metadata) for event in events])
        assert [event.digest is None for event in events] == [True, True, False, True, False, True]

    async def test_an_interrupted_reply_says_so(self, chat: CheckedConversation) -> None:
        await chat.say(Message.assistant("half a", id="1", status="interrupted"), *said("2"))

        assert [one.interrupted for one in await chat.messages()] == [True, False]

    async def test_reactions_are_one_a_key_and_actor(self, chat: CheckedConversation) -> None:
        await chat.say(*said("1", "2"))
        await chat.say(
            ReactionAdded(message_id="1", key="👍", actor="a"),
            ReactionAdded(message_id="1", key="rating", actor="a", value=2),
            ReactionAdded(message_id="1", key="👍", actor="b"),
            ReactionAdded(message_id="1", key="👍"),
            ReactionAdded(message_id="absent", key="👍"),
        )
        await chat.say(
            ReactionAdded(message_id="1", key="rating", actor="a", value=4.5),
            ReactionAdded(message_id="1", key="👍", actor="a"),
            ReactionRemoved(message_id="1", key="👍", actor="b"),
            ReactionRemoved(message_id="1", key="🦔", actor="b"),
        )

        first, second = await chat.messages()
        assert first.reactions == (
            Reaction(key="👍", actor="a"),
            Reaction(key="rating", actor="a", value=4.5),
            Reaction(key="👍"),
        )
        assert second.reactions == ()


class OwnerConformance(VocabularyConformance):
    """Number the conversations of an owner, and mark the active one."""

    def activated(self, order: int | None = None) -> Event:
        event = Event.of(ConversationActivated(), conversation_id="any")
        return event if order is None else replace(event, metadata={ACTIVATION_ORDER_KEY: order})

    def start(self, outbox: Outbox, *names: str) -> None:
        for name in names:
            outbox.append(name, ConversationStarted(owner_id="42"))

    async def active(self, store: DestinationStore) -> str | None:
        found = await store.active("42")
        for one in await store.conversations(owner="42", states=["active", "archived", "deleted"]):
            assert one.active == (found is not None and one.conversation_id == found.conversation_id)
        return None if found is None else found.conversation_id

    async def test_numbers_are_given_once_and_never_again(self, store: DestinationStore, outbox: Outbox) -> None:
        for name in ("a", "b"):
            outbox.append(name, ConversationStarted(owner_id="42"))
            await outbox.deliver(store)
        outbox.append("a", ConversationDeleted())
        outbox.append("b", ConversationDeleted())
        await outbox.deliver(store)
        outbox.append("c", ConversationStarted(owner_id="42"))
        outbox.append("d", Message.user("whose?"))
        outbox.append("e", ConversationStarted(owner_id="7"))
        await outbox.deliver(store)
        outbox.append("d", ConversationStarted(owner_id="42"))
        await outbox.deliver(store)

        numbers = {}
        for name in "abcde":
            found = await store.conversation(name)
            assert found is not None
            numbers[name] = found.number
        assert numbers == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 1}

    async def test_numbers_hold_between_concurrent_outboxes(self, store: DestinationStore) -> None:
        """Two outboxes begin and delete conversations of an owner at once; each number is used exactly once."""
        outboxes = [Outbox("a.db"), Outbox("b.db")]

        async def work(outbox: Outbox) -> None:
            for number in range(15):
                name = f"{outbox.origin.name}-{number}"
                outbox.append(name, ConversationStarted(owner_id="42"), self.activated(number))
                if number % 3 == 2:
                    outbox.append(f"{outbox.origin.name}-{number - 1}", ConversationDeleted())
                while outbox.pending():
                    try:
                        await outbox.deliver(store)
                    except StoreFault as fault:  # as the relay does
                        if fault.fault_class is not FaultClass.CONFLICT:
                            raise

        await asyncio.gather(*(work(outbox) for outbox in outboxes))

        listed = await store.conversations(owner="42", states=["active", "archived", "deleted"])
        assert sorted(one.number or 0 for one in listed) == list(range(1, 31))
        assert sum(one.state == "deleted" for one in listed) == 10
        marked = [one for one in listed if one.active]
        assert [one.state for one in marked] == ["active"]
        await assert_no_gaps(store)

    async def test_the_last_activation_of_an_outbox_wins_in_any_order(
        self, store: DestinationStore, outbox: Outbox
    ) -> None:
        self.start(outbox, "a", "b", "c")
        await outbox.deliver(store)
        assert await self.active(store) is None
        outbox.append("b", self.activated(5))
        await outbox.deliver(store)
        outbox.append("a", self.activated(3))
        await outbox.deliver(store)
        assert await self.active(store) == "b"
        outbox.append("c", self.activated(8))
        await outbox.deliver(store)
        assert await self.active(store) == "c"
        other = Outbox("other.db")
        other.append("a", self.activated(1))
        await other.deliver(store)
        assert await self.active(store) == "a"

    async def test_an_activation_restores_and_a_restored_one_is_not_active(
        self, store: DestinationStore, outbox: Outbox
    ) -> None:
        self.start(outbox, "a")
        outbox.append("a", self.activated(1), ConversationArchived())
        await outbox.deliver(store)
        assert await self.active(store) is None
        outbox.append("a", ConversationRestored())
        await outbox.deliver(store)
        assert await self.active(store) is None
        outbox.append("a", ConversationArchived(), self.activated(2))
        await outbox.deliver(store)
        assert await self.active(store) == "a"

    @pytest.mark.parametrize("leaving", [ConversationDeleted(), ConversationArchived()])
    @pytest.mark.parametrize("together", [True, False])
    async def test_the_newest_conversation_becomes_active_when_the_active_one_leaves(
        self, store: DestinationStore, outbox: Outbox, leaving: Any, together: bool
    ) -> None:
        self.start(outbox, "a", "b", "c", "gone")
        outbox.append("c", self.activated(1))
        outbox.append("gone", ConversationDeleted())
        await outbox.deliver(store)
        outbox.append("a", Message.user("newest"))
        if not together:
            await outbox.deliver(store)
        outbox.append("c", leaving)
        await outbox.deliver(store)
        assert await self.active(store) == "a"
        for name, next_ in (("a", "b"), ("b", None)):
            outbox.append(name, leaving)
            await outbox.deliver(store)
            assert await self.active(store) == next_

    @pytest.mark.parametrize("together", [True, False])
    async def test_which_one_becomes_active_does_not_depend_on_when_it_is_delivered(
        self, store: DestinationStore, outbox: Outbox, together: bool
    ) -> None:
        """Activity after an archive or a deletion does not count, and neither does that a successor has left since."""
        self.start(outbox, "a", "b", "c", "d")
        steps: list[tuple[str, Any]] = [
            ("d", self.activated(1)),
            ("b", Message.user("newest")),
            ("d", ConversationArchived()),
            ("a", Message.user("too late")),
            ("c", Message.user("the newest now")),
            ("b", ConversationDeleted()),
            ("a", Message.user("too late again")),
        ]
        for name, what in steps:
            outbox.append(name, what)
            if not together:
                await outbox.deliver(store)
        await outbox.deliver(store)

        assert await self.active(store) == "c"

    async def test_deleting_another_conversation_keeps_the_active_one(
        self, store: DestinationStore, outbox: Outbox
    ) -> None:
        self.start(outbox, "a", "b")
        outbox.append("a", self.activated(1))
        outbox.append("b", Message.user("newer"))
        await outbox.deliver(store)
        outbox.append("b", ConversationDeleted())
        await outbox.deliver(store)

        assert await self.active(store) == "a"

    async def test_a_conversation_without_an_owner_is_never_active(
        self, store: DestinationStore, outbox: Outbox
    ) -> None:
        outbox.append("a", Message.user("hi"), self.activated(1), ConversationArchived(), self.activated(2))
        await outbox.deliver(store)

        found = await store.conversation("a")
        assert found is not None
        assert (found.number, found.active, found.state) == (None, False, "active")
