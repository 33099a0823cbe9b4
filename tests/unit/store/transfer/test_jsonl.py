"""JSON Lines: what goes in comes out, and what cannot is refused by name and line."""

import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis import Message, RecordedMessage
from letopis.ops.transfer.importer import check
from letopis.store.model.codec import decode, encode
from letopis.store.model.events import from_microseconds
from letopis.store.transfer.jsonl import (
    Line,
    Refused,
    SeenKeys,
    parse_timestamp,
    read_lines,
    render_line,
    render_timestamp,
)

MINIMAL = {"conversation_id": "c1", "role": "user", "content": "hi"}


def lines_of(raw: bytes, **options: Any) -> list[Line | Refused]:
    with SeenKeys() as count:
        return list(read_lines(io.BytesIO(raw), count=count, **options))


def whole(raw: bytes) -> list[Line]:
    """The lines of ``raw``, none of which is refused."""
    found = lines_of(raw)
    assert all(isinstance(line, Line) for line in found)
    return cast("list[Line]", found)


def jsonl(*lines: Any) -> bytes:
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def reason(raw: bytes | str) -> str:
    """Why the one line of ``raw`` is refused, by the parser or by the codec behind it."""
    (found,) = lines_of(raw.encode() if isinstance(raw, str) else raw)
    refused = check(found)
    assert isinstance(refused, Refused)
    assert refused.number == 1
    return refused.reason


def changed(**fields: Any) -> bytes:
    return json.dumps({**MINIMAL, **fields}).encode()


def record(*left_out: str, **fields: Any) -> bytes:
    whole = {"record": {"owner": "42"}, "namespace": ["a"], "key": "k", "value": 1, **fields}
    return json.dumps({key: value for key, value in whole.items() if key not in left_out}).encode()


def stored(line: Line) -> RecordedMessage:
    """The line as a history gives it back, through the bytes that are stored."""
    encoded = encode(line.event(), conversation_id=line.conversation_id)
    return RecordedMessage(
        conversation_id=line.conversation_id,
        message=Message.from_data(decode(encoded.data)),
        event_id=encoded.event_id,
        origin_id=uuid4(),
        sequence=line.number,
        occurred_at=from_microseconds(encoded.occurred_at),
        version=line.number,
    )


def exported(lines: Iterable[Line], *, owner: str | None = None) -> bytes:
    with SeenKeys() as count:
        return b"".join(render_line(stored(line), owner=owner, count=count) for line in lines)


def objects(raw: bytes) -> list[Any]:
    return [orjson.loads(line) for line in raw.splitlines()]


def test_a_line_gives_its_message_owner_and_moment() -> None:
    counted = {"tokens": 7, "usage": {"output": 7}, "external_ids": {"telegram": 4711}}
    fields = {"id": "m 1", "name": "Анна", "metadata": {"a": [1]}, **counted}
    [line] = whole(jsonl(MINIMAL | fields | {"owner": "42", "occurred_at": "2026-01-31T15:00:00.5+03:00"}))
    moment = datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)
    assert (line.conversation_id, line.owner, line.occurred_at) == ("c1", "42", moment)
    assert line.message == Message.user("hi", **fields)
    assert (line.event().event_id, line.event().occurred_at) == (line.event().event_id, moment)


def test_keys_that_are_null_count_as_not_given() -> None:
    bare, null = whole(jsonl(MINIMAL | {"id": "1"}, MINIMAL | {"id": "1", "owner": None, "metadata": None}))
    assert (null.message, null.owner) == (bare.message, None)


def test_line_ends_a_mark_at_the_start_and_blank_lines_are_passed_over() -> None:
    one, two = (json.dumps(MINIMAL | {"id": number}).encode() for number in "12")
    found = whole(b"\xef\xbb\xbf" + one + b"\r\n\n  \t\r\n" + two)
    assert [(line.number, line.message.id) for line in found] == [(1, "1"), (4, "2")]


def test_a_line_that_is_too_long_is_read_past() -> None:
    long = jsonl(MINIMAL | {"content": "x" * 300_000})
    first, second = lines_of(long + jsonl(MINIMAL), max_line_bytes=1000)
    assert first == Refused(number=1, reason="the line is longer than 1000 bytes", size=len(long))
    assert (type(second), second.number) == (Line, 2)


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_longest_line_is_counted_without_its_end(spare: int, end: bytes) -> None:
    line = orjson.dumps(MINIMAL)
    (found,) = lines_of(line + end, max_line_bytes=len(line) - spare)
    assert isinstance(found, Refused if spare else Line)


