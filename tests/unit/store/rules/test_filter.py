"""A filter takes the messages to which everything applies that it names."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from letopis.store import Filter, InvalidInput, Message, RecordedMessage, Text, ToolCall
from letopis.store.rules.filter import check_filter, is_equal_json

CALLS = (Text("wait"), ToolCall(call_id="1", name="weather", arguments={}))


def stored(message: Message) -> RecordedMessage:
    when, origin = datetime(2026, 1, 1, tzinfo=UTC), UUID(int=1)
    return RecordedMessage(
        conversation_id="c", message=message, event_id=origin, origin_id=origin, sequence=1, occurred_at=when, version=1
    )


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (Filter(), True),
        (Filter(roles=["assistant", "tool"]), True),
        (Filter(roles={"user"}), False),
        (Filter(id_prefix="run-7."), True),
        (Filter(id_prefix="7."), False),
        (Filter(parts=["tool_call", "file"]), True),
        (Filter(parts=["file"]), False),
        (Filter(parts=[]), False),
        (Filter(metadata={"agent": "planner", "deep": {"a": [1]}}), True),
        (Filter(metadata={"agent": "planner", "step": True}), False),
        (Filter(metadata={"missing": None}), False),
        (Filter(roles=["assistant"], id_prefix="run-7", parts=["text"], metadata={"step": 1.0}), True),
        (Filter(roles=["assistant"], id_prefix="run-7", parts=["text"], metadata={"step": 2}), False),
    ],
)
def test_filter_takes_what_everything_applies_to(where: Filter, wanted: bool) -> None:
    metadata = {"agent": "planner", "step": 1, "deep": {"a": [1]}}
    message = stored(Message.assistant(CALLS, id="run-7.1", metadata=metadata))
    assert where.matches(message) is wanted
    assert where.of([message]) == [message] * wanted


@pytest.mark.parametrize(
    "wrong",
    [
        *({"roles": "user"}, {"roles": ["nobody"]}, {"metadata": []}, {"metadata": {1: 2}}, {"id_prefix": ""}),
        *({"id_prefix": prefix} for prefix in (1, "a\0", "\ud800")),
        *({"parts": "text"}, {"parts": [""]}, {"parts": [1]}, {"parts": 1}),
    ],
)
def test_filter_refuses_what_is_of_the_wrong_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        Filter(**wrong)
    assert refused.value.field == next(iter(wrong))
    with pytest.raises(InvalidInput, match="must be a Filter, not dict"):
        check_filter(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        *((1, 1.0, True), (1, True, False), (True, True, True), (0, False, False), ("1", 1, False)),
        *(({"a": [1]}, {"a": (1.0,)}, True), ({"a": 1}, {"a": True}, False), ({"a": 1}, {"a": 1, "b": 2}, False)),
        *(([1, 2], [1], False), ([1], [True], False), ("ab", ["a", "b"], False)),
        *((None, None, True), (None, False, False)),
    ],
)
def test_json_values_are_equal_as_json(one: object, other: object, equal: bool) -> None:
    assert is_equal_json(one, other) is equal
    assert is_equal_json(other, one) is equal
