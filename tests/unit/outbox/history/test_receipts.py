"""Receipts: True once the history store holds it, whichever process delivers it; False if it will not without help."""

import asyncio
import time
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa

from letopis.outbox import History, Receipt, Relay, Selection
from letopis.outbox.event_log.acknowledge import block_lane
from letopis.outbox.event_log.lanes import find_lane
from letopis.outbox.operations.pending_events import list_pending
from letopis.outbox.operations.repair import restore, skip
from letopis.store import Closed, Message, Saved
from tests.support.outboxes import open_apart, prune
from tests.support.relays import deliver_all, sql
from tests.support.sayings import present


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


async def test_a_blocked_conversation_is_told_at_once_and_not_waited_for(history: History) -> None:
    assert await history.drained(timeout=1)
    receipt = await history.append("c1", Message.user("hi"))
    assert not await history.drained(timeout=0.05)
    waiting = asyncio.ensure_future(receipt.saved())
    await asyncio.sleep(0.05)
    await sql(history.outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked'")
    assert not await asyncio.wait_for(waiting, 10)
    assert not await asyncio.wait_for(history.drained(), 10)
    assert await receipt.state() is Saved.BLOCKED


async def test_a_receipt_speaks_of_all_its_events(history: History) -> None:
    receipt = await history.append("c1", Message.user("1"), Message.user("2"), Message.user("3"))
    await Relay(history.outbox, history.store, batch=3).drain_once()
    assert not await receipt.saved(timeout=0.05)
    await Relay(history.outbox, history.store, batch=3).drain_once()
    assert await receipt.saved(timeout=60)


async def set_aside(history: History, receipt: Receipt) -> None:
    """Mark the first event of an append as set aside by the store."""
    mark = f"INSERT INTO letopis_outbox_superseded VALUES ('c1', 1, x'{receipt.event_ids[0].hex}', 0, 1)"
    await sql(history.outbox, mark)


async def test_one_event_that_was_set_aside_is_enough(history: History) -> None:
    receipt = await history.append("c1", Message.user("1"), Message.user("2"), Message.user("3"))
    await deliver_all(history)
    assert await receipt.saved(timeout=0) and not await receipt.superseded(timeout=0)
    await set_aside(history, receipt)
    assert not await receipt.saved(timeout=0) and await receipt.superseded(timeout=0)


async def test_what_was_set_aside_is_told_without_the_store(history: History, monkeypatch: Any) -> None:
    """A pruned event of a caller's transaction is asked for in the store, unless a mark says what became of it."""
    async with history.outbox.engine.begin() as connection:
        receipt = await history.append_in(connection, "c1", Message.user("kept"))
    await deliver_all(history)
    await prune(history, keep_last=0)
    await set_aside(history, receipt)
    with monkeypatch.context() as patch:
        patch.setattr(history._parts.gateway, "read", AsyncMock(return_value=None))
        assert await receipt.superseded(timeout=0)


async def test_draining_goes_on_while_something_can_be_delivered(history: History) -> None:
    await history.append("c1", Message.user("blocked"))
    await history.append("c2", Message.user("delivered"))
    await history.outbox.write(_block)
    waiting = asyncio.ensure_future(history.drained(timeout=20))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await Relay(history.outbox, history.store).drain()
    assert not await asyncio.wait_for(waiting, 10)  # at once: what is left waits for an operator


async def test_waiting_ends_with_the_history(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        receipt = await history.append("c1", Message.user("hi"))
        waiting = asyncio.ensure_future(receipt.saved())
        await asyncio.sleep(0.05)

    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await receipt.saved(timeout=1)


def _block(connection: sa.Connection) -> None:
    lane = present(find_lane(connection, "c1"))
    assert block_lane(connection, lane, attempts=4, fault_class="poison", fault="refused")


@pytest.mark.parametrize("put_back", [False, True])
async def test_a_skipped_event_is_not_called_saved_unless_it_was_put_back(history: History, put_back: bool) -> None:
    """A receipt of a skipped event waited for ever, and said "saved" once the tombstone had been pruned."""
    outbox = history.outbox
    await history.append("c1", Message.user("good"))
    await deliver_all(history)
    receipt = await history.append("c1", Message.user("bad"))
    await outbox.write(_block)
    await outbox.write(
        lambda connection: skip(connection, receipt.event_ids[0], reason="a test", now_us=outbox.now_us())
    )
    if put_back:
        await outbox.write(_block)
        [tombstone] = await outbox.read(lambda connection: list_pending(connection, Selection(), limit=10))
        await outbox.write(
            lambda connection: restore(connection, tombstone.event_id, reason="a mistake", now_us=outbox.now_us())
        )
    else:
        assert not await receipt.saved(timeout=20)
    assert await receipt.state() is (Saved.PENDING if put_back else Saved.BLOCKED)
    assert await Relay(outbox, history.store).drain() == 1
    await prune(history, keep_last=0)
    assert await receipt.saved(timeout=20) is put_back
    assert await receipt.state() is (Saved.SAVED if put_back else Saved.BLOCKED)


async def test_what_only_the_store_knows_is_pending_while_it_is_away(history: History, monkeypatch: Any) -> None:
    async with history.outbox.engine.begin() as connection:
        receipt = await history.append_in(connection, "c1", Message.user("kept"))
    await deliver_all(history)
    await prune(history, keep_last=0)

    with monkeypatch.context() as patch:
        patch.setattr(history._parts.gateway, "read", AsyncMock(return_value=None))
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
    await deliver_all(history)
    await prune(history, keep_last=0)

    for receipt in (taken_back, closed):
        assert not await receipt.saved(timeout=20)
        assert await receipt.state() is Saved.PENDING
    assert await kept.saved(timeout=20)
    assert await kept.state() is Saved.SAVED
