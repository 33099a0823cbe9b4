"""What `history show --follow` prints: what is new, what has changed, and nothing twice."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

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
    assert [news(seen, page(*numbers)) for numbers in ((3, 4, 5), (5, 6, 7))] == [[], [6, 7]]
    assert seen.knows(page(7, 8)) and not seen.knows(page(8, 9))


def test_a_message_that_changes_is_shown_again() -> None:
    seen, edited = tail(), [message(1), message(2, "edited"), message(3)]
    news(seen, page(1, 2, 3))
    assert [news(seen, edited) for _ in range(2)] == [[2], []]


@pytest.mark.parametrize(
    ("from_start", "pages", "new"),
    [
        (False, [(3, 4, 5), (1, 2, 3), (2, 3, 6)], [[], [6]]),
        (False, [(1, 9), (1, 2, 9)], [[2]]),
        (True, [(9,), (2, 9)], [[2]]),
        (False, [(1, 2), (7, 8)], [[7, 8]]),
    ],
    ids=[
        "older ones that come into view, as after an undo, are not new",
        "one that another outbox put before a pending one is",
        "of a short conversation all is compared, also before the first one known: it begins there",
        "a page without a known message is all new",
    ],
)
def test_what_of_a_later_page_is_new(from_start: bool, pages: list[tuple[int, ...]], new: list[list[int]]) -> None:
    seen = tail()
    news(seen, page(*pages[0]), from_start=from_start)
    assert [news(seen, page(*one), from_start=from_start) for one in pages[1:]] == new


def test_a_page_from_the_start_does_not_tell_of_a_first_one_that_was_not() -> None:
    seen = tail()
    news(seen, page(9), from_start=False)
    assert news(seen, page(2, 9), from_start=True) == []
