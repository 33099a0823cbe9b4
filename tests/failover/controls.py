"""Promote a standby that lacks the tail: outboxes that have pruned it cannot send it again, and that has to be noticed.

That doubles would be noticed too shows the proof's part `network`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from letopis.outbox import Retention
from letopis.outbox.retry.policy import PROBE_POLICY
from tests.campaigns.invariants import read_outbox
from tests.failover.load import judge
from tests.proof.harness import Tally, migrated
from tests.proof.network.bots import Watched, drain, talking, total
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.relays import until
from tests.support.servers import ServerUnavailable
from tests.support.servers.replicas import PostgresPair

RETAINED: Final = "a standby without the tail is promoted, the outboxes retain it"
PRUNED: Final = "a standby without the tail is promoted, the outboxes have pruned it"
PRUNE_ALL: Final = Retention(keep_last=0, keep_for=timedelta(0))


def prove(options: Options) -> Iterator[Row]:
    for what in (PRUNED,) if options.short else (RETAINED, PRUNED):
        options.tell(what)
        folder = options.folder / what
        folder.mkdir()
        try:
            with PostgresPair.running(synchronous=False) as pair:
                asyncio.run(migrated(pair.url))
                yield asyncio.run(_behind(pair, folder, what))
        except ServerUnavailable as reason:
            yield Row(what=what, control=what == PRUNED, missing=str(reason))


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
            bots,
            pair.replica.database_url(pair.url.rpartition("/")[2]),
            drained=not prunes,
            patience=4 if prunes else 60,
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
