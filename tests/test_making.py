"""What is made quickly is what its class would have made."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, field
from uuid import UUID

import pytest

from letopis.store.making import quick
from letopis.store.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    number: int
    names: list[str] = field(default_factory=list)
    kind: str = "plain"
    made: str | None = field(default=None, init=False, compare=False)


value = quick(Value)


def test_it_is_of_the_class_equal_to_one_made_by_it_and_as_frozen() -> None:
    made = value(number=1)

    assert type(made) is Value
    assert made == Value(number=1)
    assert repr(made) == repr(Value(number=1))
    assert (made.names, made.kind, made.made) == ([], "plain", None)
    assert value(number=1).names is not made.names
    with pytest.raises(FrozenInstanceError):
        made.number = 2  # type: ignore[misc]
    assert copy.copy(made) == pickle.loads(pickle.dumps(made)) == made  # noqa: S301 - our own bytes


@pytest.mark.parametrize("given", [{}, {"number": 1, "more": 2}, {"number": 1, "made": "now"}])
def test_it_takes_what_the_class_takes_and_no_more(given: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        value(**given)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Value(**given)  # type: ignore[arg-type]


def test_a_class_that_checks_its_fields_is_refused() -> None:
    with pytest.raises(TypeError, match="__post_init__"):
        quick(Message)


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_message_of_words_alone_is_made_as_any_other(role: str) -> None:
    made = getattr(Message, role)("words")

    assert type(made) is Message
    assert isinstance(made.event_id, UUID)
    assert made.event_id.version == 7
    assert made.id == str(made.event_id)
    assert made == Message(role=role, content="words", id=made.id)
    assert getattr(Message, role)("words").id != made.id


def test_a_subclass_of_message_is_made_by_itself() -> None:
    class Own(Message):
        pass

    assert type(Own.user("words")) is Own
