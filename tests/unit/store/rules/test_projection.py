"""What comes for a message after its redaction is projected without content."""

from __future__ import annotations

import pytest

from letopis.store import Event, Message, MessageEdited, MessageRedacted, MessageSent
from letopis.store.model.codec import encode
from letopis.store.model.event_types import Body, MessageFailed
from letopis.store.model.events import NO_UPCASTERS
from letopis.store.rules.apply_plan import SequencedEvent
from letopis.store.rules.decoding import decode_events
from letopis.store.rules.projection import project_events
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow


@pytest.mark.parametrize(
    ("late", "kept"),
    [
        (MessageEdited(message_id="m", content="late"), False),
        (MessageSent(message_id="m", file_path="late"), False),
        (MessageFailed(message_id="m", reason="late"), False),
        (MessageEdited(message_id="other", content="late"), True),
        (Message.user("late", id="m"), True),  # a new message, which happens to have the id
    ],
)
def test_what_comes_after_a_redaction_is_stripped(late: Message | Body, kept: bool) -> None:
    bodies = [Message.user("tea", id="m"), Message.user("tea", id="other"), MessageRedacted(message_id="m"), late]
    events = [encode(Event.of(body, conversation_id="c"), conversation_id="c") for body in bodies]
    state = ConversationState(created_at=0, updated_at=0)
    row = ConversationRow(partition=0, conversation_id="c", conversation=state)
    decoded = decode_events([SequencedEvent(number, event) for number, event in enumerate(events, 1)], NO_UPCASTERS)

    assert ("late" in project_events(row, decoded).events[-1].data) is kept
