"""Receipts: True once the history store holds it, whichever process delivers it; False if it will not without help."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox import History, Receipt, Relay, Retention, Selection
from letopis.outbox.event_log.acknowledge import block_lane
from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.event_log.retention import Pruner
from letopis.outbox.operations.pending_events import list_pending
from letopis.outbox.operations.repair import restore, skip
from letopis.store import Closed, Message, Saved
from tests.support.apart import open_apart
from tests.support.pruning import prune
from tests.support.relays import sql


async def test_the_relay_in_the_process_makes_it_true(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        receipt = await history.append("c1", Message.user("hi"))

        assert await receipt.saved(timeout=20)
        assert await receipt.state() is Saved.SAVED
        assert [one.saved for one in await history.messages("c1")] == [Saved.SAVED]


async def test_many_receipts_wait_at_once(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        receipts = [await history.append(f"c{number % 9}", Message.user(str(number))) for number in range(90)]

        assert all(await asyncio.gather(*(receipt.saved(timeout=20) for receipt in receipts)))


async def test_a_relay_in_another_process_makes_it_true(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        receipt = await history.append("c1", Message.user("hi"))
        async with open_apart(tmp_path / "bot.outbox.db"):
            assert await receipt.saved(timeout=60)


async def test_without_a_relay_it_is_false_when_the_time_is_over(history: History) -> None:
    receipt = await history.append("c1", Message.user("hi"))
    started = time.monotonic()

    assert not await receipt.saved(timeout=0.2)

    assert 0.15 < time.monotonic() - started < 20
    assert await receipt.state() is Saved.PENDING


async def test_a_blocked_conversation_is_told_at_once(history: History) -> None:
    receipt = await history.append("c1", Message.user("hi"))
    waiting = asyncio.ensure_future(receipt.saved())
    await asyncio.sleep(0.05)

    await sql(history.outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked'")

    assert not await asyncio.wait_for(waiting, 10)
    assert await receipt.state() is Saved.BLOCKED


async def test_a_receipt_of_an_append_that_was_pruned_is_true(history: History) -> None:
    receipt = await history.append("c1", Message.user("hi"))
    await Relay(history.outbox, history.store).drain_once()
    await sql(history.outbox, "UPDATE letopis_outbox_lanes SET pruned = delivered")
    await sql(history.outbox, "DELETE FROM letopis_outbox_events")

    assert await receipt.saved(timeout=60)


async def test_a_receipt_speaks_of_all_its_events(history: History) -> None:
    receipt = await history.append("c1", Message.user("1"), Message.user("2"), Message.user("3"))

    await Relay(history.outbox, history.store, batch=3).drain_once()
    assert not await receipt.saved(timeout=0.05)
    await Relay(history.outbox, history.store, batch=3).drain_once()
    assert await receipt.saved(timeout=60)


async def test_a_cancelled_wait_leaves_nothing_behind(history: History) -> None:
    receipt = await history.append("c1", Message.user("hi"))
    waiting = asyncio.ensure_future(receipt.saved())
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert not history._parts.deliveries._waiters


async def test_waiting_ends_with_the_history(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        receipt = await history.append("c1", Message.user("hi"))
        waiting = asyncio.ensure_future(receipt.saved())
        await asyncio.sleep(0.05)

    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await receipt.saved(timeout=1)


async def test_drained_says_when_nothing_is_pending(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        assert await history.drained(timeout=1)
        for number in range(30):
            await history.append(f"c{number % 3}", Message.user(str(number)))

        assert await history.drained(timeout=20)
        assert (await history.status()).pending == 0


async def test_drained_does_not_wait_for_what_waits_for_a_person(history: History) -> None:
    await history.append("c1", Message.user("hi"))
    assert not await history.drained(timeout=0.05)
    await sql(history.outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked'")

    assert not await asyncio.wait_for(history.drained(), 10)


def _block(connection: sa.Connection) -> None:
    lane = find_lane(connection, "c1")
    assert lane is not None
    assert block_lane(connection, lane, attempts=4, fault_class="poison", fault="refused")


async def _skipped(history: History, relay: Relay) -> Receipt:
    """Have an event blocked and skipped; return its receipt."""
    await history.append("c1", Message.user("good"))
    await relay.drain()
    receipt = await history.append("c1", Message.user("bad"))
    await history.outbox.write(_block)
    await history.outbox.write(
        lambda connection: skip(connection, receipt.event_ids[0], reason="a test", now_us=history.outbox.now_us())
    )
    return receipt


async def test_a_skipped_event_is_never_called_saved(history: History) -> None:
    """A receipt of a skipped event waited for ever, and said "saved" once the tombstone had been pruned."""
    outbox, relay = history.outbox, Relay(history.outbox, history.store)
    receipt = await _skipped(history, relay)

    assert not await receipt.saved(timeout=20)
    assert await receipt.state() is Saved.BLOCKED

    assert await relay.drain() == 1
    await outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))

    assert not await receipt.saved(timeout=20)
    assert await receipt.state() is Saved.BLOCKED


async def test_a_skipped_event_that_was_put_back_is_saved_again(history: History) -> None:
    """The counterpart: what was skipped, put back and delivered is saved, also when it has been let go."""
    outbox, relay = history.outbox, Relay(history.outbox, history.store)
    receipt = await _skipped(history, relay)
    await outbox.write(_block)
    [tombstone] = await outbox.read(lambda connection: list_pending(connection, Selection(), limit=10))
    await outbox.write(
        lambda connection: restore(connection, tombstone.event_id, reason="a mistake", now_us=outbox.now_us())
    )

    assert await receipt.state() is Saved.PENDING
    assert await relay.drain() == 1
    await outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))

    assert await receipt.saved(timeout=20)


async def test_what_only_the_store_knows_is_pending_while_it_is_away(history: History, monkeypatch: Any) -> None:
    async with history.outbox.engine.begin() as connection:
        receipt = await history.append_in(connection, "c1", Message.user("kept"))
    await Relay(history.outbox, history.store).drain()
    await prune(history, keep_last=0)

    async def away(ask: object) -> None:
        return None

    with monkeypatch.context() as patch:
        patch.setattr(history._parts.gateway, "read", away)
        assert not await receipt.saved(timeout=0)
        assert await receipt.state() is Saved.PENDING
    assert await receipt.saved(timeout=20)
    assert await receipt.state() is Saved.SAVED


async def test_what_the_caller_rolled_back_is_never_called_saved(history: History) -> None:
    """A receipt of ``append_in`` did not hear of a rollback: it waited for ever, and said "saved" once the event that
    took its place had been delivered and pruned."""
    async with history.outbox.engine.connect() as connection:
        kept = await history.append_in(connection, "c1", Message.user("kept"))
        await connection.commit()
        taken_back = await history.append_in(connection, "c1", Message.user("never"))
        await connection.rollback()
        closed = await history.append_in(connection, "c1", Message.user("never either"))
    for receipt in (taken_back, closed):
        assert not await receipt.saved(timeout=0)
    await history.append("c1", Message.user("other"))
    await Relay(history.outbox, history.store).drain()
    await history.outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), history.outbox.now_us))

    for receipt in (taken_back, closed):
        assert not await receipt.saved(timeout=20)
        assert await receipt.state() is Saved.PENDING
    assert await kept.saved(timeout=20)
    assert await kept.state() is Saved.SAVED
