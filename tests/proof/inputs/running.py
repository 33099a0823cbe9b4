"""Make every call with one hostile argument, and look at what is left in the outbox and in the store."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from random import Random
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox import History, Receipt, RetryPolicy
from letopis.outbox.event_log.schema import events as outbox_events
from letopis.store import (
    ConversationRenamed,
    ConversationStore,
    Event,
    LetopisError,
    Message,
    OutboxUnavailable,
    RecordedEvent,
    StoreFault,
)
from letopis.store.model.event_types import Body
from letopis.store.model.parts import Part, part_to_json
from tests.proof.harness import Setting, Tally
from tests.proof.inputs.calls import ANSWERED, ASKED, OWNER, TABLES, World, parameters
from tests.support.sayings import all_pages, catch_up_index, differences
from tests.support.values.hostile import sample, values
from tests.support.values.places import plain

ACCEPTED: Final = "accepted"
COMPARED: Final = "compared in the store"
FALLS_AWAY: Final = (None, False, "", (), [], {})
"""What stands for nothing given: a field that holds it may be left out."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One value that was accepted, and where it must be found."""

    label: str
    value: Any
    conversation_id: str
    event_ids: tuple[UUID, ...]


def refusal(tally: Tally, label: str, error: BaseException) -> None:
    """Record what a call raised."""
    tally.refused += 1
    if (wrong := fault_of(error)) is not None:
        tally.problems.append(f"{label}: {wrong}")


def told(tally: Tally) -> Tally:
    """Return a tally that says what became of its inputs."""
    tally.notes = f"{tally.refused:,} refused, {tally.told()}"
    return tally


def fault_of(error: BaseException) -> str | None:
    if not isinstance(error, LetopisError):
        return f"{type(error).__name__}, which is not documented: {str(error)!a:.150}"
    if isinstance(error, StoreFault | OutboxUnavailable):
        return f"a database was asked and refused it: {type(error).__name__} {str(error)!a:.150}"
    words = str(error)
    if len(words) < 8 or not any(character.isspace() for character in words):
        return f"{type(error).__name__} does not say what was wrong: {words!a}"
    if not words.isprintable():
        return f"{type(error).__name__} repeats what cannot be printed: {words!a:.150}"
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, with their order of keys; 1 and 1.0 and True apart, zero apart from minus zero."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, datetime) or not isinstance(one, bool | int | float):
        return bool(one == other)
    return type(one) is type(other) and repr(one) == repr(other)


