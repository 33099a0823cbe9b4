"""Whose fault a refusal is, on real stores: one event that fails like an outage, and a store that refuses all."""

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager

import pytest

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.model.messages import Message
from tests.support.relays import QUICK, drained, lane, relay_on, running, say, sql, until
from tests.support.required import required
from tests.support.sayings import NewStore
from tests.support.servers import MariaDBServer, OwnMariaDBServer
from tests.support.store_changes import run_there
from tests.support.verdicts import assert_whole

LIMIT = 30.0
"""Seconds that no sound conversation may wait for a bad one."""
SERVERS = ("postgresql", "mariadb")


class Counting(Breaker):
    """A breaker that asks a store in quick succession and counts its refusals."""

    def __init__(self) -> None:
        super().__init__(clock=Clock(), uniform=random.Random(7).uniform, probes=QUICK)
        self.refusals = 0

    def trip(self, fault: StoreFault, conversation_ids: Collection[str]) -> None:
        self.refusals += 1
        super().trip(fault, conversation_ids)


@asynccontextmanager
async def delivering(outbox: OutboxFile, url: str, breaker: Breaker | None = None) -> AsyncIterator[Relay]:
    async with ConversationStore.open(url, migrate=True) as store:
        relay = relay_on(outbox, store, breaker=breaker)
        async with running(relay):
            yield relay


@pytest.fixture(scope="module")
def small_packets() -> Iterator[OwnMariaDBServer]:
    with required("mariadb", MariaDBServer.own, settings={"max_allowed_packet": "512K"}) as own:
        yield own


async def test_packet_limit_holds_up_nobody_and_is_named(outbox: OutboxFile, small_packets: OwnMariaDBServer) -> None:
    """How long each sound message waits meanwhile is measured by the part ``blame`` of the proof."""
    url = small_packets.create_database()
    await outbox.append(prepare("bad", [Message.user("well"), Message.user("x" * 700_000)]))

    async def is_blocked_beside_talk() -> bool:
        await say(outbox, "c0")
        await asyncio.sleep(0.05)
        return (await lane(outbox, "bad")).state == "blocked"

    async def others_arrived() -> bool:
        return (await lane(outbox, "c0")).pending == 0

    async with delivering(outbox, url):
        await until(is_blocked_beside_talk, patience=LIMIT)
        await until(others_arrived, patience=LIMIT)
    small_packets.drop_database(url)
    stuck = await lane(outbox, "bad")

    assert stuck.delivered == 2
    assert "max_allowed_packet" in (stuck.fault or "")


@pytest.mark.parametrize(
    ("kind", "hurt", "mend"),
    [
        (
            "postgresql",
            "UPDATE letopis_log_heads SET position = 0",
            "UPDATE letopis_log_heads SET position = (SELECT max(position) FROM letopis_events)",
        ),
        *(
            (kind, "DELETE FROM letopis_conversations", "INSERT INTO letopis_conversations SELECT * FROM kept")
            for kind in ("sqlite", "mariadb")
        ),
    ],
    ids=["a log head set back", "rows deleted on sqlite", "rows deleted on mariadb"],
)
async def test_refusal_of_all_is_the_stores(
    outbox: OutboxFile, new_store_url: NewStore, hurt: str, mend: str, kind: str
) -> None:
    """And where a constraint refuses all, by the part ``blame`` of the proof."""
    url = new_store_url(kind)
    for number in range(5):
        await say(outbox, f"c{number}", 2)
    breaker = Counting()
    async with delivering(outbox, url, breaker) as relay:
        await drained(outbox)
        await run_there(url, "CREATE TABLE kept AS SELECT * FROM letopis_conversations", hurt)
        for _ in range(2):
            for number in range(5):
                await say(outbox, f"c{number}")

        await until(lambda: relay.breaker.outage is not None, patience=LIMIT)
        told = str(relay.breaker.outage)
        enough = breaker.refusals + (QUICK.attempts + 1) * 5  # all would have been blocked, had they been charged
        await until(lambda: breaker.refusals >= enough, patience=LIMIT)
        troubled = await sql(outbox, "SELECT count(*) FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'")
        assert troubled == [(0,)]
        assert not relay.breaker.closed

        await run_there(url, mend)
        await drained(outbox, patience=LIMIT)
    await assert_whole(outbox, url)

    assert "so it is the history store" in told
    assert "poison" in told


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "sqlite"])
async def test_an_ordinary_event_that_is_tried_out_leaves_nothing_behind(new_store_url: NewStore, kind: str) -> None:
    async with ConversationStore.open(new_store_url(kind), migrate=True, partitions=4) as store:
        for name in ("a", "b", "c", "d", "e"):
            await store.runtime.try_out(name)
        heads = [await store.head(number) for number in range(4)]
        found = await store.conversations()

    assert heads == [0, 0, 0, 0]
    assert not list(found)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_the_part_of_the_log_that_is_broken_is_the_one_that_is_tried(new_store_url: NewStore, kind: str) -> None:
    url = new_store_url(kind)
    async with ConversationStore.open(url, migrate=True, partitions=2) as store:
        refused = []
        await run_there(
            url,
            "ALTER TABLE letopis_events ADD CONSTRAINT half CHECK (partition <> 1)"
            if kind == "postgresql"
            else "ALTER TABLE letopis_events ADD CONSTRAINT half CHECK (`partition` <> 1)",
        )
        for number in range(12):
            try:
                await store.runtime.try_out(f"c{number}")
            except StoreFault as fault:
                refused.append(fault.fault_class)

    assert 0 < len(refused) < 12
    assert set(refused) == {FaultClass.POISON}
