"""What is accepted comes back equal from the store; what is refused is refused by name, and leaves nothing behind.

Every public call with every hostile value, on each store: ``tests/proof/inputs``.
"""

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
from letopis.store import ConfigurationError, ConversationStore, Event, InvalidInput, LetopisError, Limits, Timeouts
from letopis.store.model.codec import encode
from letopis.store.model.event_types import CustomEvent, MessageAppended
from tests.proof.inputs.corpus import ATTEMPTS, tried
from tests.support.values.places import cases


def test_the_corpus_is_large_and_tries_every_place() -> None:
    found = tuple(cases())

    assert len(found) == len({(case.place, case.name) for case in found}) >= 200
    assert {case.place for case in found} == set(ATTEMPTS)


async def test_hostile_values_are_kept_equal_or_refused_by_name(tmp_path: Path) -> None:
    """Some of them; the proof takes more, on three stores."""
    found = await tried(f"sqlite:///{tmp_path / 'history.db'}", tmp_path, random=Random(1), many=30)

    assert found.count == found.refused + found.figures["accepted"] == 30
    assert not found.problems, "\n".join(found.problems)


SETTINGS: Final = (
    *((Limits, "max_bytes"), (Limits, "max_depth"), (Bounds, "max_events")),
    *((Timeouts, "connect"), (Timeouts, "statement"), (Timeouts, "lock")),
    *((Retention, "keep_last"), (Retention, "keep_for"), (RetryPolicy, "base"), (RetryPolicy, "attempts")),
    *((Rules, "hold"), (Rules, "repeat_interval")),
)


def test_a_setting_that_is_no_number_is_refused_by_name() -> None:
    for make, name in SETTINGS:
        for value in ("5", b"5", [5], math.nan, Decimal("NaN"), True, object(), *([0.0, -1.0] * (make is Timeouts))):
            with pytest.raises(LetopisError, match=name):
                make(**{name: value})  # type: ignore[arg-type]


def test_a_body_of_the_wrong_kind_is_refused_and_no_other_error_comes() -> None:
    bodies: tuple[Callable[[Any], Any], ...] = (
        lambda value: MessageAppended(message=value),
        lambda value: CustomEvent(name="x", data=value),
    )
    for value in (7, None, 1.5, object(), {"a"}, [1], ["abc"]):
        for make in bodies:
            with pytest.raises(InvalidInput):
                encode(Event.of(make(value), conversation_id="c"), conversation_id="c")


def test_an_object_that_is_no_dict_may_lie_inside_another() -> None:
    """It was taken for text with a lone surrogate in it."""
    inside = {"a": MappingProxyType({"b": UserDict(c=1)})}
    assert encode(Event(type="custom.x", data=inside), conversation_id="c").data == '{"a":{"b":{"c":1}}}'


async def test_a_path_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    for path in (7, None, b"x.db", "a\ud800.db", "x" * 256, object()):
        with pytest.raises(ConfigurationError, match=r"path|text|file"):
            async with History(path, store=tmp_path / "history.db"):  # type: ignore[arg-type]
                pass
        with pytest.raises(ConfigurationError, match=r"path|text"):
            ConversationStore(path)  # type: ignore[arg-type]
