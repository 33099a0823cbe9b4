"""What `history show --follow` prints: what is new, what has changed, and nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from letopis.outbox.cli.show import Tail
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import Message


def message(number: int, text: str = "") -> RecordedMessage:
    return RecordedMessage(
        conversation_id="c",
        message=Message.user(text or f"m{number}"),
        event_id=UUID(int=number),
        origin_id=UUID(int=0),
        sequence=number,
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def page(*numbers: int) -> list[RecordedMessage]:
    return [message(number) for number in numbers]


def news(tail: Tail, found: list[RecordedMessage], *, from_start: bool = False) -> list[int]:
    return [one.event_id.int for one in tail.news(found, from_start=from_start)]


def tail() -> Tail:
    return Tail(lambda one: one.text)


def test_the_first_look_shows_all_and_later_ones_what_follows() -> None:
    seen = tail()

    assert not seen.started
    assert news(seen, page(3, 4, 5)) == [3, 4, 5]
    assert seen.started
    assert news(seen, page(3, 4, 5)) == []
    assert news(seen, page(5, 6, 7)) == [6, 7]
    assert seen.knows(page(7, 8))
    assert not seen.knows(page(8, 9))


def test_a_message_that_changes_is_shown_again() -> None:
    seen = tail()
    news(seen, page(1, 2, 3))

    assert news(seen, [message(1), message(2, "edited"), message(3)]) == [2]
    assert news(seen, [message(1), message(2, "edited"), message(3)]) == []


def test_older_ones_that_come_into_view_are_not_new() -> None:
    """After an undo, the page reaches further back."""
    seen = tail()
    news(seen, page(3, 4, 5))

    assert news(seen, page(1, 2, 3)) == []
    assert news(seen, page(2, 3, 6)) == [6]


def test_one_that_another_outbox_put_before_a_pending_one_is_new() -> None:
    seen = tail()
    news(seen, page(1, 9))

    assert news(seen, page(1, 2, 9)) == [2]


def test_all_of_a_short_conversation_is_compared() -> None:
    """Before the first one that is known, too: the conversation begins there."""
    seen = tail()
    news(seen, page(9), from_start=True)

    assert news(seen, page(2, 9), from_start=True) == [2]
    assert news(tail_seen_without_start(), page(2, 9), from_start=True) == []


def tail_seen_without_start() -> Tail:
    seen = tail()
    news(seen, page(9), from_start=False)
    return seen


def test_a_page_without_a_known_message_is_all_new() -> None:
    seen = tail()
    news(seen, page(1, 2))

    assert news(seen, page(7, 8)) == [7, 8]
