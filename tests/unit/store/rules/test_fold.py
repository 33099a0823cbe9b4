"""Folding events gives the conversation and its messages, from the beginning or from what was read before."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from letopis.store import Conversation, Delivery, Message, RecordedEvent, Saved, Text, Upcasters
from letopis.store.model import event_types as words
from letopis.store.rules.fold import Fold, Folded, fold
from letopis.store.testing.random_events import Talk

START = datetime(2026, 1, 1, tzinfo=UTC)
ORIGIN = UUID(int=1)


def recorded(number: int, what: words.Body | Message | tuple[str, Mapping[str, Any]], **fields: Any) -> RecordedEvent:
    body = words.MessageAppended(message=what) if isinstance(what, Message) else what
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


def pending(number: int, what: words.Body | Message) -> RecordedEvent:
    return recorded(number, what, version=None, partition=None, position=None, recorded_at=None)


def folded(*what: words.Body | Message | tuple[str, Mapping[str, Any]]) -> Folded:
    return fold(recorded(number, one) for number, one in enumerate(what, start=1))


def conversation(found: Folded) -> Conversation:
    assert found.conversation is not None
    return found.conversation


def test_a_conversation_and_its_messages() -> None:
    message = Message.user("hi", id="m-1", tokens=3)
    found = folded(words.ConversationStarted(owner_id="42", title="Tea"), message, Message.assistant("yes", tokens=4))

    assert found.conversation == Conversation(
        conversation_id="chat-1",
        owner_id="42",
        title="Tea",
        version=3,
        message_count=2,
        tokens=7,
        created_at=START + timedelta(seconds=1),
        updated_at=START + timedelta(seconds=3),
    )
    first = found.messages[0]
    assert (first.message, first.version, first.sequence, first.saved) == (message, 2, 2, Saved.SAVED)
    assert (first.id, first.role, first.content, first.text) == ("m-1", "user", "hi", "hi")
    assert (first.event_id, first.origin_id, first.recorded_at) == (UUID(int=2), ORIGIN, START)
    assert (first.edited, first.delivery, first.delivery_data) == (False, Delivery.APPENDED, {})


def test_an_edit_replaces_the_content_alone() -> None:
    message = Message(role="assistant", content="draft", id="m-1", name="bot", metadata={"k": 1})
    [edited] = folded(message, words.MessageEdited(message_id="m-1", content=(Text("final"),))).messages
    assert edited.message == replace(message, content=(Text("final"),))
    assert (edited.edited, edited.version, edited.text) == (True, 1, "final")


def test_what_is_said_of_a_message_that_is_not_there_changes_no_message() -> None:
    edited, sent = words.MessageEdited(message_id="m-1", content="x"), words.MessageSent(message_id="m-1")
    found = folded(edited, sent, Message.user("later", id="m-1"))
    [message] = found.messages
    assert (message.text, message.edited, message.delivery) == ("later", False, Delivery.APPENDED)
    assert conversation(found).version == 3


def test_pending_events_lie_over_what_was_read() -> None:
    read = folded(words.ConversationStarted(owner_id="42"), Message.user("a", id="m-1", tokens=1))
    running = Fold(conversation(read).with_changes(number=7), read.messages)
    running.apply(pending(3, Message.user("b", id="m-2", tokens=2)), saved=Saved.PENDING)
    running.apply(pending(4, words.MessageEdited(message_id="m-1", content="A")), saved=Saved.BLOCKED)
    running.apply(pending(5, words.MessageSent(message_id="m-2")), saved=Saved.PENDING)
    running.apply(pending(6, words.ConversationRenamed(title="t")), saved=Saved.PENDING)
    found = running.result()

    assert found.conversation == conversation(read).with_changes(
        number=7, title="t", message_count=2, tokens=3, pending=4, updated_at=START + timedelta(seconds=6)
    )
    first, second = found.messages
    assert (first.text, first.version, first.saved, first.edited) == ("A", 2, Saved.BLOCKED, True)
    assert (second.text, second.version, second.saved, second.delivery) == ("b", None, Saved.PENDING, Delivery.SENT)


def test_an_edit_that_is_saved_does_not_save_a_message_that_is_not() -> None:
    running = Fold()
    running.apply(pending(1, Message.user("a", id="m")), saved=Saved.BLOCKED)
    running.apply(recorded(2, words.MessageEdited(message_id="m", content="b")))
    assert running.result().messages[0].saved is Saved.BLOCKED


@pytest.mark.parametrize("cut", range(41))
def test_folding_may_stop_and_go_on_anywhere(cut: int) -> None:
    talk = Talk(cut)
    said = [talk.next("chat-1") for _ in range(40)]
    events = [
        recorded(number, (one.type, one.data), occurred_at=one.occurred_at) for number, one in enumerate(said, start=1)
    ]
    first = fold(events[:cut])
    rest = Fold(first.conversation, first.messages)
    for event in events[cut:]:
        rest.apply(event)

    assert rest.result() == fold(events)


def test_old_events_are_folded_as_if_written_today() -> None:
    event = recorded(1, ("message.appended", {"text": "hi"}), schema_version=0)
    rules = Upcasters(
        {("message.appended", 0): lambda data: {"message_id": "m", "role": "user", "content": data["text"]}}
    )
    assert fold([event]).messages == ()
    assert [message.text for message in fold([event], upcasters=rules).messages] == ["hi"]