def as_json(value: Any) -> Any:
    """Return a value as documented to be stored: parts and bodies as objects, tuples as lists."""
    if isinstance(value, Part):
        return plain(part_to_json(value))
    if isinstance(value, Message | Body):
        return plain(value.to_data())
    if isinstance(value, Mapping):
        return {plain(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return plain(value)


def found_in(value: Any, events: Iterable[RecordedEvent]) -> bool:
    """Return True if an equal value is somewhere in what was kept: in a field, or at any depth of data or metadata."""
    if any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in FALLS_AWAY):
        return True
    wanted = as_json(value.data if isinstance(value, Event) else value)
    return any(_holds(wanted, place) for event in events for place in _places(event))


def _places(event: RecordedEvent) -> Iterable[Any]:
    fields = (event.conversation_id, event.event_id, event.type, event.schema_version, event.occurred_at)
    return (*fields, plain(event.data), plain(event.metadata))


def _holds(value: Any, place: Any) -> bool:
    if type(value) is int:
        # Compared directly: too long to be written out. An owner may be given as a number, and is kept as text.
        owner = isinstance(place, Mapping) and value.bit_length() < 256 and place.get("owner_id") == str(value)
        return bool(owner or (type(place) is int and place == value)) or _deeper(value, place)
    return same(place, value) or _deeper(value, place)


def _deeper(value: Any, place: Any) -> bool:
    if isinstance(place, dict):
        if isinstance(value, str) and value in place:
            return True
        # Keys of the caller's beside those of Letopis.
        if isinstance(value, dict) and value and all(key in place and same(place[key], value[key]) for key in value):
            return True
        return any(_holds(value, item) for item in place.values())
    if isinstance(place, list):
        return any(_holds(value, item) for item in place)
    return False


TIMEOUT_SECONDS: Final = 15.0  # seconds after which a call hangs
BLOCK_AT_ONCE: Final = RetryPolicy(base=0.01, attempts=0)  # what the store refuses is blocked at once, to be seen
SAYS_MORE: Final = {
    *(("Reply", method) for method in TABLES["Reply"]),
    *(("Receipt", method) for method in TABLES["Receipt"]),
    ("History", "reply"),
}
"""Calls that are tried after a message was appended: a reply that is broken off keeps what it has."""
CONDITIONS: Final = {"expected", "after", "fail_if_types", "every", "activate", "at", "turns", "confirm", "timeout"}
"""Parameters that decide whether a message is appended, and are not part of it."""


async def made_ready(history: Any, world: World) -> None:
    """Say something in some conversations."""
    said = Message.user("words", id=ASKED), Message.assistant("more", id=ANSWERED)
    await asyncio.gather(*(history.append(name, *said, owner=OWNER) for name in world.names))


def last_position(connection: sa.Connection) -> int:
    """Return the place of the newest event in the outbox."""
    return connection.execute(sa.select(sa.func.coalesce(sa.func.max(outbox_events.c.position), 0))).scalar_one()


Invoke = Mapping[str, Callable[[str, dict[str, Any]], Awaitable[Any]]]


def invoking(history: Any, world: World) -> Invoke:
    """Return what calls a method of each class that a history leads to."""
    return {
        "History": lambda method, given: _history(history, world, method, given),
        "Chat": lambda method, given: _method(history.chat(given.pop("conversation_id")), method, given),
        "AllRecords": lambda method, given: _method(history.records, method, given),
        "Reply": lambda method, given: _reply(history, world, method, given),
        "Receipt": lambda method, given: _receipt(history, world, method, given),
        "Transaction": lambda method, given: _transaction(history, method, given),
    }


async def call_all(
    invoke: Invoke, world: World, last: Callable[[], Awaitable[int]], tally: Tally, *, many: int, random: Random
) -> list[Kept]:
    """Make each call of some classes with one hostile argument; ``last`` tells if that has left anything."""
    kept: list[Kept] = []
    for cls, call in invoke.items():
        for method, parameter in [(name, one) for name in TABLES[cls] for one in parameters(cls, name)]:
            before = await last()
            # All of them for the call that every message goes through.
            whole = (cls, method, parameter) == ("History", "append", "conversation_id") and many >= 8
            for hostile in values() if whole else sample(many, random):
                label = f"{cls}.{method}({parameter}={hostile.name})"
                given = TABLES[cls][method](world) | {parameter: hostile.value}
                tally.count += 1
                try:
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        outcome = await call(method, given)
                except TimeoutError:
                    tally.problems.append(f"{label}: hangs")
                except Exception as error:  # whatever comes is what is looked for
                    refusal(tally, label, error)
                    after = await last()
                    if after != before and (cls, method) not in SAYS_MORE:
                        tally.problems.append(f"{label}: refused, and {after - before} events are in the outbox")
                    before = after
                else:
                    tally.figures[ACCEPTED] += 1
                    if isinstance(outcome, Receipt) and parameter not in CONDITIONS:
                        kept.append(Kept(label, hostile.value, outcome.conversation_id, outcome.event_ids))
                    before = await last()
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await call(method, TABLES[cls][method](world))
            except Exception as error:  # whatever comes is what is looked for
                told_of = f"{cls}.{method}: cannot be used after hostile {parameter}"
                tally.problems.append(f"{told_of}: {type(error).__name__} {error}")
    return kept


async def compared(store: ConversationStore, kept: list[Kept], tally: Tally) -> None:
    """Compare what the store holds with what was accepted."""
    by_conversation: dict[str, list[Kept]] = {}
    for one in kept:
        by_conversation.setdefault(one.conversation_id, []).append(one)
    for conversation_id, some in by_conversation.items():
        events = await all_pages(partial(store.events, conversation_id, first=500))
        held = {event.event_id: event for event in events}
        for one in some:
            there = [held[event_id] for event_id in one.event_ids if event_id in held]
            tally.figures[COMPARED] += 1
            if missing := len(one.event_ids) - len(there):
                tally.blame([f"accepted, and {missing} events are not in the store"], where=one.label)
            elif not found_in(one.value, there) and any(event.digest is not None for event in there):
                tally.blame([f"accepted, and not found equal in the store: {there[-1].data!a:.150}"], where=one.label)


def blocked(connection: sa.Connection) -> list[str]:
    """Return the conversations that the store refuses something of, and why."""
    found = connection.exec_driver_sql(
        "SELECT conversation_id, fault_class, fault FROM letopis_outbox_lanes WHERE state <> 'ready'"
    )
    return [ascii(tuple(row))[:200] for row in found]


@asynccontextmanager
async def opened(setting: Setting) -> AsyncIterator[tuple[History, ConversationStore]]:
    """Give a history whose events the store has to take at once, and the store."""
    async with (
        ConversationStore.open(setting.url, migrate=True) as store,
        History(setting.folder / "bot.outbox.db", store=store, policy=BLOCK_AT_ONCE) as history,
    ):
        yield history, store


async def blocked_at_delivery(setting: Setting) -> Tally:
    """A control: what no append has refused, the store does."""
    async with opened(setting) as (history, _):
        for number in range(5):
            await history.append(f"nul-{number}", ConversationRenamed(title=f"a\0{number}"))
            # One that succeeds: otherwise the store would look like one that refuses everything.
            await history.append(f"sound-{number}", ConversationRenamed(title="sound"))
        await history.drained(timeout=10)
        return Tally(5, problems=await history.outbox.read(blocked), notes="conversations blocked at delivery")


async def _method(subject: Any, method: str, given: dict[str, Any]) -> Any:
    more = given.pop("tags" if method == "tag" else "more", None)
    function = getattr(subject, method)
    if more is not None:
        first = [given.pop(name) for name in ("connection", "conversation_id", "what", "message_id") if name in given]
        outcome = function(*first, more, **given)
    else:
        outcome = function(**given)
    if hasattr(outcome, "__aiter__"):
        seen = []
        async for one in outcome:
            seen.append(one)
            if len(seen) == 3:
                break
        await outcome.aclose()
        return seen
    return await outcome if hasattr(outcome, "__await__") else outcome


async def _store(store: ConversationStore, method: str, given: dict[str, Any]) -> Any:
    if method != "subscribe":
        return await _method(store, method, given)
    try:
        async with asyncio.timeout(0.2):
            return await _method(store, method, given)
    except TimeoutError:
        return None  # it waits for what is to come, as it should


async def _history(history: Any, world: World, method: str, given: dict[str, Any]) -> Any:
    if method == "append_in":
        async with history.outbox.engine.begin() as connection:
            return await _method(history, method, {"connection": connection, **given})
    if method == "transaction":
        async with history.transaction() as transaction:
            return await transaction.append(world.lasting, Message.user("words"))
    if method == "reply":
        async with history.reply(**given) as reply:
            await reply.add("words")
            receipt = await reply.finish()
        return None if "every" in given else receipt
    return await _method(history, method, given)


async def _reply(history: Any, world: World, method: str, given: dict[str, Any]) -> Any:
    async with history.reply(world.lasting, every=None) as reply:
        if method == "add":
            await reply.add(**given)
            return await reply.finish()
        await reply.add("words")
        if method == "finish":
            return await reply.finish(**given)
        await reply.finish()
        return await _method(reply, method, given)


async def _receipt(history: Any, world: World, method: str, given: dict[str, Any]) -> Any:
    receipt = await history.append(world.lasting, Message.user("words"))
    return await _method(receipt, method, given)


async def _transaction(history: Any, method: str, given: dict[str, Any]) -> Any:
    async with history.transaction() as transaction:
        if method != "append":
            given["records"] = history.records(conversation="async-0")
        return await _method(transaction, method, given)


async def from_tasks(setting: Setting) -> Tally:
    """Try everything on one store."""
    tally, many, random = Tally(), setting.many(8, 1), Random(setting.seed)
    async with opened(setting) as (history, store):
        world = World("async", 20 + 40 * many, origin_id=history.outbox.origin.origin_id)
        await made_ready(history, world)
        await history.drained(timeout=TIMEOUT_SECONDS)
        invoke: Invoke = {
            **invoking(history, world),
            "ConversationStore": lambda method, given: _store(store, method, given),
            "ErasureRegister": lambda method, given: getattr(store.erasures, method)(**given),
            "Records": lambda method, given: _method(history.records(conversation="async-0"), method, given),
        }
        last = partial(history.outbox.read, last_position)
        kept = await call_all(invoke, world, last, tally, many=many, random=random)
        delivered = await history.drained(timeout=120)
        tally.require(delivered, f"not everything is delivered: {(await history.status()).lanes}")
        tally.blame(await history.outbox.read(blocked), where="blocked at delivery")
        await compared(store, kept, tally)
        await catch_up_index(store)
        await store.statistics()
        tally.blame(await differences(store), where="rows are not what their events say")
    return told(tally)
