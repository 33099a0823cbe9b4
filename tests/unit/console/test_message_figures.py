"""Figures of messages by day, owner and model, how long answers took, and where in the log a moment is."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.console import figures as message_figures
from letopis.console.figures import DAY_US, LATENCY_EDGES, NOBODY, OTHERS, MessageFigures, Tally
from letopis.console.store_log import Bisection, LoggedRow
from letopis.store.model.events import to_microseconds
from letopis.store.rules.preconditions import SUPERSEDED_KEY

BEGAN = to_microseconds(datetime(2026, 3, 1, 23, 59, 58, tzinfo=UTC))
DAY = BEGAN // DAY_US


def row(name: str, seconds: float, role: str, about: dict[str, str] | None = None, **data: object) -> LoggedRow:
    event = None if about is None else orjson.dumps(about).decode()
    said = orjson.dumps({"role": role, **data}).decode()
    return LoggedRow(name, "message.appended", BEGAN + round(seconds * 1e6), event, said)


def started(name: str, owner: str) -> LoggedRow:
    return LoggedRow(name, "conversation.started", BEGAN, None, orjson.dumps({"owner_id": owner}).decode())


def figures_of(*rows: LoggedRow) -> MessageFigures:
    figures = MessageFigures()
    figures.take(rows)
    return figures


def test_messages_are_counted_by_day_owner_and_model() -> None:
    figures = figures_of(
        started("c1", "ann"),
        row("c1", 0, "user", tokens=3),
        row("c1", 1.5, "assistant", tokens=5),
        row("c2", 3, "user"),
        row("c2", 5, "assistant", metadata={"model": "large"}, tokens=7),
        LoggedRow("c1", "message.edited", BEGAN, None, "{}"),
    )
    days = [(day - DAY, tally.messages, tally.tokens) for day, tally in figures.by_day().items()]

    assert days == [(0, 2, 8), (1, 2, 7)]
    assert [(name, tally.messages) for name, tally in figures.by_owner(limit=9)] == [(NOBODY, 2), ("ann", 2)]
    assert [(name, tally.answers) for name, tally in figures.by_model()] == [(None, 1), ("large", 1)]
    assert figures.total(since=DAY + 1).messages == 2
    assert list(figures.by_day(owner="ann")) == [DAY]
    assert figures.total().mean == pytest.approx((1.5 + 2) / 2)


def test_a_latency_is_that_of_the_first_answer_to_the_last_question() -> None:
    asked = row("c", 0, "user"), row("c", 10, "user"), row("c", 12, "assistant"), row("c", 99, "assistant")
    clock_that_went_back = row("e", 5, "user"), row("e", 4, "assistant")
    total = figures_of(*asked, row("d", 0, "assistant"), *clock_that_went_back).total()
    assert (total.timed, total.mean) == (1, 2.0)


def test_what_is_superseded_costs_and_is_no_message() -> None:
    total = figures_of(
        row("c", 0, "user", tokens=1),
        row("c", 1, "assistant", {SUPERSEDED_KEY: "x"}, tokens=10),
    ).total()
    assert (total.messages, total.questions, total.answers, total.tokens, total.timed) == (1, 1, 0, 11, 0)


def test_a_damaged_row_does_no_harm() -> None:
    for data in ("", "{", "[]", "null", '{"role": 7, "tokens": "many", "metadata": 3}'):
        appended = LoggedRow("c", "message.appended", BEGAN, "{", data)
        assert figures_of(appended, LoggedRow("c", "conversation.started", BEGAN, None, data)).total().messages == 1


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_figures, "MAX_OWNER_DAYS", 2)
    monkeypatch.setattr(message_figures, "MAX_MODELS", 2)
    starts = [started(f"c{number}", f"o{number}") for number in range(5)]
    answers = [row(f"c{number}", 0, "assistant", metadata={"model": f"m{number}"}) for number in range(5)]
    figures = figures_of(*starts, *answers)
    assert dict(figures.by_owner(limit=9))[OTHERS].messages == 3
    assert dict(figures.by_model())[OTHERS].answers == 3


@given(st.lists(st.floats(0.01, 3_600), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 1.0]))
def test_a_quantile_is_right_to_a_quarter(seconds: list[float], share: float) -> None:
    tally = Tally()
    for one in seconds:
        tally.time(one)
    exact = sorted(seconds)[max(0, -(-round(share * len(seconds) * 1_000) // 1_000) - 1)]
    found = tally.quantile(share)
    assert found is not None
    assert exact <= found * 1.0001
    assert found <= max(exact * 1.25, LATENCY_EDGES[0]) * 1.0001


def searched(recorded: Mapping[int, int], moments: Sequence[int], *, low: int, high: int) -> list[int]:
    """Return the positions found, in few steps, each of which asks in order and within the range."""
    search, steps = Bisection(moments, low=low, high=high), 0
    while wanted := search.wanted():
        assert wanted == sorted(set(wanted)) and low < wanted[0] and wanted[-1] <= high
        search.learn({place: recorded[place] for place in wanted if place in recorded})
        steps += 1
    assert steps <= max(0, high - low).bit_length() + 1
    return search.found()


MOMENTS = st.lists(st.integers(-5, 60), min_size=1, max_size=12)


@given(st.lists(st.integers(0, 50), max_size=80), MOMENTS, st.integers(0, 80))
def test_bisection_finds_what_counting_finds(recorded: list[int], moments: list[int], low: int) -> None:
    log = dict(enumerate(sorted(recorded), 1))
    low = min(low, len(log))
    expected = [max(low, sum(one < moment for one in log.values())) for moment in moments]
    assert searched(log, moments, low=low, high=len(log)) == expected


def test_bisection_takes_a_position_that_is_not_there_for_an_earlier_one() -> None:
    assert searched({1: 10, 4: 40}, [35], low=0, high=4) == [3]
    assert searched({}, [5, 6], low=7, high=3) == [3, 3]
