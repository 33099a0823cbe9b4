"""Events say what happened in types that every release can read, also those of other releases."""

import copy
import pickle
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from letopis.store import NULL, CustomEvent, Event, InvalidInput, Message, RecordedEvent, Text, UnknownEvent, Upcasters
from letopis.store.model import event_types as words
from letopis.store.model.codec import decode, encode
from letopis.store.model.event_types import VOCABULARY, parse, read
from letopis.store.model.events import check_type, from_microseconds, to_microseconds
from letopis.store.model.identifiers import derived_event_id

# Whose data are their fields.
FIELDS: tuple[tuple[type[Any], dict[str, Any]], ...] = (
    (words.ConversationStarted, {}),
    (words.ConversationStarted, {"owner_id": "42", "title": "Tea"}),
    (words.ConversationStarted, {"forked_from": {"conversation_id": "a", "version": 3}}),
    (words.ConversationRenamed, {"title": ""}),
    (words.ConversationAnnotated, {"metadata": {"a": None, "b": 1}}),
    (words.ConversationTagged, {"add": ["vip"], "remove": ["trial"]}),
    (words.ConversationTrimmed, {"upto": 3, "rule": "default"}),
    (words.ConversationActivated, {}),
    (words.ConversationArchived, {"reason": "old"}),
    (words.ConversationRestored, {}),
    (words.ConversationRewound, {"to_message_id": "m"}),
    (words.ConversationRewound, {}),
    (words.ConversationDeleted, {}),
    (words.MessageSent, {"message_id": "m", "platform_ids": {"tg": 1}, "sent_as": "file", "file_path": "/a"}),
    (words.MessageFailed, {"message_id": "m"}),
    (words.MessageEdited, {"message_id": "m", "content": "y"}),
    (words.MessageRedacted, {"message_id": "m", "by": "1"}),
    (words.ReactionAdded, {"message_id": "m", "key": "👍"}),
    (words.ReactionRemoved, {"message_id": "m", "key": "👍", "actor": "1"}),
    (words.EventSkipped, {"skipped_event_id": "e", "skipped_type": "t", "digest": "d", "reason": "r"}),
)
BODIES: tuple[tuple[words.Body, dict[str, Any]], ...] = (
    *((kind(**fields), fields) for kind, fields in FIELDS),
    (words.MessageAppended(message=Message.user("x", id="m")), {"message_id": "m", "role": "user", "content": "x"}),
    (
        words.ConversationAnnotated(metadata={"b": NULL, "a": None, "c": {"x": None}}),
        {"metadata": {"b": None, "a": None, "c": {"x": None}}, "nulls": ["b"]},
    ),
    (
        words.MessageEdited(message_id="m", content=(Text("y"),), reason="typo"),
        {"message_id": "m", "content": [{"type": "text", "text": "y"}], "reason": "typo"},
    ),
    (CustomEvent(name="paid.twice", data={"type": "x", "name": 1}), {"type": "x", "name": 1}),
)


@pytest.mark.parametrize(("body", "data"), BODIES)
def test_a_body_is_one_json_object(body: words.Body, data: dict[str, Any]) -> None:
    assert body.to_data() == data
    assert parse(body.type, body.schema_version, data) == body
    assert decode(encode(Event.of(body, conversation_id="c"), conversation_id="c").data) == data


def test_every_word_is_tried_above() -> None:
    assert {type(body) for body, _ in BODIES} == {*VOCABULARY.values(), CustomEvent}


def test_keys_of_tomorrow_are_left_aside() -> None:
    assert parse("conversation.renamed", 1, {"title": "x", "by": "42"}) == words.ConversationRenamed(title="x")


@pytest.mark.parametrize(
    ("type_name", "data", "field"),
    [
        ("conversation.renamed", {}, "data.title"),
        ("conversation.renamed", {"title": 5}, "data.title"),
        ("conversation.renamed", {"title": None}, "data.title"),
        ("conversation.started", {"owner_id": 42}, "data.owner_id"),
        ("conversation.started", {"forked_from": []}, "data.forked_from"),
        ("conversation.annotated", {"metadata": 5}, "data.metadata"),
        *(
            ("conversation.annotated", {"metadata": {"a": None, "b": 1}, "nulls": nulls}, "data.nulls")
            for nulls in ("b", [1], ["b"], ["absent"], {"a": 1})
        ),
        ("message.sent", {}, "data.message_id"),
        ("message.sent", {"message_id": "m", "platform_ids": [1]}, "data.platform_ids"),
        ("message.edited", {"message_id": "m"}, "data.content"),
        ("message.edited", {"message_id": 5, "content": "x"}, "data.message_id"),
        ("message.edited", {"message_id": "m", "content": 5}, "content"),
        ("message.edited", {"message_id": "m", "content": "x", "reason": 5}, "data.reason"),
        ("message.appended", {"role": "user", "content": "x"}, "data.message_id"),
        ("reaction.added", {"message_id": "m"}, "data.key"),
    ],
)
def test_data_that_does_not_fit_is_refused_strictly_and_shown_leniently(
    type_name: str, data: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(field)}: "):
        parse(type_name, 1, data)
    shown = read(type_name, 1, data)
    assert isinstance(shown, UnknownEvent)
    assert (shown.type, shown.version, shown.data, shown.to_data()) == (type_name, 1, data, data)
    assert field in shown.problem


