"""What verbs show while they run: the line of progress, and what `history show --follow` prints."""

import io
from datetime import UTC, datetime
from uuid import UUID

import pytest

from letopis.ops.cli.interface.output import before_note, note
from letopis.ops.cli.interface.progress import BYTES, ProgressLine, can_redraw, describe, progress
from letopis.ops.cli.show import Tail
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.messages import Message


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_the_line_says() -> None:
    assert describe("exporting", 1_200, 5_000, "messages", None) == "exporting: 1,200 of 5,000 messages (24 %)"
    assert describe("exporting", 7, None, "messages", None) == "exporting: 7 messages"
    assert describe("a", 40, 100, "events", 66) == "a: 40 of 100 events (40 %), 1 min 6 s left"
    assert describe("importing", 3_100_000, 7_400_000, BYTES, None) == "importing: 3.1 of 7.4 MB (41 %)"
    assert describe("a", 12, 10, "events", None) == "a: 12 of 10 events (100 %)"


def test_the_time_left_is_that_at_the_pace_of_the_stage() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine("a", 100, "events", stream=stream, monotonic=clock)
    for done, passed in ((20, 0), (25, 1), (25, 4), (60, 4), (120, 1)):
        clock.now += passed
        line(done)
    line(70, title="b", total=90)

    shown = [text.split(")")[-1].strip() for text in stream.getvalue().split("\r")[1:]]
    assert shown == ["", "", ", 1 min 15 s left", ", 9 s left", ", 0 s left", ""], "a new stage has a pace of its own"


def test_it_is_drawn_a_few_times_a_second_and_erased() -> None:
    """A shorter line covers the longer one."""
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine("copying", 10, "events", stream=stream, monotonic=clock)
    for done, wait in ((1, 0.1), (2, 0.2), (3, 0)):
        line(done)
        clock.now += wait
    line(5, title="short", total=9)
    line.clear()

    drawn = ("copying: 1 of 10 events (10 %)", "copying: 3 of 10 events (30 %)", "short: 5 of 9 events (55 %)   ")
    assert stream.getvalue() == "\r" + "\r".join((*drawn, " " * 27, ""))


def test_a_note_takes_the_line_away_first(capsys: pytest.CaptureFixture[str]) -> None:
    happened: list[str] = []
    with before_note(lambda: happened.append("cleared")):
        note("line 7: refused")
    note("afterwards")
    assert happened == ["cleared"]
    assert capsys.readouterr().err == "line 7: refused\nafterwards\n"


def test_only_a_terminal_gets_one_unless_it_is_dumb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("copying", 10, unit="events") as report:
        report(5)
    assert capsys.readouterr().err == ""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    for term, drawn in (("xterm", True), ("dumb", False)):
        monkeypatch.setenv("TERM", term)
        assert can_redraw(screen) is drawn


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
