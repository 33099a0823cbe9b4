"""What is accepted comes back equal from every store; what is refused is refused by name, and leaves nothing behind."""

import math
from collections import UserDict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, Final

import pytest

from letopis.outbox import Bounds, History, Retention, RetryPolicy, Rules
from letopis.store import (
    ConfigurationError,
    ConversationStore,
    Event,
    InvalidInput,
    LetopisError,
    Limits,
    Message,
    Timeouts,
)
from letopis.store.model.codec import encode
from letopis.store.model.event_types import CustomEvent, MessageAppended, MessageEdited, UnknownEvent
from letopis.store.model.parts import UnknownPart
from tests.proof.inputs.corpus import ATTEMPTS, tried
from tests.support.values.places import cases

CASES: Final = tuple(cases())


def test_the_corpus_is_large_and_tries_every_place() -> None:
    assert len(CASES) >= 200
    assert {case.place for case in CASES} == set(ATTEMPTS)
    assert len({(case.place, case.name) for case in CASES}) == len(CASES)


@pytest.mark.slow
async def test_hostile_values_are_kept_equal_or_refused_by_name(store_url: str, tmp_path: Path) -> None:
    found = await tried(store_url, tmp_path, random=Random(1), many=None)

    assert found.count == found.refused + found.figures["accepted"] == len(CASES)
    assert not found.problems, "\n".join(found.problems[:40])


SETTINGS: Final = (
    *((Limits, "max_bytes"), (Limits, "max_depth"), (Bounds, "max_events")),
    *((Timeouts, "connect"), (Timeouts, "statement"), (Timeouts, "lock")),
    *((Retention, "keep_last"), (Retention, "keep_for"), (RetryPolicy, "base"), (RetryPolicy, "attempts")),
    *((Rules, "hold"), (Rules, "repeat_interval")),
)


@pytest.mark.parametrize(("make", "name"), SETTINGS, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_a_setting_that_is_no_number_is_refused_by_name(make: Callable[..., Any], name: str) -> None:
    for value in ("5", b"5", [5], math.nan, Decimal("NaN"), True, object(), *([0.0, -1.0] * (make is Timeouts))):
        with pytest.raises(LetopisError, match=name):
            make(**{name: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda value: MessageEdited(message_id="m", content=value),
        lambda value: MessageAppended(message=value),
        lambda value: CustomEvent(name="x", data=value),
        lambda value: UnknownEvent(name="poll.opened", version=1, data=value, problem="unknown"),
        lambda value: Message.user([UnknownPart(value)]),
    ],
)
def test_a_body_of_the_wrong_kind_is_refused_and_no_other_error_comes(make: Callable[[Any], Any]) -> None:
    for value in (7, None, 1.5, object(), {"a"}, [1], ["abc"]):
        with pytest.raises(InvalidInput):
            encode(Event.of(make(value), conversation_id="c"), conversation_id="c")


def test_an_object_that_is_no_dict_may_lie_inside_another() -> None:
    """It was taken for text with a lone surrogate in it."""
    inside = {"a": MappingProxyType({"b": UserDict(c=1)})}
    assert encode(Event(type="custom.x", data=inside), conversation_id="c").data == '{"a":{"b":{"c":1}}}'


async def test_arguments_of_reads_and_waits_are_refused_by_name(tmp_path: Path) -> None:
    async with (
        ConversationStore.open(tmp_path / "history.db") as store,
        History(tmp_path / "bot.outbox.db", store=store) as history,
    ):
        receipt = await history.append("c", Message.user("words"))
        for value in ("5", [5], math.nan, object()):
            for waits in (history.drained, receipt.saved, receipt.superseded):
                with pytest.raises(InvalidInput, match="timeout"):
                    await waits(timeout=value)  # type: ignore[arg-type]
        assert await receipt.saved(timeout=10**400)
        for states in (5, "active", [["active"]], None, b"active", [object()]):
            for lists in (history.conversations, store.conversations):
                with pytest.raises(InvalidInput, match="states"):
                    await lists(states=states)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="locale"):
            await history.chat("c").transcript(locale=7)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="tz"):
            await history.chat("c").transcript(tz="UTC")  # type: ignore[arg-type]
        for ids in (5, "m", [5], ["\ud800"], [["m"]]):
            with pytest.raises(InvalidInput, match="message_id"):
                await store.outbox_access.path_of("c", ids)  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="conversation_id"):
                await store.lane_heads(history.outbox.origin.origin_id, ids)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="origin_id"):
            await store.lane_heads("x", ["c"])  # type: ignore[arg-type]


async def test_a_path_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    for path in (7, None, b"x.db", "a\ud800.db", "x" * 256, object()):
        with pytest.raises(ConfigurationError, match=r"path|text|file"):
            async with History(path, store=tmp_path / "history.db"):  # type: ignore[arg-type]
                pass
        with pytest.raises(ConfigurationError, match=r"path|text"):
            ConversationStore(path)  # type: ignore[arg-type]
