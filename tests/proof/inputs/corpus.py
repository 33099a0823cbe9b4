"""Append every hostile value at every place: what is accepted comes back equal, what is refused is refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.event_log.schema import events as outbox_events
from letopis.store import (
    Conversation,
    ConversationStore,
    Event,
    InvalidInput,
    Message,
    RecordedEvent,
    RecordedMessage,
)
from letopis.store.model.event_types import ConversationRenamed, MessageSent
from letopis.store.model.large_content import LARGE_BYTES, references_of
from letopis.store.model.parts import Part, Text, UnknownPart, part_to_json
from tests.proof.harness import Setting, Tally
from tests.proof.inputs.running import ACCEPTED, BLOCK_AT_ONCE, COMPARED, blocked, same, told
from tests.support.sayings import all_pages
from tests.support.values.places import Case, Place, cases, plain


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of ``append``, and what must be found afterwards."""

    what: Sequence[Any]
    found: Callable[[Found], Any]
    expected: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    conversation_id: Any = None


class Found(NamedTuple):
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
    made = ATTEMPTS[case.place](case.value)
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


ATTEMPTS: Final[Mapping[Place, Build]] = {
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
    "metadata_key": lambda value: _in_message("metadata")({value: "value"}),
    "event_metadata": _as_option("metadata", lambda it: plain(it.event.metadata)),
    "event_id": _in_event("event_id"),
    "type": _in_event("type"),
    "schema_version": _in_event("schema_version"),
    "data": _in_event("data"),
    "data_key": lambda value: _in_event("data")({value: "value"}),
    "occurred_at": _as_option("occurred_at", lambda it: it.event.occurred_at),
    "title": lambda value: Attempt(
        (ConversationRenamed(title=value),), lambda it: it.conversation.title, lambda: value
    ),
    "platform_id": _platform_id,
}


async def appended(setting: Setting) -> Tally:
    many = 40 if setting.options.short else None
    return told(await tried(setting.url, setting.folder, random=Random(setting.seed), many=many))


async def tried(url: str, folder: Path, *, random: Random, many: int | None) -> Tally:
    """Try this many cases by chance, or all of them, through an outbox into a store."""
    tally, whole = Tally(), list(enumerate(cases()))
    some = whole if many is None else random.sample(whole, many)
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History(folder / "corpus.outbox.db", store=store, policy=BLOCK_AT_ONCE) as history,
    ):
        for number, case in some:
            tally.count += 1
            if not case.kept:
                tally.refused += 1
                tally.blame(await refuse(history, case, number), where=case.label)
        tally.require(not await history.outbox.read(count), "a refused value has left something behind")
        kept = [(number, case) for number, case in some if case.kept]
        outcomes = await asyncio.gather(
            *(append(history, case, number) for number, case in kept), return_exceptions=True
        )
        tally.require(await history.drained(timeout=60), "not everything is delivered")
        tally.blame(await history.outbox.read(blocked), where="blocked at delivery")
        for (_, case), outcome in zip(kept, outcomes, strict=True):
            tally.figures[ACCEPTED] += 1
            if isinstance(outcome, BaseException):
                wrong = [f"{type(outcome).__name__}, though it may be kept: {outcome!a:.200}"]
            else:
                tally.figures[COMPARED] += 1
                wrong = await differences(store, outcome)
            tally.blame(wrong, where=case.label)
        tally.problems += await unlisted(store)
    return tally


async def append(history: History, case: Case, number: int) -> Attempt:
    made = attempt(case, number)
    await history.append(made.conversation_id, *made.what, **made.options)
    return made


async def refuse(history: History, case: Case, number: int) -> list[str]:
    before = await history.outbox.read(count)
    try:
        await append(history, case, number)
    except InvalidInput as error:
        wrong = [] if error.field.startswith(case.field) else [f"names {error.field!a}"]
        wrong += [f"tells the value: {error.reason!a}"] if "abc" in error.reason else []
    except Exception as error:  # whatever else comes is what this test looks for
        wrong = [f"{type(error).__name__} instead of InvalidInput: {error!a:.200}"]
    else:
        wrong = ["was accepted"]
    left = await history.outbox.read(count) != before
    return [*wrong, "has left something in the outbox"] if left else wrong


async def differences(store: ConversationStore, made: Attempt) -> list[str]:
    """Read a conversation back from the store alone."""
    name = made.conversation_id
    conversation = await store.conversation(name)
    if conversation is None:
        return ["nothing is stored"]
    found = Found((await store.events(name)).items, (await store.messages(name)).items, conversation)
    try:
        value = made.found(found)
    except (ValueError, IndexError) as error:
        return [f"{len(found.messages)} messages: {error}"]
    expected = made.expected()
    return [] if same(value, expected) else [f"came back as {value!a:.120}, not {expected!a:.120}"]


async def unlisted(store: ConversationStore) -> list[str]:
    """Return what is not listed under exactly its owner."""
    pages = partial(store.conversations, limit=500)
    owned = {(one.owner_id, one.conversation_id) for one in await all_pages(pages) if one.owner_id is not None}
    listed = {
        (one.owner_id, one.conversation_id)
        for owner in {owner for owner, _ in owned}
        for one in await all_pages(partial(pages, owner=owner))
    }
    return [f"owner of {name}: {owner!a} is not listed under exactly that owner" for owner, name in owned - listed]


def count(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(outbox_events)).scalar_one()
