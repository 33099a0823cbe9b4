"""A comparison with the store reports each loss once, each recovery at once, and asks nothing for no lanes."""

from datetime import timedelta
from functools import partial
from typing import cast
from unittest.mock import AsyncMock

import pytest

from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.status import read_status
from letopis.outbox.relay import reconcile
from letopis.outbox.relay.reconcile import MAX_RECENT_LANES, RECONCILE_INTERVAL_SECONDS, Reconciler
from letopis.store.conversation_store import ConversationStore
from letopis.store.maintenance.continuity import LogCount
from tests.support.relays import DOWN, Hands, ToldStore, lane, relay_on, say


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
    assert "`letopis outbox skip --missing`" in (found.fault or "")


async def test_what_a_relay_compared_that_was_taken_over_changes_nothing(outbox: OutboxFile) -> None:
    await say(outbox, "a")
    await outbox.write(partial(acknowledge, delivered={"a": 2}, now_us=1))
    before = await lane(outbox, "a")
    reconciler = Reconciler(outbox, cast("ConversationStore", ToldStore()), clock=Clock())
    reconciler.schedule_all()

    result = await reconciler.compare(1)

    assert result.fenced
    assert await lane(outbox, "a") == before


async def test_a_log_that_is_whole_again_is_noticed_in_the_first_pass_of_the_next_relay(
    outbox: OutboxFile, caplog: pytest.LogCaptureFixture
) -> None:
    """A pass over a long log takes hours."""
    caplog.set_level("INFO", logger="letopis.outbox.relay")
    store = ToldStore()
    incidents = []
    for look in (LogCount(missing=2, upto=3), LogCount()):
        store.continuity.look = look
        reconciler = Reconciler(outbox, cast("ConversationStore", store), clock=Clock())
        for _ in range(5):  # all lanes; some lanes and the log, twice
            await reconciler.compare(0)
        status = await outbox.read(partial(read_status, now_us=outbox.now_us()))
        incidents.append([case.kind for case in status.incidents])

    assert incidents == [[IncidentKind.HISTORY_INCOMPLETE], []]
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"], "each once"


async def test_a_relay_with_nothing_to_compare_does_not_report_a_store_that_is_away(outbox: OutboxFile) -> None:
    """``letopis relay --once`` exits with 0 for an outbox that was never written to."""
    store = ToldStore()
    store.lane_heads = AsyncMock(side_effect=DOWN)  # type: ignore[method-assign]
    relay = relay_on(outbox, store)
    assert await relay.drain() == 0
    assert relay.breaker.outage is None


async def test_a_lane_found_lost_at_an_interval_has_all_lanes_compared_at_once(
    outbox: OutboxFile, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "LANES_PER_REQUEST", MAX_RECENT_LANES + 1)  # one lane at an interval
    store = ToldStore()
    for name in "ab":
        await say(outbox, name)
        store.lanes[name] = [(None, b"")] * 2
    await outbox.write(partial(acknowledge, delivered={"a": 2, "b": 2}, now_us=1))
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    reconciler = Reconciler(outbox, cast("ConversationStore", store), clock=clock)
    assert not (await reconciler.compare(0)).rewound
    store.lanes.clear()
    hands.advance(RECONCILE_INTERVAL_SECONDS)

    assert list((await reconciler.compare(0)).rewound) == ["a"]
    assert reconciler.due
    assert list((await reconciler.compare(0)).rewound) == ["b"]
