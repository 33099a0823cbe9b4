"""The two sinks of the reducer, a fold and a projection of rows, agree on the result of events."""

from random import Random
from uuid import UUID

import pytest

from letopis.store.model import event_types as words
from letopis.store.model.codec import EncodedEvent, decode, encode
from letopis.store.model.events import NO_UPCASTERS, Event, RecordedEvent, from_microseconds
from letopis.store.model.messages import Message
from letopis.store.rules.apply_plan import SequencedEvent
from letopis.store.rules.decoding import decode_events
from letopis.store.rules.fold import Folded, fold
from letopis.store.rules.projection import project_events
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow

CHAT = "chat"
IDS = ("a", "b", "c", "d")


def a_body(random: Random) -> words.Body:
    name = random.choice(IDS)
    parent = {"conversation_id": "parent", "version": 3}
    kinds: tuple[tuple[int, words.Body], ...] = (
        (8, words.MessageAppended(message=Message.user("text", id=name, tokens=random.randrange(5)))),
        (2, words.ConversationRewound(to_message_id=random.choice((*IDS, "inherited")))),
        (1, words.ConversationRewound()),
        (1, words.ConversationRewound(erase=True)),
        (1, words.ConversationStarted(owner_id="42", title="first", forked_from=random.choice((None, parent)))),
        (1, words.ConversationRenamed(title="second")),
        (1, words.ConversationAnnotated(metadata={"k": random.choice((None, 1))})),
        (1, words.ConversationArchived()),
        (3, words.MessageEdited(message_id=name, content="edited")),
        (2, words.MessageSent(message_id=name, platform_ids={"n": 1})),
        (1, words.MessageFailed(message_id=name, reason="full")),
        (2, words.MessageRedacted(message_id=name)),
        (3, words.ReactionAdded(message_id=name, key="+", actor=random.choice((None, "x")))),
        (1, words.ReactionRemoved(message_id=name, key="+")),
    )
    return random.choices([body for _, body in kinds], [weight for weight, _ in kinds])[0]


def projected(
    bodies: list[words.Body], random: Random
) -> tuple[ConversationState[int], list[MessageRow], list[EncodedEvent]]:
    """Project events in parts, each of which is given all rows."""
    state = ConversationState(created_at=0, updated_at=0)
    row = ConversationRow(partition=0, conversation_id=CHAT, conversation=state)
    rows, events, deliveries = list[MessageRow](), list[EncodedEvent](), list[SequencedEvent]()
    for number, body in enumerate(bodies, 1):
        event = Event.of(body, conversation_id=CHAT, occurred_at=from_microseconds(number))
        deliveries.append(SequencedEvent(sequence=number, event=encode(event, conversation_id=CHAT)))
    while deliveries:
        size = random.randint(1, 4)
        result = project_events(row, decode_events(deliveries[:size], NO_UPCASTERS), rows)
        rows += [message for message in result.messages if message.new]
        for message in result.messages:
            message.new = message.changed = False
        events += result.events
        deliveries = deliveries[size:]
    return state, rows, events


def folded(events: list[EncodedEvent]) -> Folded:
    return fold(
        RecordedEvent(
            conversation_id=CHAT,
            event_id=event.event_id,
            origin_id=UUID(int=1),
            sequence=version,
            version=version,
            type=event.type,
            schema_version=event.schema_version,
            data=decode(event.data),
            metadata=decode(event.metadata),
            digest=None if event.redacted else event.digest,
            occurred_at=from_microseconds(event.occurred_at),
        )
        for version, event in enumerate(events, 1)
    )


@pytest.mark.parametrize("seed", range(300))
def test_a_fold_and_the_rows_agree(seed: int) -> None:
    random = Random(seed)
    bodies = [a_body(random) for _ in range(random.randint(1, 25))]
    if seed % 3 == 0:
        bodies.insert(random.randint(0, len(bodies)), words.ConversationDeleted(reason="asked for"))

    state, rows, events = projected(bodies, random)
    found = folded(events)

    conversation = found.conversation
    assert conversation is not None
    for name in ("owner_id", "title", "state", "version", "message_count", "tokens", "metadata", "forked_from"):
        assert getattr(conversation, name) == getattr(state, name), name
    assert (conversation.inherits, conversation.inherited_to) == (state.inherits, state.inherited_to)
    if state.state == "deleted":
        assert found.messages == ()
        assert all(row.left_at is not None and not row.reactions for row in rows)
        return
    assert [message.version for message in found.messages] == [row.version for row in rows]
    assert state.message_count == len(found.path)
    for message, row in zip(found.messages, rows, strict=True):
        assert (message.id, message.delivery.value, message.reactions) == (row.message_id, row.state, row.reactions)
        assert (message.on_path, message.redacted) == (row.left_at is None, row.redacted_at is not None)
        assert message.edited == (row.content_version != row.version)
