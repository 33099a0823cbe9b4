"""The relay into real history stores, and what may happen to them meanwhile."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.retry.circuit_breaker import BreakerState
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import normalise_url
from tests.campaigns.invariants import check
from tests.support.relays import drained, figures, lane, relay_on, running, say, sql, until
from tests.support.servers import MariaDBServer, PostgresServer
from tests.support.store_changes import run_there


async def test_everything_arrives_once_in_order(outbox: OutboxFile, store: ConversationStore, store_url: str) -> None:
    async with running(relay_on(outbox, store, batch=50)):
        for number in range(200):
            await say(outbox, f"c{number % 7}", 1 + number % 3)
        await drained(outbox)
    verdict = await check([outbox.path], store_url, drained=True)

    assert verdict.ok, verdict
    assert verdict.stored == 200 * 2 - 1 + 7
    texts = [one.text for one in await store.messages("c3")]
    assert len(texts) == sum(1 + number % 3 for number in range(3, 200, 7))


async def test_an_event_that_the_store_refuses_blocks_its_own_conversation_only(
    outbox: OutboxFile, store: ConversationStore, store_url: str
) -> None:
    if make_url(store_url).get_backend_name() == "sqlite":
        refuse = (
            "CREATE TRIGGER no BEFORE INSERT ON letopis_events WHEN NEW.conversation_id = 'bad' AND NEW.sequence = 3"
            " BEGIN SELECT raise(ABORT, 'no'); END"
        )
    else:
        refuse = "ALTER TABLE letopis_events ADD CONSTRAINT no CHECK (conversation_id <> 'bad' OR sequence <> 3)"
    await run_there(store_url, refuse)
    for number in range(60):
        await say(outbox, "bad" if number == 30 else f"c{number}", 4)

    async def only_one_left() -> bool:
        found = await figures(outbox)
        return found.lanes["blocked"] == 1 and found.pending == 3

    async with running(relay_on(outbox, store)) as relay:
        await until(only_one_left, patience=60)
    stuck = await lane(outbox, "bad")
    assert (stuck.delivered, stuck.attempts, stuck.fault_class) == (2, 4, "poison")
    assert relay.stats.faults["poison"] > 0
    assert relay.breaker.trips == 0

    undo = "DROP TRIGGER no" if "sqlite" in store_url else "ALTER TABLE letopis_events DROP CONSTRAINT no"
    await run_there(store_url, undo)
    await sql(outbox, "UPDATE letopis_outbox_lanes SET state = 'ready', attempts = 0 WHERE state = 'blocked'")
    assert await relay_on(outbox, store).drain() == 3
    assert (verdict := await check([outbox.path], store_url, drained=True)).ok, verdict


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_connections_that_are_cut_while_it_drains_cost_nothing(
    outbox: OutboxFile, new_store_url: Callable[[str], str], request: pytest.FixtureRequest, kind: str
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
    verdict = await check([outbox.path], url, drained=True)
    trouble = await sql(outbox, "SELECT count(*) FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'")

    assert verdict.ok, verdict
    assert trouble == [(0,)]
    assert relay.stats.blocked == 0
    assert relay.stats.faults.total() > 0


async def test_an_sqlite_store_that_is_locked_for_long_counts_as_away(outbox: OutboxFile, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    async with ConversationStore.open(url, timeouts=Timeouts(lock=0.1)) as store:
        engine = create_async_engine(normalise_url(url))
        await say(outbox, "a", 5)
        async with engine.connect() as other:
            await other.exec_driver_sql("BEGIN EXCLUSIVE")
            relay = relay_on(outbox, store)
            assert await relay.drain() == 0
            assert relay.breaker.state is BreakerState.OPEN
            assert (await lane(outbox, "a")).attempts == 0
            await other.exec_driver_sql("ROLLBACK")
        await engine.dispose()
        async with running(relay):
            await drained(outbox)

    assert relay.breaker.closed
    assert relay.stats.delivered == 6


async def test_a_missing_schema_waits_for_a_person_and_charges_nobody(
    outbox: OutboxFile, fresh_postgresql_url: str
) -> None:
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


async def test_a_store_file_restored_from_an_older_copy_heals_from_the_tail(outbox: OutboxFile, tmp_path: Path) -> None:
    file, backup = tmp_path / "history.db", tmp_path / "backup.db"
    url = f"sqlite:///{file}"
    for name in ("quiet", "loud"):
        await say(outbox, name, 10)
    async with ConversationStore.open(url) as store:
        await relay_on(outbox, store).drain()
    shutil.copy(file, backup)
    for name in ("quiet", "loud", "new"):
        await say(outbox, name, 30)
    async with ConversationStore.open(url) as store:
        await relay_on(outbox, store).drain()
    shutil.copy(backup, file)
    await say(outbox, "loud", 1)
    async with ConversationStore.open(url) as store:
        relay = relay_on(outbox, store)
        await relay.drain()
    verdict = await check([outbox.path], url, drained=True)

    assert verdict.ok, verdict
    assert verdict.stored == 11 + 11 + 31 + 60 + 1
    assert relay.stats.rewound == 30 + 30 + 31


async def test_a_server_that_lost_its_newest_rows_while_the_relay_ran_heals_from_the_tail(
    outbox: OutboxFile, fresh_postgresql_url: str
) -> None:
    """As after a failover to a standby that was behind: only a new event, or an outage, makes the relay look."""
    url = fresh_postgresql_url
    async with ConversationStore.open(url, migrate=True) as store, running(relay_on(outbox, store)) as relay:
        for name in ("quiet", "loud"):
            await say(outbox, name, 20)
        await drained(outbox)
        await run_there(
            url,
            "DELETE FROM letopis_events WHERE version > 8",
            "DELETE FROM letopis_messages WHERE version > 8",
            "UPDATE letopis_lanes SET sequence = 8",
            "UPDATE letopis_conversations SET version = 8, message_count = 7",
            # The newest positions are given out again, as they would be on the standby.
            "WITH kept AS (SELECT conversation_id, version, row_number() OVER (ORDER BY position) AS place"
            " FROM letopis_events) UPDATE letopis_events AS e SET position = -kept.place FROM kept"
            " WHERE e.conversation_id = kept.conversation_id AND e.version = kept.version",
            "UPDATE letopis_events SET position = -position",
            "UPDATE letopis_log_heads SET position = 16",
        )
        await say(outbox, "loud", 1)

        async def whole() -> bool:
            return (await check([outbox.path], url, drained=True)).ok

        await until(whole, patience=30)
    verdict = await check([outbox.path], url, drained=True)

    assert verdict.stored == 21 + 22
    assert relay.stats.rewound == 13 + 13


async def test_two_relays_without_the_lock_do_no_harm_to_a_real_store(
    outbox: OutboxFile, store: ConversationStore, store_url: str
) -> None:
    async with (
        running(relay_on(outbox, store, batch=11, locked=False)) as one,
        running(relay_on(outbox, store, batch=11, locked=False)) as two,
    ):
        for number in range(150):
            await say(outbox, f"c{number % 4}", 2)
        await drained(outbox, patience=60)
    verdict = await check([outbox.path], store_url, drained=True)

    assert verdict.ok, verdict
    assert verdict.stored == 304
    assert one.stats.acks_fenced + two.stats.acks_fenced > 0


async def test_no_row_of_the_store_is_read_or_written_in_an_open_transaction_of_the_outbox(
    outbox: OutboxFile, store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a request to the store is in progress, the outbox file can be written."""
    apply = store.apply
    held = []

    async def slow(*arguments: object) -> object:
        result = await apply(*arguments)  # type: ignore[arg-type]
        start = asyncio.get_running_loop().time()
        await say(outbox, "meanwhile")
        held.append(asyncio.get_running_loop().time() - start)
        return result

    monkeypatch.setattr(store, "apply", slow)
    for _ in range(3):
        await say(outbox, "a", 5)
        await relay_on(outbox, store).drain_once()

    assert len(held) == 3
    assert max(held) < 1.0
