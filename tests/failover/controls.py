"""Promote a standby that lacks the tail, and deliver without the duplicate check: both have to be noticed."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from letopis.outbox.event_log.retention import Retention
from letopis.outbox.retry.policy import PROBE_POLICY
from letopis.store.database.faults import FaultClass
from tests.campaigns.invariants import read_outbox
from tests.failover.load import judge
from tests.proof.harness import Tally, migrated
from tests.proof.network.bots import Watched, drain, talking, total
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.defects import DUPLICATES_TAKEN, planted
from tests.support.peers import Wire
from tests.support.relays import until
from tests.support.servers import ServerUnavailable
from tests.support.servers.replicas import PostgresPair
from tests.support.store_changes import drop_event_id_index

RETAINED: Final = "a standby without the tail is promoted, the outboxes retain it"
PRUNED: Final = "a standby without the tail is promoted, the outboxes have pruned it"
DOUBLED: Final = "relays have no duplicate check; answers to COMMIT are lost, then the primary"
PRUNE_ALL: Final = Retention(keep_last=0, keep_for=timedelta(0))
UNHEARD: Final = 5  # commits whose answer is lost


def prove(options: Options) -> Iterator[Row]:
    for what in (PRUNED, DOUBLED) if options.short else (RETAINED, PRUNED, DOUBLED):
        options.tell(what)
        folder = options.folder / what
        folder.mkdir()
        try:
            with PostgresPair.running(synchronous=what == DOUBLED) as pair:
                asyncio.run(migrated(pair.url))
                yield asyncio.run(_doubled(pair, folder) if what == DOUBLED else _behind(pair, folder, what))
        except ServerUnavailable as reason:
            yield Row(what=what, control=what != RETAINED, missing=str(reason))


async def _behind(pair: PostgresPair, folder: Path, what: str) -> Row:
    """Deliver to a primary what its standby does not get, and promote that."""
    prunes = what == PRUNED
    stores, retention = [Watched(pair.url)], PRUNE_ALL if prunes else None
    async with talking(
        folder, stores, outboxes=3, pace=0.05, seed=what, probes=PROBE_POLICY, retention=retention
    ) as bots:
        await asyncio.sleep(1)
        await asyncio.to_thread(pair.settle)
        await asyncio.to_thread(pair.detach)
        before = total(bots, lambda bot: bot.relay.stats.delivered)
        await asyncio.sleep(2)
        await drain(bots, patience=30)
        tail = total(bots, lambda bot: bot.relay.stats.delivered) - before
        if prunes:
            await until(lambda: not any(read_outbox(bot.outbox.path).events for bot in bots))
        await asyncio.to_thread(pair.kill)
        await asyncio.to_thread(pair.promote)
        for bot in bots:
            bot.talking = True
        await asyncio.sleep(2)
        verdict = await judge(
            bots, pair.replica.database_url(_database(pair)), drained=not prunes, patience=4 if prunes else 60
        )
        again = total(bots, lambda bot: bot.relay.stats.rewound)
        blocked = total(bots, lambda bot: bot.relay.stats.blocked)
    tally = Tally(tail)
    tally.take(verdict)
    tally.require(prunes or bool(again), "nothing was sent again")
    tally.notes = (
        f"{tally.acknowledged:,} events acknowledged, {tail:,} of them delivered and not replicated; {again:,} sent"
        f" again, {blocked:,} conversations blocked"
    )
    return tally.row(what, "asynchronous pair", "events behind", 1, control=prunes)


async def _doubled(pair: PostgresPair, folder: Path) -> Row:
    """Lose the answers to commits, and then the primary; its standby holds everything."""
    await drop_event_id_index(pair.primary.database_url(_database(pair)))
    wire = Wire(pair.primary.port)
    with planted(DUPLICATES_TAKEN):
        async with wire.open() as port:
            stores = [Watched(f"{pair.url.replace(str(pair.primary.port), str(port), 1)}?sslmode=disable")]
            async with talking(folder, stores, outboxes=3, pace=0.05, seed=DOUBLED, probes=PROBE_POLICY) as bots:
                wire.heard = True
                async with asyncio.timeout(60):
                    while (unheard := _unheard(stores[0])) < UNHEARD:
                        wire.cut_at = b"COMMIT;"
                        await asyncio.sleep(0.1)
                        wire.cut_at = None
                        await asyncio.sleep(1)  # to connect again: there is a COMMIT in that, too
                await asyncio.to_thread(pair.kill)
                await asyncio.to_thread(pair.promote)
                verdict = await judge(bots, pair.replica.database_url(_database(pair)), patience=4)
    tally = Tally(unheard)
    tally.take(verdict)
    tally.notes = f"{tally.acknowledged:,} events acknowledged, {tally.stored:,} stored"
    return tally.row(DOUBLED, "synchronous pair", "commits unheard", 1, control=True)


def _unheard(store: Watched) -> int:
    return sum(count for fault, count in store.seen.items() if fault.startswith(FaultClass.UNKNOWN_OUTCOME))


def _database(pair: PostgresPair) -> str:
    return pair.url.rpartition("/")[2]
