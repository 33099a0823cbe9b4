"""An annotation tells a null that is stored from the removal of a key, in the event as in the program."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from letopis.store import NULL, ConversationAnnotated, Event, InvalidInput
from letopis.store.model.codec import decode, encode


def test_a_null_is_named_beside_the_metadata() -> None:
    body = ConversationAnnotated(metadata={"b": NULL, "a": None, "c": {"x": None}})
    data = {"metadata": {"b": None, "a": None, "c": {"x": None}}, "nulls": ["b"]}

    assert body.to_data() == data
    assert ConversationAnnotated.from_data(data) == body
    assert decode(encode(Event.of(body, conversation_id="c"), conversation_id="c").data) == data


def test_an_annotation_without_one_is_the_event_that_it_always_was() -> None:
    body = ConversationAnnotated(metadata={"a": None, "b": 1})

    assert body.to_data() == {"metadata": {"a": None, "b": 1}}
    assert ConversationAnnotated.from_data(body.to_data()) == body


@pytest.mark.parametrize("nulls", ["b", [1], ["b"], ["absent"], {"a": 1}])
def test_names_of_what_is_no_null_are_refused(nulls: Any) -> None:
    with pytest.raises(InvalidInput, match=r"data\.nulls"):
        ConversationAnnotated.from_data({"metadata": {"a": None, "b": 1}, "nulls": nulls})


def test_null_is_one_value_and_belongs_in_annotations_alone() -> None:
    assert copy.deepcopy(NULL) is pickle.loads(pickle.dumps(NULL)) is NULL  # noqa: S301 - our own bytes
    with pytest.raises(InvalidInput, match=r"data\.metadata\.a\.b: is Null"):
        encode(Event.of(ConversationAnnotated(metadata={"a": {"b": NULL}}), conversation_id="c"), conversation_id="c")
