"""Messages that were there before, and leave the path in the delivery that says them again."""

from __future__ import annotations

import pytest

from letopis.store import Message, MessageAppended
from letopis.store.model.codec import EncodedEvent, encode_message
from letopis.store.rules.apply_plan import SequencedEvent
from letopis.store.rules.decoding import DecodedEvent
from letopis.store.rules.preconditions import Conflict
from letopis.store.rules.projection import Projected, conflicts_of_shown
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow

FIRST = 11
"""The version of the first fresh event: ten are stored."""
FRESH = (4, 5, 7)
"""Their sequences. The delivery says a message again as 6."""


def projected(*, cuts: list[tuple[int, int]], left: dict[int, int]) -> Projected:
    row = ConversationRow(partition=0, conversation_id="c", conversation=ConversationState(created_at=0, updated_at=0))
    text = {"delivery_version": None, "role": "user", "state": "appended", "redacted_at": None, "changed": True}
    rows = [
        MessageRow(version=version, message_id=f"{version}", content_version=version, left_at=at, **text)
        for version, at in left.items()
    ]
    return Projected(row=row, first=FIRST, events=[encoded(Message.user("x")) for _ in FRESH], messages=rows, cuts=cuts)


def encoded(message: Message) -> EncodedEvent:
    return encode_message(message, conversation_id="c")


def decoded() -> list[DecodedEvent]:
    message = Message.user("x")
    return [
        DecodedEvent(SequencedEvent(sequence=one, event=encoded(message)), MessageAppended(message=message))
        for one in FRESH
    ]


@pytest.mark.parametrize(
    ("cuts", "left", "conflict"),
    [
        ([], {}, None),
        ([], {3: FIRST}, Conflict(expected=3, actual=FIRST)),  # by sequence 4
        ([], {3: FIRST + 2}, None),  # by sequence 7, after it was said again
        ([], {2: FIRST}, None),
        ([], {3: 9}, Conflict(expected=3, actual=9)),  # before the delivery, by another outbox
        ([(0, FIRST + 1)], {}, Conflict(expected=3, actual=FIRST + 1)),  # not loaded, but counted
        ([(3, FIRST)], {}, None),
        ([(0, FIRST + 2)], {}, None),
        ([(5, FIRST), (0, FIRST + 2)], {}, None),
    ],
)
def test_a_message_that_has_left_before_it_is_said_again_is_in_conflict(
    cuts: list[tuple[int, int]], left: dict[int, int], conflict: Conflict | None
) -> None:
    found = conflicts_of_shown(projected(cuts=cuts, left=left), decoded(), {6: 3})
    assert found == ({} if conflict is None else {6: conflict})
