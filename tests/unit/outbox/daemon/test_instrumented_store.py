"""An instrumented store delivers as any other, and measures duration and outcome."""

import asyncio
from pathlib import Path

import pytest

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.daemon.store_pool import Durations, InstrumentedStore, StorePool
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from tests.support.peers import refused_port, silent
from tests.support.relays import figures, say


def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    durations = Durations()
    for seconds in (0.001, 0.005, 0.006, 1_000.0):
        durations.add(seconds)
    assert (durations.buckets[:2], durations.buckets[-1]) == ([2, 1], 1)
    assert (durations.count, durations.total) == (4, pytest.approx(1_000.012))


def counted(store: InstrumentedStore) -> dict[str, int]:
    return {outcome: one.count for outcome, one in store.deliveries.items()}


async def test_deliveries_are_counted_by_outcome(outbox: OutboxFile, tmp_path: Path) -> None:
    await say(outbox, "c1", 3)
    store = InstrumentedStore(ConversationStore(tmp_path / "history.db"))
    relay = Relay(outbox, store.store, apply=store.apply)
    before = relay._dispatcher._clock.monotonic()
    await relay.drain()

    assert (await figures(outbox)).pending == 0
    assert counted(store) == {"ok": 1}
    assert store.progress_at[outbox.origin.origin_id] >= before
    await store.store.close()


async def test_a_fault_is_counted_by_its_class_and_comes_as_it_is(outbox: OutboxFile) -> None:
    store = InstrumentedStore(ConversationStore(f"postgresql://bot@127.0.0.1:{await refused_port()}/h"))
    with pytest.raises(StoreFault):
        await store.apply(outbox.origin, [])
    assert counted(store) == {"unavailable": 1}
    await store.store.close()


async def test_a_delivery_whose_deadline_came_first_is_given_up(outbox: OutboxFile) -> None:
    async with silent() as port:
        store = InstrumentedStore(ConversationStore(f"postgresql://bot@127.0.0.1:{port}/h"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.apply(outbox.origin, [])
        await store.store.close()

    assert counted(store) == {"given_up": 1}


async def test_a_store_that_rested_keeps_the_options_of_its_url(tmp_path: Path) -> None:
    handle = StorePool("postgresql://user@host/db?connections=7", clock=Clock()).get(tmp_path / "a.outbox.db")
    await handle.rest()
    assert handle.store._runtime.engine.pool.size() == 7  # type: ignore[attr-defined]
