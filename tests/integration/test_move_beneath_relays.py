"""A move beneath a bot with its own relay: the bot appends and reads all along, and continues in the new store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.outbox.relay.store_binding import find_refusal
from letopis.store import ConversationStore, Message, move
from tests.support.moves import dump, held, hold_handover, sound
from tests.support.relays import QUICK, until
from tests.support.sayings import NewStore, present


async def test_bot_goes_on_through_it(tmp_path: Path, new_store_url: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old, new = tmp_path / "bot.outbox.db", new_store_url("sqlite"), new_store_url("postgresql")
    reached, go = hold_handover(monkeypatch)
    said: list[str] = []
    ids: list[Any] = []

    async def say(history: History, count: int) -> Any:
        """Say something this many times, and read what was said last; return the last receipt."""
        for _ in range(count):
            said.append(f"message {len(said)}")
            receipt = await history.append("chat", Message.user(said[-1]), owner="42")
            ids.extend(receipt.event_ids)
            # Complete it is not always: a store that refuses the relay counts as away.
            assert [one.text for one in await history.messages("chat", last=10)] == said[-10:]
            await asyncio.sleep(0.01)
        return receipt

    async with History(path, store=old, policy=QUICK) as history:
        first = await say(history, 30)
        assert await first.saved(timeout=30)
        run = asyncio.create_task(move(old, new))
        while not reached.is_set():
            await say(history, 1)

        # The pause: neither store takes deliveries, and the relay says why.
        waiting = await say(history, 1)
        relay = present(history.relay)
        await until(lambda: relay.breaker.reason == "wrong_store moved")
        before = await dump(old)
        await say(history, 20)
        assert not await waiting.saved(timeout=0.2)
        status = await history.status()
        assert (status.pending > 0, status.wrong_store, status.healthy) == (True, True, False)
        go.set()
        await asyncio.wait_for(run, 60)

        # The move is over, and the bot still names the old store.
        await say(history, 20)
        fault = present(await find_refusal(history.outbox, history.store))
        assert (fault.code, "postgresql://" in str(fault)) == ("moved", True)
        assert await first.saved(timeout=60)  # what was saved before stays so
        assert not await waiting.saved(timeout=0.2)
        assert await dump(old) == before

    async with History(path, store=new, policy=QUICK) as history:
        assert await (await say(history, 1)).saved(timeout=30)
        assert await history.drained(timeout=30)
        page = await history.messages("chat", last=len(said) + 1)
        assert ([one.text for one in page], page.complete) == (said, True)
        assert (await history.status()).healthy
    assert await dump(old) == before
    assert (await held(new, "chat"))["chat"][1:] == ids  # conversation.started comes first
    assert await sound(new) == []
    async with ConversationStore.open(new, migrate=False) as store:
        assert (await store.identity()).moved_to is None
