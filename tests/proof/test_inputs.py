"""The bad input's own rules: what is a proper refusal, what counts as kept, and that nothing public is left out."""

from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from uuid import UUID

import pytest

from letopis.store import Closed, FaultClass, InvalidInput, LetopisError, Message, RecordedEvent, StoreFault, Text
from tests.proof.inputs import constructing
from tests.proof.inputs.calls import TABLES, parameters, untried
from tests.proof.inputs.lines import file_of
from tests.proof.inputs.running import fault_of, found_in
from tests.support.values.hostile import sample, values

EVENT = RecordedEvent(
    conversation_id="c",
    event_id=UUID(int=1),
    origin_id=UUID(int=2),
    sequence=1,
    type="custom.x",
    schema_version=1,
    data={"a": [{"b": -0.0, "c": "x"}, 1]},
    metadata={"m": True},
    digest=b"",
    occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("error", "proper"),
    [
        (InvalidInput("field", "must be something else"), True),
        (Closed("the history is closed"), True),
        (TypeError("unsupported operand"), False),
        (ValueError("bad"), False),
        (StoreFault(fault_class=FaultClass.POISON, code="22021", reason="a value was refused"), False),
        (LetopisError(""), False),
        (InvalidInput("field", "holds a\x1b[2J sign"), False),
    ],
)
def test_what_is_a_proper_refusal(error: Exception, proper: bool) -> None:
    assert (fault_of(error) is None) is proper


def test_what_counts_as_kept() -> None:
    kept = ("x", "c", 1, True, -0.0, {"m": True}, [{"b": -0.0, "c": "x"}, 1], None)
    other = ("y", 1.0, 0.0, {"m": 1}, 10**5_000)

    assert [found_in(value, [EVENT]) for value in (*kept, *other)] == [True] * len(kept) + [False] * len(other)


def test_a_part_is_found_as_its_object() -> None:
    data = Message.user([Text("words")]).to_data()
    assert found_in((Text("words"),), [replace(EVENT, data=data)])


def test_nothing_public_is_left_out_without_a_reason() -> None:
    assert untried() == []
    assert constructing.untried() == []
    assert all(parameters(cls, method) is not None for cls, table in TABLES.items() for method in table)


def test_there_are_values_of_every_kind_and_the_same_seed_draws_the_same() -> None:
    assert len(values()) >= 500
    assert len({one.name for one in values()}) == len(values())
    assert [one.name for one in sample(12, Random(7))] == [one.name for one in sample(12, Random(7))]
    assert file_of(Random(7), 50) == file_of(Random(7), 50)
