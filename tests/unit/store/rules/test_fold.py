"""Folding events gives the conversation and its messages, from the beginning or from what was read before."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from letopis.store import (
    Conversation,
    ConversationRenamed,
    ConversationStarted,
    Delivery,
    Message,
    MessageEdited,
    MessageFailed,
    MessageSent,
    RecordedEvent,
    Saved,
    Text,
    Upcasters,
)
from letopis.store.model.event_types import Body, MessageAppended
from letopis.store.rules.fold import Fold, Folded, fold
from letopis.store.rules.reducer import MAX_TOKENS

START = datetime(2026, 1, 1, tzinfo=UTC)
ORIGIN = UUID(int=1)


def recorded(number: int, what: Body | Message | tuple[str, Mapping[str, Any]], **fields: Any) -> RecordedEvent:
    body = MessageAppended(message=what) if isinstance(what, Message) else what
    name, data = body if isinstance(body, tuple) else (body.type, body.to_data())
    event = RecordedEvent(
        conversation_id="chat-1",
        event_id=UUID(int=number),
        origin_id=ORIGIN,
        sequence=number,
        type=name,
        schema_version=1,
        data=data,
        metadata={},
        digest=bytes(32),
        occurred_at=START + timedelta(seconds=number),
        version=number,
        partition=0,
        position=number,
        recorded_at=START,
    )
    return replace(event, **fields)


def pending(number: int, what: Body | Message) -> RecordedEvent:
    return recorded(number, what, version=None, partition=None, position=None, recorded_at=None)


def numbered(*what: Body | Message | tuple[str, Mapping[str, Any]]) -> list[RecordedEvent]:
    return [recorded(number, one) for number, one in enumerate(what, start=1)]


def conversation(folded: Folded) -> Conversation:
    assert folded.conversation is not None
    return folded.conversation


def test_nothing_folds_to_nothing() -> None:
    assert fold([]) == Folded(None, ())


def test_a_conversation_and_its_messages() -> None:
    message = Message.user("hi", id="m-1", tokens=3)
    folded = fold(
        numbered(ConversationStarted(owner_id="42", title="Tea"), message, Message.assistant("yes", tokens=4))
    )

    assert folded.conversation == Conversation(
        conversation_id="chat-1",
        owner_id="42",
        title="Tea",
        version=3,
        message_count=2,
        tokens=7,
        created_at=START + timedelta(seconds=1),
        updated_at=START + timedelta(seconds=3),
    )
    first = folded.messages[0]
    assert (first.message, first.version, first.sequence, first.saved) == (message, 2, 2, Saved.SAVED)
    assert (first.id, first.role, first.content, first.text) == ("m-1", "user", "hi", "hi")
    assert (first.event_id, first.origin_id, first.recorded_at) == (UUID(int=2), ORIGIN, START)
    assert (first.edited, first.delivery, first.delivery_data) == (False, Delivery.APPENDED, {})


def test_a_conversation_may_begin_with_anything() -> None:
    folded = fold(numbered(Message.user("hi")))

    assert conversation(folded).owner_id is None
    assert conversation(folded).created_at == START + timedelta(seconds=1)


def test_starting_again_fills_only_what_is_unknown() -> None:
    folded = fold(
        numbered(
            ConversationStarted(title="first"),
            ConversationStarted(owner_id="42", title="second"),
            ConversationStarted(owner_id="7", title="third"),
        )
    )

    assert (conversation(folded).owner_id, conversation(folded).title) == ("42", "first")


def test_a_new_title_replaces_the_old_one_also_by_an_empty_one() -> None:
    events = numbered(ConversationStarted(title="old"), ConversationRenamed(title="new"), ConversationRenamed(title=""))

    assert conversation(fold(events[:2])).title == "new"
    assert conversation(fold(events)).title == ""
    started_late = numbered(ConversationRenamed(title=""), ConversationStarted(title="late"))
    assert conversation(fold(started_late)).title == ""


def test_an_edit_replaces_the_content_alone() -> None:
    message = Message(role="assistant", content="draft", id="m-1", name="bot", metadata={"k": 1})
    folded = fold(numbered(message, MessageEdited(message_id="m-1", content=(Text("final"),))))

    [edited] = folded.messages
    assert edited.message == replace(message, content=(Text("final"),))
    assert (edited.edited, edited.version, edited.text) == (True, 1, "final")
    assert conversation(folded).message_count == 1


def test_the_last_delivery_counts() -> None:
    events = numbered(
        Message.assistant("x", id="m-1"),
        MessageFailed(message_id="m-1", reason="blocked"),
        MessageSent(message_id="m-1", platform_ids={"tg": 1}, sent_as="file", file_path="/a"),
    )

    [failed] = fold(events[:2]).messages
    assert (failed.delivery, failed.delivery_data) == (Delivery.FAILED, {"reason": "blocked"})
    [sent] = fold(events).messages
    assert sent.delivery is Delivery.SENT
    assert sent.delivery_data == {"platform_ids": {"tg": 1}, "sent_as": "file", "file_path": "/a"}


def test_what_is_said_of_a_message_that_is_not_there_changes_no_message() -> None:
    folded = fold(
        numbered(
            MessageEdited(message_id="m-1", content="x"),
            MessageSent(message_id="m-1"),
            Message.user("later", id="m-1"),
        )
    )

    [message] = folded.messages
    assert (message.text, message.edited, message.delivery) == ("later", False, Delivery.APPENDED)
    assert conversation(folded).version == 3


def test_an_id_that_was_said_twice_is_changed_in_both_places() -> None:
    folded = fold(
        numbered(
            Message.user("a", id="m"),
            MessageSent(message_id="m"),
            Message.user("b", id="m"),
            MessageFailed(message_id="m"),
        )
    )

    assert [message.delivery for message in folded.messages] == [Delivery.FAILED, Delivery.FAILED]


def test_what_is_not_understood_moves_the_version_and_nothing_else() -> None:
    events = numbered(
        Message.user("x"), ("weather.changed", {"to": "rain"}), ("custom.x", {}), ("message.appended", {})
    )

    before, after = fold(events[:1]), fold(events)

    assert after.messages == before.messages
    assert after.conversation == replace(conversation(before), version=4, updated_at=START + timedelta(seconds=4))


def test_a_clock_that_steps_back_does_not_move_the_activity_back() -> None:
    events = numbered(Message.user("a"), Message.user("b"))
    events[1] = replace(events[1], occurred_at=START - timedelta(days=1))

    folded = conversation(fold(events))

    assert folded.updated_at == folded.created_at == START + timedelta(seconds=1)


def test_the_sum_of_tokens_stops_at_what_every_store_holds() -> None:
    folded = fold(numbered(*(Message.user("x", tokens=2**62) for _ in range(3))))

    assert conversation(folded).tokens == MAX_TOKENS == 2**63 - 1


def test_pending_events_lie_over_what_was_read() -> None:
    read = fold(numbered(ConversationStarted(owner_id="42"), Message.user("a", id="m-1", tokens=1)))
    running = Fold(conversation(read).with_changes(number=7), read.messages)
    running.apply(pending(3, Message.user("b", id="m-2", tokens=2)), saved=Saved.PENDING)
    running.apply(pending(4, MessageEdited(message_id="m-1", content="A")), saved=Saved.BLOCKED)
    running.apply(pending(5, MessageSent(message_id="m-2")), saved=Saved.PENDING)
    running.apply(pending(6, ConversationRenamed(title="t")), saved=Saved.PENDING)

    folded = running.result()

    assert conversation(folded) == conversation(read).with_changes(
        number=7, title="t", message_count=2, tokens=3, pending=4, updated_at=START + timedelta(seconds=6)
    )
    first, second = folded.messages
    assert (first.text, first.version, first.saved, first.edited) == ("A", 2, Saved.BLOCKED, True)
    assert (second.text, second.version, second.saved, second.delivery) == ("b", None, Saved.PENDING, Delivery.SENT)


def test_an_edit_that_is_saved_does_not_save_a_message_that_is_not() -> None:
    running = Fold()
    running.apply(pending(1, Message.user("a", id="m")), saved=Saved.BLOCKED)
    running.apply(recorded(2, MessageEdited(message_id="m", content="b")))

    assert running.result().messages[0].saved is Saved.BLOCKED


def test_a_fold_that_took_in_nothing_gives_back_what_it_began_with() -> None:
    read = fold(numbered(Message.user("a")))

    assert Fold(read.conversation, read.messages).result() == read


@pytest.mark.parametrize("seed", range(20))
def test_folding_may_stop_and_go_on_anywhere(seed: int) -> None:
    chance = random.Random(seed)
    choices = (
        lambda: Message.user("x", id=f"m-{chance.randrange(4)}", tokens=chance.choice([None, 2])),
        lambda: MessageEdited(message_id=f"m-{chance.randrange(4)}", content=str(chance.random())),
        lambda: MessageSent(message_id=f"m-{chance.randrange(4)}"),
        lambda: ConversationStarted(owner_id=chance.choice([None, "1"]), title=chance.choice([None, "t"])),
        lambda: ConversationRenamed(title=str(chance.random())),
    )
    events = numbered(*(chance.choice(choices)() for _ in range(40)))
    events = [replace(event, occurred_at=START + timedelta(seconds=chance.randrange(100))) for event in events]
    cut = chance.randrange(1, 40)
    first = fold(events[:cut])
    rest = Fold(first.conversation, first.messages)
    for event in events[cut:]:
        rest.apply(event)

    assert rest.result() == fold(events)


def test_old_events_are_folded_as_if_written_today() -> None:
    old = recorded(1, ("message.said", {"text": "hi"}))
    event = replace(old, type="message.appended", schema_version=0)
    rules = Upcasters(
        {("message.appended", 0): lambda data: {"message_id": "m", "role": "user", "content": data["text"]}}
    )

    assert fold([event]).messages == ()
    [message] = fold([event], upcasters=rules).messages
    assert message.text == "hi"