REFUSED: dict[str, tuple[bytes | str, str]] = {
    "no JSON": ("hello", "line: is not JSON at character 1"),
    "cut off": ('{"conversation_id": "c1", "role": "user", "content": "h', "line: is not JSON"),
    "an array": ("[1]", "line: must be a JSON object, not list"),
    "NaN": (changed(metadata={"a": float("nan")}), "line: has NaN"),
    "a number that is too large": (b'{"conversation_id":"c","role":"user","content":"","tokens":1e999}', "tokens"),
    "a float beyond doubles": (
        b'{"conversation_id":"c","role":"user","content":"","metadata":{"a":1e999}}',
        "data.metadata.a: is not a finite number",
    ),
    "an integer beyond 64 bits": (changed(metadata={"a": 2**63}), "data.metadata.a: is an integer beyond 64 bits"),
    "an integer of 5,000 digits": (
        b'{"conversation_id":"c","role":"user","content":"","metadata":{"a":' + b"1" * 5000 + b"}}",
        "line: has an integer beyond 64 bits",
    ),
    "a bomb of brackets": (b'{"metadata":' + b"[" * 200_000, "line: is nested too deep"),
    "deep and whole": (changed(metadata=json.loads('{"a":' * 80 + "1" + "}" * 80)), "is nested too deep"),
    "not UTF-8": (b'{"conversation_id": "\xff"}', "line: is not UTF-8 at byte 22"),
    "UTF-16": ("{}".encode("utf-16"), "line: is UTF-16"),
    "a key twice": (b'{"role":"user","role":"system"}', "role: is given twice"),
    "a key twice, deep": (changed()[:-1] + b',"metadata":{"x":{"k":1,"k":2}}}', "k: is given twice"),
    "another key": (changed(text="hi"), "text: is not a key of a line"),
    "no conversation": (b'{"role":"user","content":"hi"}', "conversation_id: is missing"),
    "content null, of a user": (changed(content=None), "content: of a user message must be text or parts"),
    "conversation too long": (changed(conversation_id="x" * 256), "conversation_id: has 256 characters"),
    "conversation with a line feed": (changed(conversation_id="a\nb"), "conversation_id: has a control character"),
    "role unknown": (changed(role="bot"), "role: must be one of"),
    "content with NUL": (changed(content="a\0b"), "data.content: has a NUL character"),
    "content with a lone surrogate": (changed(content="\ud800"), "has a lone surrogate"),
    "content too large": (
        changed(content=[{"type": "data", "value": ["x" * 1_000] * 1_100}]),
        "bytes of JSON, the limit is",
    ),
    "owner with a lone surrogate": (changed(owner="\udfff"), "owner: has a lone surrogate"),
    **{f"tokens {wrong}": (changed(tokens=wrong), "tokens: must be a whole number") for wrong in (-1, 1.5, True)},
    "time a number": (changed(occurred_at=1_700_000_000), "occurred_at: must be a time as text"),
    "time without offset": (changed(occurred_at="2026-01-31T12:00:00"), "occurred_at: has no offset from UTC"),
    "time of nanoseconds": (changed(occurred_at="2026-01-31T12:00:00.123456789Z"), "is finer than a microsecond"),
    "time before the first year": (changed(occurred_at="0001-01-01T00:00:00+14:00"), "names no day and time"),
    "time in other digits": (changed(occurred_at="２０２６-01-31T12:00:00Z"), "is no RFC 3339 time"),
    "record without a value": (record("value"), "value: "),
    "record with two values": (record(bytes="AA=="), "value: "),
    **{f"record of bytes {wrong}": (record("value", bytes=wrong), "bytes: ") for wrong in ("A", 7)},
    **{f"record of {wrong}": (record(record=wrong), "record: ") for wrong in ("42", {"owner": "1", "space": "a"})},
    "record of an owner that is none": (record(record={"owner": "\1"}), "owner: has a control character"),
    "record in a namespace of text": (record(namespace="a"), "namespace: "),
    "record without a namespace": (record("namespace"), "namespace: "),
    "record with a tag that is none": (record(tags={"a": 1.5}), "tags"),
    "record beyond 64 bits": (record(value=2**64), "value: "),
    "record with a role": (record(role="user"), "role: "),
}


