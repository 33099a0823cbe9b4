"""A history store that was restored, cut short or tampered with is noticed without a restart, healed or reported."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from letopis.ops.verify import differences, read_reference
from letopis.outbox import Incident
from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.status import Status, read_status
from letopis.outbox.relay import reconcile
from letopis.store import ConversationStore
from letopis.store.database.engines import create_store_engine
from letopis.store.maintenance.continuity import LogCount
from tests.support.relays import DOWN, Hands, ToldStore, drained, lane, relay_on, running, say, until
from tests.support.sayings import present
from tests.support.servers import PostgresServer
from tests.support.statements import statements_of
from tests.support.store_changes import copied, put_back, run_there
from tests.support.verdicts import is_whole

NEVER = 1e9
SOON = 0.1
Every = Callable[[float], None]


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> Every:
    return lambda seconds: monkeypatch.setattr(reconcile, "RECONCILE_INTERVAL_SECONDS", seconds)


async def status_of(outbox: OutboxFile) -> Status:
    return await outbox.read(lambda connection: read_status(connection, now_us=outbox.now_us()))


async def contradictions(outbox: OutboxFile, url: str) -> list[str]:
    kept = present(read_reference(outbox.path))
    engine = create_store_engine(url, pool_size=1)
    try:
        return [one async for one in differences(kept, engine)]
    finally:
        await engine.dispose()


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_absorbed_fault_compares(
    outbox: OutboxFile, store: ConversationStore, store_url: str, every: Every
) -> None:
    every(NEVER)
    async with running(relay_on(outbox, store)) as relay:
        backup = await copied(store_url)
        await say(outbox, "quiet", 5)
        await drained(outbox)
        await put_back(store_url, backup)
        failing = [DOWN]
        apply = store.apply

        async def once(*given: Any) -> Any:
            if failing:
                raise failing.pop()
            return await apply(*given)

        store.apply = once  # type: ignore[method-assign]
        await say(outbox, "another", 1)

        await until(lambda: is_whole(outbox, store_url, 6 + 2))
        assert relay.breaker.trips == 0
        assert relay.stats.rewound == 6


async def test_a_lost_connection_makes_the_relay_compare(
    outbox: OutboxFile,
    fresh_postgresql_url: str,
    postgresql_server: PostgresServer,
    every: Every,
) -> None:
    every(NEVER)
    url = fresh_postgresql_url
    async with ConversationStore.open(url, migrate=True) as store, running(relay_on(outbox, store)) as relay:
        backup = await copied(url)
        await say(outbox, "quiet", 5)
        await drained(outbox)
        await put_back(url, backup)
        before = store.runtime.continuity.generation
        postgresql_server.terminate_connections(url)
        await say(outbox, "another", 1)

        await until(lambda: is_whole(outbox, url, 6 + 2))
        assert store.runtime.continuity.generation > before
        assert relay.breaker.trips == 0


async def test_a_user_is_not_told_of_what_was_saved_once(outbox: OutboxFile) -> None:
    store = ToldStore()
    told: list[Incident] = []
    watch = AlertMonitor(outbox, on_stuck=told.append)
    relay = relay_on(outbox, store)
    await say(outbox, "a", 2, owner="ann")
    await relay.drain()
    await outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us))
    store.lanes.clear()
    await relay_on(outbox, store).drain()
    await watch.observe_once()

    found = await status_of(outbox)
    assert (found.lost, [case.kind for case in found.incidents]) == (1, [IncidentKind.CONVERSATION_BLOCKED])
    assert told == []


@pytest.mark.parametrize(("gone", "missing"), [(9, [1]), (30, [0, 1, 2, 3, 4])])
async def test_a_long_log_is_counted_a_stretch_at_a_time(
    outbox: OutboxFile, store: ConversationStore, store_url: str, gone: int, missing: list[int]
) -> None:
    """And its end in each look."""
    await say(outbox, "a", 29)
    await relay_on(outbox, store).drain()
    quote = "`" if "mysql" in store_url else '"'
    await run_there(store_url, f"DELETE FROM letopis_events WHERE {quote}position{quote} = {gone}")
    looks = []
    after = 0
    while True:
        looks.append(await store.runtime.continuity.count(after, newest=5, length=7))
        after = looks[-1].next
        if not after:
            break

    assert [one.next for one in looks] == [7, 14, 21, 28, 0]
    assert [number for number, one in enumerate(looks) if one.missing] == missing


async def test_a_count_ends_at_heads_that_were_read_before(
    outbox: OutboxFile, store: ConversationStore, store_url: str
) -> None:
    """An engine that spreads tables may read the counter later than the events: that is no loss."""
    await say(outbox, "a", 2)
    await relay_on(outbox, store).drain()
    counts = [await store.runtime.continuity.count()]
    quote = "`" if "mysql" in store_url else '"'
    await run_there(store_url, f"UPDATE letopis_log_heads SET {quote}position{quote} = {quote}position{quote} + 3")
    counts += [await store.runtime.continuity.count() for _ in range(2)]

    assert [(count.missing, count.next) for count in counts] == [(0, 0), (0, 0), (3, 0)]


async def test_quiet_costs_a_few_statements(
    outbox: OutboxFile, store: ConversationStore, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The identity of the store is checked by the real clock, which would count on a busy machine.
    monkeypatch.setattr("letopis.store.database.store_identity.RECHECK_SECONDS", 3_600.0)
    relay = relay_on(outbox, store, hands=hands)
    for number in range(30):
        await say(outbox, f"c{number}", 2)
    await relay.drain()
    await relay.lease.acquire()
    for _ in range(3):  # the first count of the log asks where it ends
        hands.advance(reconcile.RECONCILE_INTERVAL_SECONDS)
        await relay.drain_once()
        await relay.drain_once()
    hands.advance(reconcile.RECONCILE_INTERVAL_SECONDS / 2)
    with statements_of(store) as statements:
        for _ in range(40):
            hands.advance(reconcile.RECONCILE_INTERVAL_SECONDS / 4)
            await relay.drain_once()
    # Each read of a file asks whose it is, in its own snapshot.
    asked = [text for text, _ in statements if not text.startswith(("BEGIN", "SELECT store_id FROM letopis_store"))]

    def count(table: str) -> int:
        return sum(table in statement for statement in asked)

    # Also whether the store was moved away, which a new connection is asked again, and how far its index is.
    embedded = store.runtime.engine.dialect.name == "sqlite"
    assert (count("letopis_lanes"), count("letopis_tasks"), count("letopis_store.")) == (5, 5, 10)
    # The check of the identity, ten times, brings the number of the last erasure along.
    assert (count("letopis_log_heads"), len(asked)) == ((20, 30) if embedded else (15, 25))


async def test_the_lanes_delivered_to_last_are_compared_each_time(
    outbox: OutboxFile, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many more lanes than one comparison takes."""
    monkeypatch.setattr(reconcile, "LANES_PER_REQUEST", 3)
    monkeypatch.setattr(reconcile, "MAX_RECENT_LANES", 1)
    store = ToldStore()
    relay = relay_on(outbox, store, hands=hands)
    for number in range(20):
        await say(outbox, f"b{number:02}")
    await relay.drain()
    await say(outbox, "zz", 2)
    await relay.drain()
    store.lanes["zz"].pop()
    await relay.lease.acquire()
    for _ in range(2):
        hands.advance(reconcile.RECONCILE_INTERVAL_SECONDS)
        await relay.drain_once()
    while await relay.drain_once():
        pass

    assert store.held("zz") == 3


async def test_another_relay_that_took_over_writes_nothing(outbox: OutboxFile) -> None:
    store = ToldStore()
    await say(outbox, "a", 2)
    relay = relay_on(outbox, store)
    await relay.drain()
    store.lanes.clear()
    store.runtime.continuity.look = LogCount(missing=1, partition=0, after=0, upto=3)
    looks = reconcile.Reconciler(outbox, store, clock=relay._dispatcher._clock)  # type: ignore[arg-type]

    assert (await looks.compare(-1)).fenced
    assert (await lane(outbox, "a")).delivered == 3
    looks._all_after, looks._log_next = None, True
    assert (await looks.compare(-1)).fenced
    assert (await status_of(outbox)).incidents == ()
