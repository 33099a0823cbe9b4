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
from tests.support.relays import QUICK, end, until
from tests.support.sayings import NewStore, present


async def test_bot_goes_on_through_it(tmp_path: Path, new_store_url: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old, new = tmp_path / "bot.outbox.db", new_store_url("sqlite"), new_store_url("postgresql")
    reached, go = hold_handover(monkeypatch)
    said: list[str] = []
    ids: list[Any] = []
    alone = asyncio.Lock()

    async def say(history: History) -> Any:
        said.append(f"message {len(said)}")
        receipt = await history.append("chat", Message.user(said[-1]), owner="42")
        ids.extend(receipt.event_ids)
        return receipt

    async def talk(history: History) -> None:
        while True:
            async with alone:
                await say(history)
                page = await history.messages("chat", last=10)
            # Complete it is not always: a store that refuses the relay counts as away.
            assert [one.text for one in page] == said[-10:]
            await asyncio.sleep(0.01)

    async with History(path, store=old, policy=QUICK) as history:
        first = await say(history)
        for _ in range(30):
            await say(history)
        assert await first.saved(timeout=30)
        talking = asyncio.create_task(talk(history))
        run = asyncio.create_task(move(old, new))
        await asyncio.wait_for(reached.wait(), 60)

        # The pause: neither store takes deliveries, and the relay says why.
        relay = present(history.relay)
        await until(lambda: relay.breaker.reason == "wrong_store moved")
        before, count = await dump(old), len(said)
        await until(lambda: len(said) > count + 20 or talking.done(), patience=30)
        assert not talking.done(), talking.result()
        async with alone:
            waiting = await say(history)
        assert not await waiting.saved(timeout=0.2)
        status = await history.status()
        assert status.pending > 0
        assert status.wrong_store
        assert not status.healthy
        go.set()
        await asyncio.wait_for(run, 60)

        # The move is over, and the bot still names the old store.
        count = len(said)
        await until(lambda: len(said) > count + 20 or talking.done(), patience=30)
        assert not talking.done(), talking.result()
        async with alone:  # between two messages
            await end(talking)
        fault = present(await find_refusal(history.outbox, history.store))
        assert fault.code == "moved"
        assert "postgresql://" in str(fault)
        assert await first.saved(timeout=60)  # what was saved before stays so
        assert not await waiting.saved(timeout=0.2)
        assert await dump(old) == before

    async with History(path, store=new, policy=QUICK) as history:
        last = await say(history)
        assert await last.saved(timeout=30)
        assert await history.drained(timeout=30)
        page = await history.messages("chat", last=len(said) + 1)
        assert [one.text for one in page] == said
        assert page.complete
        assert (await history.status()).healthy
    assert await dump(old) == before
    assert (await held(new, "chat"))["chat"][1:] == ids  # conversation.started comes first
    assert await sound(new) == []
    async with ConversationStore.open(new, migrate=False) as store:
        assert (await store.identity()).moved_to is None
