"""What is accepted comes back equal from every store; what is refused is refused by name, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import math
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
import sqlalchemy as sa

from letopis.outbox import Bounds, History, Retention, RetryPolicy, Rules
from letopis.outbox.event_log.schema import events as outbox_events
from letopis.store import (
    ConfigurationError,
    Conversation,
    ConversationStore,
    Event,
    InvalidInput,
    LetopisError,
    Limits,
    Message,
    RecordedEvent,
    RecordedMessage,
    Timeouts,
)
from letopis.store.model.codec import encode
from letopis.store.model.event_types import (
    ConversationRenamed,
    CustomEvent,
    MessageAppended,
    MessageEdited,
    MessageSent,
    UnknownEvent,
)
from letopis.store.model.large_content import LARGE_BYTES, references_of
from letopis.store.model.parts import Part, Text, UnknownPart, part_to_json
from tests.support.values.places import Case, Place, cases, plain

CASES: Final = tuple(cases())


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of ``append``, and what must be found afterwards."""

    what: Sequence[Any]
    found: Callable[[Found], Any]
    expected: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    conversation_id: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a store holds of one conversation."""

    events: Sequence[RecordedEvent]
    messages: Sequence[RecordedMessage]
    conversation: Conversation

    @property
    def message(self) -> Message:
        (recorded,) = self.messages
        return recorded.message

    @property
    def event(self) -> RecordedEvent:
        """The event that was appended last."""
        return self.events[-1]


def attempt(case: Case, number: int) -> Attempt:
    """Build the call; building it may refuse the value already."""
    made = _ATTEMPTS[case.place](case.value)
    if case.place != "conversation_id":
        return replace(made, conversation_id=f"case-{number}")
    # The words tell which case it was: two ids that a store takes for the same would show here.
    words = f"of case-{number}"
    return replace(made, what=(Message.user(words),), expected=lambda: (words, case.value))


Build = Callable[[Any], Attempt]


def _said(message: Message, found: Callable[[Found], Any], expected: Any) -> Attempt:
    return Attempt((message,), found, lambda: expected)


def _in_message(name: str) -> Build:
    return lambda value: Attempt(
        (Message.user("words", **{name: value}),), lambda it: plain(getattr(it.message, name)), lambda: plain(value)
    )


def _in_event(name: str) -> Build:
    def build(value: Any) -> Attempt:
        fields = {"type": "custom.tried", name: value}
        return Attempt((Event(**fields),), lambda it: plain(getattr(it.event, name)), lambda: plain(value))

    return build


def _as_option(name: str, found: Callable[[Found], Any]) -> Build:
    # A platform gives numbers, which are kept as text.
    return lambda value: Attempt(
        (Message.user("words"),), found, lambda: str(value) if type(value) is int else plain(value), {name: value}
    )


def _message_id(value: Any) -> Attempt:
    message = Message.user("words", id=value)
    return _said(message, lambda it: it.message.id, value or message.id)


def _content(value: Any) -> Attempt:
    # The log refers to a large one, which is kept apart.
    if isinstance(value, str) and len(value.encode("utf-8", "surrogatepass")) > LARGE_BYTES:
        return _said(
            Message.user(value), lambda it: (it.message.content, references_of(it.event.data) != set()), (value, True)
        )
    return _said(Message.user(value), lambda it: (it.message.content, it.event.data["content"]), (value, value))


def _parts(value: Any) -> Attempt:
    return Attempt(
        (Message.user(value),),
        lambda it: ([_part(part) for part in it.message.content], list(it.event.data["content"])),
        lambda: (
            [_part(part) for part in value or ()],
            [part_to_json(part) for part in value or () if isinstance(part, Part)],
        ),
    )


def _part(part: Any) -> Any:
    assert not isinstance(part, UnknownPart), part
    return type(part), plain(part_to_json(part)) if isinstance(part, Part) else part


def _platform_id(value: Any) -> Attempt:
    message, ids = Message.assistant("words"), {"telegram": value, value: 1}
    sent = MessageSent(message_id=message.id, platform_ids=ids)
    return Attempt((message, sent), lambda it: it.messages[0].delivery_data, lambda: {"platform_ids": ids})


def _keyed(build: Build) -> Build:
    return lambda value: build({value: "value"})


_ATTEMPTS: Final[Mapping[Place, Build]] = {
    "conversation_id": lambda value: Attempt(
        (), lambda it: (it.message.content, it.conversation.conversation_id), tuple, conversation_id=value
    ),
    "owner": _as_option("owner", lambda it: it.conversation.owner_id),
    "message_id": _message_id,
    "role": lambda value: _said(Message(role=value, content="words"), lambda it: it.message.role, value),
    "content": _content,
    "part_text": lambda value: _said(Message.user([Text(value)]), lambda it: it.message.content, (Text(value),)),
    "parts": _parts,
    "name": _in_message("name"),
    "tokens": _in_message("tokens"),
    "usage": _in_message("usage"),
    "external_ids": _in_message("external_ids"),
    "metadata": _in_message("metadata"),
    "metadata_key": _keyed(_in_message("metadata")),
    "event_metadata": _as_option("metadata", lambda it: plain(it.event.metadata)),
    "event_id": _in_event("event_id"),
    "type": _in_event("type"),
    "schema_version": _in_event("schema_version"),
    "data": _in_event("data"),
    "data_key": _keyed(_in_event("data")),
    "occurred_at": _as_option("occurred_at", lambda it: it.event.occurred_at),
    "title": lambda value: Attempt(
        (ConversationRenamed(title=value),), lambda it: it.conversation.title, lambda: value
    ),
    "platform_id": _platform_id,
}


def test_the_corpus_is_large_and_tries_every_place() -> None:
    assert len(CASES) >= 200
    assert {case.place for case in CASES} == set(_ATTEMPTS)
    assert len({(case.place, case.name) for case in CASES}) == len(CASES)


@pytest.mark.slow
async def test_hostile_values_are_kept_equal_or_refused_by_name(store_url: str, tmp_path: Path) -> None:
    complaints: list[str] = []
    async with (
        ConversationStore.open(store_url, migrate=True) as store,
        History(tmp_path / "bot.outbox.db", store=store) as history,
    ):
        attempts = [(case, number) for number, case in enumerate(CASES)]
        for case, number in attempts:
            if not case.kept:
                complaints += await refuse(history, case, number)
        assert await history.outbox.read(count) == 0, "a refused value has left something behind"

        kept = await asyncio.gather(*(keep(history, case, number) for case, number in attempts if case.kept))
        assert await history.drained(timeout=60)
        gate = asyncio.Semaphore(4)  # no more than there are connections, or a slow machine has them wait too long

        async def compare_in_turn(case: Case, made: Attempt) -> None:
            async with gate:
                await compare(history.store, case, made, complaints)

        async with asyncio.TaskGroup() as group:
            for outcome in kept:
                if isinstance(outcome, str):
                    complaints.append(outcome)
                else:
                    group.create_task(compare_in_turn(*outcome))
        listed = await owners_of(history.store)
        complaints += [
            f"owner of {conversation_id}: {owner!a} is not listed under exactly that owner"
            for conversation_id, owner in listed.items()
            if conversation_id
            not in {
                one.conversation_id for one in await everything(history.store, owner=owner) if one.owner_id == owner
            }
        ]

    assert not complaints, "\n".join(complaints[:40])


async def refuse(history: History, case: Case, number: int) -> list[str]:
    before = await history.outbox.read(count)
    try:
        made = attempt(case, number)
        await history.append(made.conversation_id, *made.what, **made.options)
    except InvalidInput as error:
        wrong = [] if error.field.startswith(case.field) else [f"{case.place} {case.name}: names {error.field!a}"]
        if "abc" in error.reason:
            wrong.append(f"{case.place} {case.name}: tells the value: {error.reason!a}")
    except Exception as error:  # whatever else comes is what this test looks for
        wrong = [f"{case.place} {case.name}: {type(error).__name__} instead of InvalidInput: {error!a:.200}"]
    else:
        wrong = [f"{case.place} {case.name}: was accepted"]
    if await history.outbox.read(count) != before:
        wrong.append(f"{case.place} {case.name}: has left something in the outbox")
    return wrong


async def keep(history: History, case: Case, number: int) -> tuple[Case, Attempt] | str:
    """Append what must be accepted."""
    try:
        made = attempt(case, number)
        await history.append(made.conversation_id, *made.what, **made.options)
    except Exception as error:  # whatever comes is what this test looks for
        return f"{case.place} {case.name}: {type(error).__name__}, though it may be kept: {error!a:.200}"
    return case, made


async def compare(store: ConversationStore, case: Case, made: Attempt, complaints: list[str]) -> None:
    """Read a conversation back from the store alone."""
    conversation = await store.conversation(made.conversation_id)
    if conversation is None:
        complaints.append(f"{case.place} {case.name}: nothing is stored")
        return
    found = Found(
        events=(await store.events(made.conversation_id)).items,
        messages=(await store.messages(made.conversation_id)).items,
        conversation=conversation,
    )
    try:
        value = made.found(found)
    except (ValueError, IndexError) as error:
        complaints.append(f"{case.place} {case.name}: {len(found.messages)} messages: {error}")
        return
    if not same(value, expected := made.expected()):
        complaints.append(f"{case.place} {case.name}: came back as {value!a:.120}, not {expected!a:.120}")


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, with their order of keys; 1 and 1.0 and True apart, zero apart from minus zero."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, datetime) or not isinstance(one, bool | int | float):
        return bool(one == other)
    return type(one) is type(other) and repr(one) == repr(other)


async def everything(store: ConversationStore, *, owner: str | None = None) -> list[Conversation]:
    found: list[Conversation] = []
    after: str | None = None
    while True:
        page = await store.conversations(owner=owner, after=after, limit=500)
        found += page
        if (after := page.next) is None:
            return found


async def owners_of(store: ConversationStore) -> dict[str, str]:
    return {one.conversation_id: one.owner_id for one in await everything(store) if one.owner_id is not None}


def count(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(outbox_events)).scalar_one()


SETTINGS: Final = (
    (Limits, "max_bytes"),
    (Limits, "max_depth"),
    (Timeouts, "lock"),
    (Bounds, "max_events"),
    (Retention, "keep_last"),
    (Retention, "keep_for"),
    (RetryPolicy, "base"),
    (RetryPolicy, "attempts"),
    (Rules, "hold"),
    (Rules, "repeat_interval"),
)


def named(value: object) -> str:
    """A value in the name of a test, the same in each process."""
    return "object" if type(value) is object else ascii(value)


@pytest.mark.parametrize(("make", "name"), SETTINGS, ids=lambda one: one if isinstance(one, str) else one.__name__)
@pytest.mark.parametrize("value", ["5", b"5", [5], math.nan, Decimal("NaN"), True, object()], ids=named)
def test_a_setting_that_is_no_number_is_refused_by_name(make: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(LetopisError) as refused:
        make(**{name: value})
    assert name in str(refused.value)


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
@pytest.mark.parametrize("value", [7, None, 1.5, object(), {"a"}, [1], ["abc"]], ids=named)
def test_a_body_of_the_wrong_kind_is_refused_and_no_other_error_comes(make: Callable[[Any], Any], value: Any) -> None:
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


@pytest.mark.parametrize("path", [7, None, b"x.db", "a\ud800.db", "x" * 256, object()], ids=named)
async def test_a_path_that_is_none_is_refused_by_name(path: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"path|text|file"):
        async with History(path, store=tmp_path / "history.db"):
            pass
    with pytest.raises(ConfigurationError, match=r"path|text"):
        ConversationStore(path)
