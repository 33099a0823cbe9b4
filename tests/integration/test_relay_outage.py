"""A history store that is down at the start, goes down and comes back: a PostgreSQL of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.retry.circuit_breaker import BreakerState
from letopis.store.conversation_store import ConversationStore
from tests.campaigns.invariants import check
from tests.support.relays import drained, end, figures, relay_on, say, sql, until
from tests.support.required import required
from tests.support.servers import OwnPostgresServer, PostgresServer
from tests.support.servers.postgresql import StopMode


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgresServer]:
    with required("postgresql", PostgresServer.own) as own:
        yield own


@pytest.fixture
def url(server: OwnPostgresServer) -> str:
    server.start()
    return server.create_database()


async def talk(outbox: OutboxFile, turns: int) -> None:
    for number in range(turns):
        await say(outbox, f"c{number % 10}")
        await asyncio.sleep(0.002)


async def untroubled(outbox: OutboxFile) -> bool:
    """Return True if no attempt was charged to any conversation."""
    found = await sql(outbox, "SELECT count(*) FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'")
    return bool(found == [(0,)])


@pytest.mark.parametrize("mode", ["fast", "kill"])
async def test_store_that_returns_gets_the_rest(
    server: OwnPostgresServer, url: str, tmp_path: Path, mode: StopMode
) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    async with ConversationStore.open(url, migrate=True) as store:
        relay = relay_on(outbox, store)
        task = asyncio.create_task(relay.run())
        await talk(outbox, 50)
        await drained(outbox)

        await asyncio.to_thread(server.stop, mode)
        await talk(outbox, 300)
        await until(lambda: relay.breaker.state is not BreakerState.CLOSED)
        assert relay.breaker.outage is not None
        assert relay.breaker.outage.fault_class == "unavailable"
        assert await untroubled(outbox)
        behind = (await figures(outbox)).pending

        await asyncio.to_thread(server.start)
        await talk(outbox, 50)
        await drained(outbox, patience=90)
        await end(task)
        assert await untroubled(outbox)
    verdict = await check([outbox.path], url, drained=True)
    await outbox.close()

    assert verdict.ok, verdict
    assert verdict.stored == 410
    assert behind >= 300
    assert relay.breaker.closed
    assert relay.breaker.trips >= 1
    assert relay.stats.blocked == 0


async def test_store_down_at_the_start_is_waited_for(server: OwnPostgresServer, url: str, tmp_path: Path) -> None:
    async with ConversationStore.open(url, migrate=True):
        pass
    await asyncio.to_thread(server.stop)
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    store = ConversationStore(url)
    relay = relay_on(outbox, store)
    task = asyncio.create_task(relay.run())
    await talk(outbox, 30)
    await until(lambda: relay.breaker.state is not BreakerState.CLOSED)
    assert await untroubled(outbox)
    assert (await figures(outbox)).pending == 40

    await asyncio.to_thread(server.start)
    await drained(outbox, patience=90)
    await end(task)
    await store.close()
    verdict = await check([outbox.path], url, drained=True)
    await outbox.close()

    assert verdict.ok, verdict
    assert verdict.stored == 40


async def test_relay_told_to_stop_in_an_outage_stops(server: OwnPostgresServer, url: str, tmp_path: Path) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    async with ConversationStore.open(url, migrate=True) as store:
        relay = relay_on(outbox, store)
        task = asyncio.create_task(relay.run())
        await asyncio.to_thread(server.stop)
        await talk(outbox, 10)
        await until(lambda: relay.breaker.state is not BreakerState.CLOSED)
        relay.stop()
        async with asyncio.timeout(8):
            await task
    await asyncio.to_thread(server.start)
    await outbox.close()

    assert not relay.lease.held
