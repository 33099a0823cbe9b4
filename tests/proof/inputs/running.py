"""Make every call with one hostile argument, and look at what is left in the outbox and in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox import BlockingReceipt, History, Receipt, RetryPolicy
from letopis.outbox.event_log.schema import events as outbox_events
from letopis.store import ConversationRenamed, ConversationStore, Message
from tests.proof.inputs.calls import ANSWERED, ASKED, OWNER, TABLES, World, parameters
from tests.proof.inputs.judging import Kept, Tally, found_in
from tests.support.defects import planted
from tests.support.values.hostile import Hostile, sample, values

TIMEOUT_SECONDS: Final = 15.0  # seconds after which a call hangs
BLOCK_AT_ONCE: Final = RetryPolicy(base=0.01, attempts=0)  # what the store refuses is blocked at once, to be seen
EVERY: Final = ("conversation_id",)  # parameters of `append` that are given every value
SAYS_MORE: Final = {
    *(("Reply", method) for method in TABLES["Reply"]),
    *(("Receipt", method) for method in TABLES["Receipt"]),
    ("History", "reply"),
}
"""Calls that are tried after a message was appended: a reply that is broken off keeps what it has."""
CONDITIONS: Final = {"expected", "after", "fail_if_types", "every", "activate", "at", "turns", "confirm", "timeout"}
"""Parameters that decide whether a message is appended, and are not part of it."""


def plans(cls: str, *, many: int, random: Random) -> Iterator[tuple[str, str, list[Hostile]]]:
    """Yield method, parameter and values: all of them for the calls that every message goes through, otherwise some."""
    for method in TABLES[cls]:
        for parameter in parameters(cls, method):
            whole = cls == "History" and method == "append" and parameter in EVERY and many >= 8
            yield method, parameter, values() if whole else sample(many, random)


async def made_ready(history: History, prefix: str, ready: int) -> World:
    """Say something in some conversations."""
    world = World(prefix, ready, origin_id=history.outbox.origin.origin_id)
    await asyncio.gather(
        *(
            history.append(name, Message.user("words", id=ASKED), Message.assistant("more", id=ANSWERED), owner=OWNER)
            for name in world.names()
        )
    )
    return world


def last_position(connection: sa.Connection) -> int:
    """Return the place of the newest event in the outbox."""
    return connection.execute(sa.select(sa.func.coalesce(sa.func.max(outbox_events.c.position), 0))).scalar_one()


async def hostile_calls(history: History, store: ConversationStore, tally: Tally, *, many: int, random: Random) -> None:
    """Try all asynchronous classes."""
    world = await made_ready(history, "async", 20 + 40 * many)
    await history.drained(timeout=TIMEOUT_SECONDS)
    invoke: Mapping[str, Callable[[str, dict[str, Any]], Awaitable[Any]]] = {
        "History": lambda method, given: _history(history, method, given),
        "Chat": lambda method, given: _method(history.chat(given.pop("conversation_id")), method, given),
        "AllRecords": lambda method, given: _method(history.records, method, given),
        "ConversationStore": lambda method, given: _store(store, method, given),
        "OutboxAccess": lambda method, given: getattr(store.outbox_access, method)(**given),
        "Reply": lambda method, given: _reply(history, method, given),
        "Receipt": lambda method, given: _receipt(history, method, given),
        "Transaction": lambda method, given: _transaction(history, method, given),
        "Records": lambda method, given: _method(history.records(conversation="async-0"), method, given),
    }
    await call_all(invoke, world, lambda: history.outbox.read(last_position), tally, many=many, random=random)


async def call_all(
    invoke: Mapping[str, Callable[[str, dict[str, Any]], Awaitable[Any]]],
    world: World,
    last: Callable[[], Awaitable[int]],
    tally: Tally,
    *,
    many: int,
    random: Random,
) -> None:
    """Make each call of some classes with one hostile argument; ``last`` tells if that has left anything."""
    for cls, call in invoke.items():
        for method, parameter, some in plans(cls, many=many, random=random):
            before = await last()
            for hostile in some:
                label = f"{cls}.{method}({parameter}={hostile.name})"
                given = TABLES[cls][method](world)
                given[parameter] = hostile.value
                tally.tried += 1
                try:
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        outcome = await call(method, given)
                except TimeoutError:
                    tally.blame(f"{label}: hangs")
                except Exception as error:  # whatever comes is what is looked for
                    tally.refusal(label, error)
                    after = await last()
                    if after != before and (cls.removeprefix("Blocking"), method) not in SAYS_MORE:
                        tally.blame(f"{label}: refused, and {after - before} events are in the outbox all the same")
                    before = after
                else:
                    tally.accepted += 1
                    if isinstance(outcome, Receipt | BlockingReceipt) and parameter not in CONDITIONS:
                        tally.kept.append(Kept(label, hostile.value, outcome.conversation_id, outcome.event_ids))
                    before = await last()
            given = TABLES[cls][method](world)
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await call(method, given)
            except Exception as error:  # whatever comes is what is looked for
                tally.blame(f"{cls}.{method}: cannot be used after hostile {parameter}: {type(error).__name__} {error}")


async def looked_at(history: History, store: ConversationStore, tally: Tally) -> None:
    """Deliver everything, and compare what the store holds with what was accepted."""
    if not await history.drained(timeout=120):
        tally.blame(f"not everything is delivered: {(await history.status()).lanes}")
    tally.problems += [f"blocked at delivery: {words}" for words in await history.outbox.read(blocked)]
    await compared(store, tally)
    await _whole(store, tally)


async def compared(store: ConversationStore, tally: Tally) -> None:
    by_conversation: dict[str, list[Kept]] = {}
    for one in tally.kept:
        by_conversation.setdefault(one.conversation_id, []).append(one)
    for conversation_id, some in by_conversation.items():
        held = {}
        place: int | str | None = 0
        while place is not None:
            page = await store.events(conversation_id, after=place, limit=500)
            held.update({event.event_id: event for event in page})
            place = page.next
        for one in some:
            there = [held[event_id] for event_id in one.event_ids if event_id in held]
            tally.compared += 1
            if len(there) != len(one.event_ids):
                tally.blame(f"{one.label}: accepted, and {len(one.event_ids) - len(there)} events are not in the store")
            elif not found_in(one.value, there) and not _emptied(there):
                tally.blame(f"{one.label}: accepted, and not found equal in the store: {there[-1].data!a:.150}")


async def _whole(store: ConversationStore, tally: Tally) -> None:
    while await store.catch_up_search():
        pass
    await store.statistics()
    async for rebuilt in store.rebuild(check=True):
        if rebuilt.difference_count:
            tally.blame(f"rows of {rebuilt.conversation_id!a:.80} are not what its events say: {rebuilt.differences}")


def _emptied(events: list[Any]) -> bool:
    return all(event.digest is None for event in events)


def blocked(connection: sa.Connection) -> list[str]:
    """Return the conversations that the store refuses something of, and why."""
    found = connection.exec_driver_sql(
        "SELECT conversation_id, fault_class, fault FROM letopis_outbox_lanes WHERE state <> 'ready'"
    )
    return [ascii(tuple(row))[:200] for row in found]


async def blocked_at_delivery(url: str, folder: Path) -> list[str]:
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History(folder / "unchecked.outbox.db", store=store, policy=BLOCK_AT_ONCE) as history,
    ):
        with planted("text is not checked before it is appended"):
            for number in range(5):
                await history.append(f"nul-{number}", ConversationRenamed(title=f"a\0{number}"))
                # One that succeeds: otherwise the store would look like one that refuses everything.
                await history.append(f"sound-{number}", ConversationRenamed(title="sound"))
        await history.drained(timeout=10)
        return await history.outbox.read(blocked)


async def _method(subject: Any, method: str, given: dict[str, Any]) -> Any:
    more = given.pop("more", None)
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


async def _history(history: History, method: str, given: dict[str, Any]) -> Any:
    if method == "append_in":
        async with history.outbox.engine.begin() as connection:
            return await _method(history, method, {"connection": connection, **given})
    if method == "transaction":
        async with history.transaction() as transaction:
            return await transaction.append("async-0", Message.user("words"))
    if method == "reply":
        async with history.reply(**given) as reply:
            await reply.add("words")
            receipt = await reply.finish()
        return None if "every" in given else receipt
    return await _method(history, method, given)


async def _reply(history: History, method: str, given: dict[str, Any]) -> Any:
    async with history.reply("async-0", every=None) as reply:
        if method == "add":
            await reply.add(**given)
            return await reply.finish()
        await reply.add("words")
        if method == "finish":
            return await reply.finish(**given)
        await reply.finish()
        return await _method(reply, method, given)


async def _receipt(history: History, method: str, given: dict[str, Any]) -> Any:
    return await _method(await history.append("async-0", Message.user("words")), method, given)


async def _transaction(history: History, method: str, given: dict[str, Any]) -> Any:
    async with history.transaction() as transaction:
        if method != "append":
            given["records"] = history.records(conversation="async-0")
        return await _method(transaction, method, given)


async def proved(url: str, folder: Path, *, many: int, random: Random) -> Tally:
    """Try everything on one store."""
    tally = Tally()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ConversationStore.open(url, migrate=True))
        history = await stack.enter_async_context(
            History(folder / "hostile.outbox.db", store=store, policy=BLOCK_AT_ONCE)
        )
        await hostile_calls(history, store, tally, many=many, random=random)
        await looked_at(history, store, tally)
    return tally