def test_null_is_one_value_and_belongs_in_annotations_alone() -> None:
    assert copy.deepcopy(NULL) is pickle.loads(pickle.dumps(NULL)) is NULL  # noqa: S301 - our own bytes
    nested = Event.of(words.ConversationAnnotated(metadata={"a": {"b": NULL}}), conversation_id="c")
    with pytest.raises(InvalidInput, match=r"data\.metadata\.a\.b: is Null"):
        encode(nested, conversation_id="c")


def test_unknown_types_and_newer_versions_are_shown_as_they_are() -> None:
    unknown = parse("weather.changed", 3, {"to": "rain"})
    newer = parse("message.appended", 2, {"shape": "of tomorrow"})
    assert isinstance(unknown, UnknownEvent) and unknown.problem == "unknown type"
    assert (unknown.type, unknown.version, unknown.data) == ("weather.changed", 3, {"to": "rain"})
    assert isinstance(newer, UnknownEvent) and newer.problem == "version 2, this release knows 1"


def recorded(type_name: str, version: int, data: Mapping[str, Any]) -> RecordedEvent:
    moment, nobody = datetime(2026, 1, 1, tzinfo=UTC), UUID(int=0)
    event = {"event_id": nobody, "origin_id": nobody, "sequence": 1, "metadata": {}, "digest": None}
    return RecordedEvent(
        conversation_id="chat-1", type=type_name, schema_version=version, data=data, occurred_at=moment, **event
    )


def test_upcasters_are_chained_on_type_and_version() -> None:
    rules = (
        Upcasters()
        .with_rule("custom.paid", 1, lambda data: {**data, "currency": "EUR"})
        .with_rule("custom.paid", 2, lambda data: {"cents": data["euros"] * 100, "currency": data["currency"]})
        .with_rule("custom.other", 3, lambda data: {})
    )
    assert rules.upcast("custom.paid", 1, {"euros": 5}) == (3, {"cents": 500, "currency": "EUR"})
    assert rules.upcast("custom.paid", 2, {"euros": 5, "currency": "GBP"}) == (3, {"cents": 500, "currency": "GBP"})
    assert rules.upcast("custom.paid", 3, {"cents": 1}) == (3, {"cents": 1})
    assert rules.upcast("custom.unknown", 1, {"a": 1}) == (1, {"a": 1})
    with pytest.raises(ValueError, match="already"):
        rules.with_rule("custom.paid", 1, lambda data: data)


def test_an_old_event_is_read_as_if_written_today_and_stays_as_it_is() -> None:
    old, event = (recorded("conversation.renamed", version, {"name": "Tea"}) for version in (0, 1))
    first, second = (
        Upcasters({("conversation.renamed", version): lambda data: {"title": data["name"]}}) for version in (0, 1)
    )
    assert old.body(first) == words.ConversationRenamed(title="Tea")
    # The second rule leads to version 2, which this release would have to know.
    assert isinstance(event.body(second), UnknownEvent)
    assert isinstance(event.body(), UnknownEvent)
    assert event.data == {"name": "Tea"}


@pytest.mark.parametrize("name", ["custom.x", "a.b", "message.appended", "custom.a_b.c2", "a." + "b" * 62])
def test_a_type_is_dotted_lower_case_words(name: str) -> None:
    assert check_type(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "custom", "custom.", ".x", "Custom.x", "custom.X", "custom x.y", "custom.x\n", "кастом.x"),
        *("a..b", "1a.b", "a.-", "a." + "b" * 63, 5, None, b"custom.x"),
    ],
)
def test_what_is_no_type_is_refused(name: Any) -> None:
    with pytest.raises(InvalidInput, match="type"):
        check_type(name)


def test_an_event_is_made_of_what_was_said() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    own, made = Message.user("x", id="m-1"), Message.user("x")

    event = Event.of(own, conversation_id="chat-1", metadata={"by": "me"}, occurred_at=moment)
    assert (event.type, event.data, event.metadata) == ("message.appended", own.to_data(), {"by": "me"})
    assert (event.event_id, event.occurred_at) == (derived_event_id("chat-1", "m-1"), moment)
    assert Event.of(words.MessageAppended(message=own), conversation_id="chat-1").event_id == event.event_id
    assert Event.of(own, conversation_id="chat-2").event_id != event.event_id
    assert Event.of(made, conversation_id="a").event_id == made.event_id
    assert Event.of(event, conversation_id="chat-9") is event
    custom = Event.of(CustomEvent(name="paid", data={"n": 1}), conversation_id="chat-1")
    assert (custom.type, custom.data, custom.event_id.version) == ("custom.paid", {"n": 1}, 7)


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 11, 25, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
def test_a_moment_is_exact_to_the_microsecond(moment: datetime) -> None:
    back = from_microseconds(to_microseconds(moment))
    assert back == moment and back.tzinfo is UTC


def test_a_moment_that_is_none_is_refused() -> None:
    east = timezone(timedelta(hours=14))
    for wrong in (datetime(2026, 1, 1), datetime(1, 1, 1, tzinfo=east), 5, None):  # noqa: DTZ001 - the point
        with pytest.raises(InvalidInput, match="occurred_at"):
            to_microseconds(wrong)  # type: ignore[arg-type]
