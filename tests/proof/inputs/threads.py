"""Make the same calls on the blocking history, from threads without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from letopis.outbox import BlockingHistory
from letopis.store import ConversationStore, Message
from tests.proof.inputs.calls import ANSWERED, ASKED, OWNER, World
from tests.proof.inputs.judging import Tally
from tests.proof.inputs.running import BLOCK_AT_ONCE, call_all, compared

Call = Callable[[str, dict[str, Any]], Any]


async def proved(url: str, folder: Path, *, many: int, random: Random) -> Tally:
    tally, world = Tally(), World("thread", 20 + 25 * many)
    path = folder / "blocking.outbox.db"
    opening = await asyncio.to_thread(BlockingHistory, path, store=url, policy=BLOCK_AT_ONCE)
    async with ConversationStore.open(url, migrate=True) as store:
        history = await asyncio.to_thread(opening.__enter__)
        try:
            await asyncio.to_thread(_talk, history, world)
            calls: dict[str, Call] = {
                "BlockingHistory": lambda method, given: _history(history, world, method, given),
                "BlockingChat": lambda method, given: _method(
                    history.chat(given.pop("conversation_id")), method, given
                ),
                "BlockingAllRecords": lambda method, given: _method(history.records, method, given),
                "BlockingReply": lambda method, given: _reply(history, world, method, given),
                "BlockingReceipt": lambda method, given: _method(
                    history.append(world.lasting, Message.user("words")), method, given
                ),
                "BlockingTransaction": lambda method, given: _transaction(history, method, given),
            }
            invoke = {cls: _in_a_thread(call) for cls, call in calls.items()}
            await call_all(invoke, world, lambda: asyncio.to_thread(_said, history), tally, many=many, random=random)
            if not await asyncio.to_thread(history.drained, timeout=120):
                tally.blame("not everything is delivered")
            status = await asyncio.to_thread(history.status)
            if any(status.lanes[state] for state in ("blocked", "retrying")):
                tally.blame(f"blocked at delivery: {status.lanes}")
        finally:
            await asyncio.to_thread(opening.__exit__, None, None, None)
        await compared(store, tally)
    return tally


def _in_a_thread(call: Call) -> Callable[[str, dict[str, Any]], Awaitable[Any]]:
    return lambda method, given: asyncio.to_thread(call, method, given)


def _talk(history: BlockingHistory, world: World) -> None:
    for name in world.names():
        history.append(name, Message.user("words", id=ASKED), Message.assistant("more", id=ANSWERED), owner=OWNER)


def _said(history: BlockingHistory) -> int:
    status = history.status()
    return status.pending + status.delivered


def _method(subject: Any, method: str, given: dict[str, Any]) -> Any:
    more = given.pop("more", None)
    function = getattr(subject, method)
    if more is not None:
        first = [given.pop(name) for name in ("conversation_id", "what", "message_id") if name in given]
        return function(*first, more, **given)
    return function(**given)


def _history(history: BlockingHistory, world: World, method: str, given: dict[str, Any]) -> Any:
    if method == "transaction":
        with history.transaction() as transaction:
            return transaction.append(world.lasting, Message.user("words"))
    if method == "reply":
        with history.reply(**given) as reply:
            reply.add("words")
            receipt = reply.finish()
        return None if "every" in given else receipt
    return _method(history, method, given)


def _reply(history: BlockingHistory, world: World, method: str, given: dict[str, Any]) -> Any:
    with history.reply(world.lasting, every=None) as reply:
        if method == "add":
            reply.add(**given)
            return reply.finish()
        reply.add("words")
        if method == "finish":
            return reply.finish(**given)
        reply.finish()
        return _method(reply, method, given)


def _transaction(history: BlockingHistory, method: str, given: dict[str, Any]) -> Any:
    with history.transaction() as transaction:
        return _method(transaction, method, given)
