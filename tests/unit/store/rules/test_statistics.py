"""Counts add up by role and label, and erased messages are told apart by what was appended before."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from letopis.store import InvalidInput
from letopis.store.rules import statistics
from letopis.store.rules.statistics import Erasures, Period, StatisticsBuilder


def said(role: str, label: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": role, **more, **({} if label is None else {"metadata": {"model": label}})}


def test_statistics_count_roles_and_tokens_and_of_what_was_superseded_the_tokens_alone() -> None:
    counting = StatisticsBuilder()
    for data in (said("user", tokens=3), said("assistant", tokens=5), said("system"), said("user", tokens="many")):
        counting.take(data)
    counting.take(said("user", tokens=7), superseded=True)
    counting.add(questions=10, answers=20, messages=40, tokens=100)
    counting.conversations = 2
    found = counting.result(complete=False)

    assert (found.questions, found.answers, found.messages, found.tokens) == (12, 21, 44, 115)
    assert (found.conversations, found.complete, dict(found.by)) == (2, False, {})


def test_statistics_groups_have_the_most_messages_first_then_by_name_and_the_nameless_last() -> None:
    counting = StatisticsBuilder("model")
    for label in ("b", None, "a", "c", "c", {"z": 1, "a": 2}):
        counting.take(said("user", label))
    counting.take({"role": "user", "metadata": "no object"})
    counting.take({"role": "user", "metadata": {"model": None, "other": "x"}}, superseded=True)
    found = counting.result()
    counts = [(label, figures.messages) for label, figures in found.by.items()]
    assert counts == [("c", 2), (None, 2), ("a", 1), ("b", 1), ('{"a":2,"z":1}', 1)]


def test_statistics_refuse_more_groups_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_GROUPS", 2)
    counting = StatisticsBuilder("model")
    for label in ("a", "b", "a"):
        counting.take(said("user", label))
    with pytest.raises(InvalidInput, match="more than 2 values"):
        counting.take(said("user", "c"))


def test_erasures_are_of_what_was_appended_before() -> None:
    erasures = Erasures({"one": {None: 5, "m": 9}, "two": {"m": 3}})
    assert [erasures.of("one", "m", sequence) for sequence in (8, 9)] == [True, False]
    assert [erasures.of("one", "other", sequence) for sequence in (4, 5)] == [True, False]
    assert [erasures.of("two", name) for name in ("m", "other")] == [True, False]
    assert not erasures.of("three", "m")


def test_period_is_in_microseconds_and_refuses_what_is_no_moment_or_key() -> None:
    since = datetime(2026, 1, 1, 3, tzinfo=timezone(timedelta(hours=3)))
    period = Period.of(owner="7", since=since, until=None, by="model")
    assert period == Period(owner="7", since=int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**6, by="model")
    for wrong in ({"since": datetime(2026, 1, 1)}, {"until": datetime(2026, 1, 1)}, {"by": ""}, {"by": 7}):  # noqa: DTZ001
        with pytest.raises(InvalidInput) as refused:
            Period.of(**{"owner": None, "since": None, "until": None, "by": None, **wrong})  # type: ignore[arg-type]
        assert refused.value.field == next(iter(wrong))