@pytest.mark.parametrize(("raw", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(raw: bytes | str, expected: str) -> None:
    assert expected in reason(raw)


def test_no_reason_quotes_what_a_person_said() -> None:
    secret = "the-words-of-a-person"
    fields = {"content": f"{secret}\0"}, {"content": [secret]}, {"role": secret}, {"occurred_at": secret}
    lines = [*(changed(**one) for one in (*fields, {"id": f"\x1b{secret}"})), f'{{"content": "{secret}']
    assert [line for line in lines if secret in reason(line)] == []


def test_a_line_that_is_mended_later_changes_no_other_id() -> None:
    broken, mended = (
        lines_of(jsonl(MINIMAL, MINIMAL | {"content": content}, MINIMAL | {"content": "bye"}, MINIMAL))
        for content in (7, "7")
    )
    assert [one for one in broken if isinstance(one, Line)] == [mended[0], mended[2], mended[3]]


def test_the_ids_that_lines_imply_never_change() -> None:
    """They are in files and histories for ever: a change here would import old files twice."""
    [line] = whole(jsonl(MINIMAL | {"metadata": {"b": 1.5, "a": "ё"}}))
    assert line.message.id == "07563e34-658a-5c0d-a387-696f5bf52142"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([{"content": word} for word in ("ok", "ok", "no")], id="without an id"),
        # A caller's own UUIDv5 on the same words must not count as one of those without an id.
        pytest.param(
            [{"id": "6ba7b810-9dad-51d1-80b4-00c04fd430c8"}, {"occurred_at": "2026-01-31T12:00:01Z"}],
            id="an id that only looks implied",
        ),
    ],
)
def test_what_was_given_without_an_id_is_given_back_without_one(lines: list[dict[str, str]]) -> None:
    given = [MINIMAL | {"occurred_at": "2026-01-31T12:00:00Z"} | line for line in lines]
    assert objects(exported(whole(jsonl(*given)))) == given


def test_an_id_is_written_where_reading_would_not_give_it_again() -> None:
    first, second, third = whole(jsonl(MINIMAL, MINIMAL, MINIMAL | {"content": "bye"}))
    out = exported((second, third))
    assert [one.get("id") for one in objects(out)] == [second.message.id, None]
    assert [one.message.id for one in whole(out)] == [second.message.id, third.message.id]
    assert first not in whole(out)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
IDENTIFIER = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
NUMBER = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OBJECT = st.dictionaries(TEXT, VALUE, min_size=1, max_size=3)
PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    st.fixed_dictionaries({"type": st.just("file"), "uri": TEXT}, optional={"name": TEXT, "media_type": TEXT}),
    st.fixed_dictionaries(
        {"type": st.just("tool_call"), "call_id": TEXT, "name": TEXT}, optional={"arguments": OBJECT}
    ),
    st.fixed_dictionaries({"type": st.just("hologram"), "depth": VALUE}),
)
LINE = st.fixed_dictionaries(
    {
        "conversation_id": st.sampled_from(["c1", "c2", "Ё"]),
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": TEXT | st.lists(PART, max_size=3),
        "occurred_at": st.datetimes(timezones=st.just(UTC)).map(render_timestamp),
    },
    optional={
        "id": IDENTIFIER,
        "name": TEXT,
        "tokens": st.integers(0, 2**63 - 1),
        "usage": OBJECT,
        "external_ids": OBJECT,
        "metadata": OBJECT,
    },
)


@given(st.lists(LINE, max_size=8), st.sampled_from([None, "42"]))
def test_a_file_in_normal_form_comes_out_as_it_went_in(lines: list[dict[str, Any]], owner: str | None) -> None:
    if owner is not None:
        lines = [line | {"owner": owner} for line in lines]
    out = exported(whole(jsonl(*lines)), owner=owner)
    assert objects(out) == lines
    assert exported(whole(out), owner=owner) == out


@given(st.binary(max_size=200))
def test_any_bytes_are_lines_or_refusals_and_never_an_error(raw: bytes) -> None:
    found = [check(line) for line in lines_of(raw, max_line_bytes=100)]
    assert all(not isinstance(one, Refused) or one.reason for one in found)


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
def test_a_moment_comes_out_as_it_went_in(moment: datetime) -> None:
    try:
        expected = moment.astimezone(UTC)
    except OverflowError:
        return
    assert parse_timestamp(render_timestamp(moment), "t") == expected


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31t12:00:00z", "2026-01-31T12:00:00Z"),
        ("2026-01-31 12:00:00.120000000+00:00", "2026-01-31T12:00:00.120000Z"),
        ("2026-01-31T23:30:00-01:30", "2026-02-01T01:00:00Z"),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=3))), "2025-12-31T21:00:00Z"),
    ],
)
def test_one_moment_has_one_spelling_on_its_way_out(moment: str | datetime, expected: str) -> None:
    found = moment if isinstance(moment, datetime) else parse_timestamp(moment, "t")
    assert render_timestamp(found) == expected
