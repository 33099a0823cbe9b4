"""The relay into real history stores, and what may happen to them meanwhile."""

from __future__ import annotations

import asyncio
import random

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.retry.circuit_breaker import BreakerState
from letopis.store.conversation_store import ConversationStore
from tests.support.relays import drained, figures, lane, relay_on, running, say, sql, until
from tests.support.sayings import NewStore
from tests.support.servers import MariaDBServer, PostgresServer
from tests.support.verdicts import assert_whole


async def test_everything_arrives_once_in_order(outbox: OutboxFile, store: ConversationStore, store_url: str) -> None:
    async with running(relay_on(outbox, store, batch=50)):
        for number in range(200):
            await say(outbox, f"c{number % 7}", 1 + number % 3)
        await drained(outbox)
    await assert_whole(outbox, store_url, 200 * 2 - 1 + 7)
    texts = [one.text for one in await store.messages("c3")]
    assert len(texts) == sum(1 + number % 3 for number in range(3, 200, 7))


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_connections_that_are_cut_while_it_drains_cost_nothing(
    outbox: OutboxFile, new_store_url: NewStore, request: pytest.FixtureRequest, kind: str
) -> None:
    url = new_store_url(kind)
    server: PostgresServer | MariaDBServer = request.getfixturevalue(f"{kind}_server")
    chance = random.Random(5)
    cuts = 0
    for number in range(40):
        await say(outbox, f"c{number % 20}", 20)
    async with ConversationStore.open(url, migrate=True) as store:
        relay = relay_on(outbox, store, batch=20)
        async with running(relay):
            while cuts < 8:
                await asyncio.sleep(chance.uniform(0.05, 0.25))
                cut = await asyncio.to_thread(server.terminate_connections, url)
                cuts += cut > 0
                if (await figures(outbox)).pending < 300:
                    for number in range(20):
                        await say(outbox, f"c{number}", 20)
            await drained(outbox, patience=90)
    await assert_whole(outbox, url)

    assert await untroubled(outbox)
    assert relay.stats.blocked == 0
    assert relay.stats.faults.total() > 0


async def test_missing_schema_waits_and_charges_nobody(outbox: OutboxFile, fresh_postgresql_url: str) -> None:
    await say(outbox, "a", 5)
    store = ConversationStore(fresh_postgresql_url)  # made without migrate=True: a server is migrated by an operator
    relay = relay_on(outbox, store)
    try:
        async with running(relay):
            await until(lambda: relay.breaker.state is BreakerState.OPEN)
            assert (relay.breaker.reason or "").startswith("misconfigured")
            async with ConversationStore.open(fresh_postgresql_url, migrate=True):
                pass
            await drained(outbox)
    finally:
        await store.close()

    assert (await lane(outbox, "a")).attempts == 0
    assert relay.stats.delivered == 6


async def test_outbox_stays_free(outbox: OutboxFile, store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a request to the store is in progress, the outbox file can be written: otherwise that waits in vain."""
    apply = store.apply
    written = []

    async def slow(*arguments: object) -> object:
        result = await apply(*arguments)  # type: ignore[arg-type]
        written.append(await say(outbox, "meanwhile"))
        return result

    monkeypatch.setattr(store, "apply", slow)
    for _ in range(3):
        await say(outbox, "a", 5)
        await relay_on(outbox, store).drain_once()

    assert len(written) == 3


async def untroubled(outbox: OutboxFile) -> bool:
    """Return True if no attempt was charged to any conversation."""
    found = await sql(outbox, "SELECT count(*) FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'")
    return bool(found == [(0,)])
