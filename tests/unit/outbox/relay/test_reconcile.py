"""A comparison of lanes with the store tells what is lost once, and not again while nothing has changed."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import cast

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.reconcile import Reconciler
from letopis.store.conversation_store import ConversationStore
from tests.support.relays import ToldStore, lane, say


async def test_a_lost_lane_stays_lost_while_the_store_holds_nothing_of_it(outbox: OutboxFile) -> None:
    await say(outbox, "a")
    await outbox.write(partial(acknowledge, delivered={"a": 2}, now_us=1))
    await outbox.write(Pruner(Retention(keep_last=1, keep_for=timedelta(0)), outbox.now_us))
    reconciler = Reconciler(outbox, cast("ConversationStore", ToldStore()), clock=Clock())

    told = []
    for _ in range(2):
        reconciler.schedule_all()
        told.append({name: one.lost for name, one in (await reconciler.compare(0)).rewound.items()})

    assert told == [{"a": 1}, {}]
    found = await lane(outbox, "a")
    assert (found.state, found.fault_class, found.delivered, found.pruned) == ("blocked", "lost", 1, 1)
