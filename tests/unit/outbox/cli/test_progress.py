"""The line of progress: as exact as an estimate is, no faster than eyes are, and gone at the end."""

import io

import pytest

from letopis.outbox.cli.interface.output import before_note, note
from letopis.outbox.cli.interface.progress import BYTES, Pace, ProgressLine, can_redraw, describe, progress, rounded


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(*samples: tuple[float, int]) -> Pace:
    pace = Pace()
    for now, done in samples:
        pace.add(now, done)
    return pace


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "1 s"), (8.4, "8 s"), (12, "10 s"), (43, "45 s")),
        *((58, "1 min"), (130, "2 min"), (3_590, "1 h"), (7_800, "2 h 10 min")),
    ],
)
def test_the_rest_is_rounded(seconds: float, text: str) -> None:
    assert rounded(seconds) == text


def test_the_time_left_is_that_of_the_last_half_minute() -> None:
    assert paced((0, 0)).seconds_left(100) is None
    assert paced((0, 0), (1, 10)).seconds_left(100) is None, "too early to tell"
    assert paced((0, 0), (4, 40)).seconds_left(100) == 6.0
    slow_start = paced((0, 0), (60, 1), (70, 11), (90, 31))
    assert slow_start.seconds_left(61) == pytest.approx(30.0)
    assert paced((0, 5), (10, 5)).seconds_left(100) is None, "nothing moves"
    assert paced((0, 0), (4, 40)).seconds_left(30) == 0


def test_what_the_line_says() -> None:
    assert describe("exporting", 1_200, 5_000, "messages", Pace()) == "exporting: 1,200 of 5,000 messages (24 %)"
    assert describe("exporting", 7, None, "messages", Pace()) == "exporting: 7 messages"
    assert describe("a", 40, 100, "events", paced((0, 0), (4, 40))) == "a: 40 of 100 events (40 %), 6 s left"
    assert describe("a", 40, None, "events", paced((0, 0), (4, 40))) == "a: 40 events, 10 per second"
    assert describe("importing", 3_100_000, 7_400_000, BYTES, Pace()) == "importing: 3.1 of 7.4 MB (41 %)"
    assert describe("a", 12, 10, "events", Pace()) == "a: 12 of 10 events (100 %)"


def test_it_is_drawn_a_few_times_a_second_and_erased() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine("copying", 10, "events", stream=stream, monotonic=clock)
    for done, wait in ((1, 0.1), (2, 0.2), (3, 0)):
        line(done)
        clock.now += wait
    line.clear()

    assert stream.getvalue() == ("\rcopying: 1 of 10 events (10 %)\rcopying: 3 of 10 events (30 %)\r" + " " * 30 + "\r")


def test_a_shorter_line_covers_the_longer_one() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine("a long title", 10, "events", stream=stream, monotonic=clock)

    line(1)
    line(5, title="short", total=9)

    first, second = stream.getvalue().split("\r")[1:]
    assert second.rstrip() == "short: 5 of 9 events (55 %)"
    assert len(second) == len(first)


def test_a_note_takes_the_line_away_first(capsys: pytest.CaptureFixture[str]) -> None:
    happened: list[str] = []
    with before_note(lambda: happened.append("cleared")):
        note("line 7: refused")
    note("afterwards")
    assert happened == ["cleared"]
    assert capsys.readouterr().err == "line 7: refused\nafterwards\n"


def test_without_a_terminal_there_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("copying", 10, unit="events") as report:
        report(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("term", "drawn"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_gets_none(monkeypatch: pytest.MonkeyPatch, term: str, drawn: bool) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setenv("TERM", term)
    assert can_redraw(screen) is drawn
