"""What the store keeps of conversations and messages is what folding its own log gives."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from letopis.store import (
    ConversationAnnotated,
    ConversationRenamed,
    ConversationStarted,
    ConversationStore,
    Event,
    Message,
    MessageEdited,
    MessageFailed,
    MessageSent,
    ReactionAdded,
    Text,
)
from letopis.store.fold import fold
from letopis.store.messages import Content
from tests.conformance.outboxes import Outbox, assert_no_gaps

CONVERSATIONS = ("a", "b", "A")
IDS = tuple(f"m-{number}" for number in range(6))


def random_event(chance: random.Random, number: int) -> Event:
    """Any event, also of messages that are not there, said twice under one id, and at times that step back."""
    message_id = chance.choice(IDS)
    match chance.randrange(10):
        case 0:
            what: object = ConversationStarted(
                owner_id=chance.choice([None, "1", "2"]), title=chance.choice([None, "t"])
            )
        case 1:
            what = ConversationRenamed(title=f"title {number}")
        case 2 | 3:
            content: Content = f"edit {number}" if chance.random() < 0.5 else (Text("part"),)
            what = MessageEdited(message_id=message_id, content=content)
        case 4:
            what = MessageSent(message_id=message_id, platform_ids={"n": number})
        case 5:
            what = MessageFailed(message_id=message_id, reason=chance.choice([None, "blocked"]))
        case 6:
            what = Event(type=chance.choice(["custom.x", "weather.changed"]), data={"message_id": message_id})
        case _:
            message = Message(
                role=chance.choice(["user", "assistant", "tool", "system"]),
                content=f"message {number}",
                id=message_id,
                tokens=chance.choice([None, 0, 5]),
                metadata=chance.choice([{}, {"n": number}]),
            )
            # A new event id: the same message id may be said again by a caller that makes its own events.
            what = Event(type="message.appended", data=message.to_data())
    event = Event.of(what, conversation_id="any")  # type: ignore[arg-type]
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=chance.randrange(-1000, 1000))
    return replace(event, occurred_at=moment)


@pytest.mark.parametrize("seed", range(4))
async def test_the_projection_is_the_fold(store: ConversationStore, seed: int) -> None:
    chance = random.Random(seed)
    outboxes = [Outbox(), Outbox()]
    number = 0
    for _ in range(30):
        outbox = chance.choice(outboxes)
        for _ in range(chance.randrange(1, 9)):
            number += 1
            outbox.append(chance.choice(CONVERSATIONS), random_event(chance, number))
        await outbox.deliver(store)
        if chance.random() < 0.3:  # again, as after a lost ack
            outbox.delivered = {name: chance.randrange(head + 1) for name, head in outbox.delivered.items()}

    for conversation_id in CONVERSATIONS:
        page = await store.events(conversation_id, limit=10_000)
        folded = fold(page)
        conversation = await store.conversation(conversation_id)
        assert folded.conversation is not None and conversation is not None
        assert replace(conversation, number=None) == folded.conversation
        assert (conversation.number is None) == (conversation.owner_id is None)
        assert (await store.messages(conversation_id)).items == folded.messages
        assert (await store.messages(conversation_id, last=5)).items == folded.messages[-5:]
    await assert_no_gaps(store)


async def test_what_adds_up_to_more_than_a_statement_may_hold_stays_in_the_log_alone(store: ConversationStore) -> None:
    """MariaDB cuts the connection at 16 MB, which looked like an outage of the store and held everybody up."""
    outbox = Outbox()
    outbox.append("chat", Message.user("words", id="m"))
    for number in range(20):
        outbox.append("chat", ConversationAnnotated(metadata={f"key-{number}": "x" * 1_000_000}))
        outbox.append("chat", ReactionAdded(message_id="m", key=f"{number}", value="y" * 1_000_000))
        await outbox.deliver(store)
    outbox.append("chat", ConversationAnnotated(metadata={"key-0": None, "small": 1}))
    await outbox.deliver(store)

    found = await store.conversation("chat")
    assert found is not None
    assert (found.version, set(found.metadata)) == (42, {"key-1", "key-2", "key-3", "small"})
    (message,) = await store.messages("chat")
    assert [one.key for one in message.reactions] == ["0"]
    assert [one async for one in store.rebuild(check=True) if one.difference_count] == []
