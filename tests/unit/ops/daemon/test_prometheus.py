"""The metrics follow Prometheus's conventions, contain no personal data, and are the ones in the reference."""

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from letopis.ops.daemon.health import (
    FileCondition,
    HealthSnapshot,
    OutboxMetrics,
    add_stats,
    aggregate,
)
from letopis.ops.daemon.prometheus import METRICS, exposition
from letopis.ops.daemon.store_pool import Durations, InstrumentedStore, StorePool
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.relay.relay import Relay
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from tests.support.paths import ROOT
from tests.support.peers import refused_port, silent
from tests.support.relays import DOWN, Hands, say

PAGE = ROOT / "docs" / "reference" / "metrics.md"


def figures(**changes: Any) -> HealthSnapshot:
    """What a daemon with two files and one store may look like."""
    hands = Hands()
    breaker = Breaker(clock=Clock(now=hands.now, monotonic=hands.monotonic), uniform=lambda _, most: most)
    now_us = breaker.since_us
    durations = Durations()
    for seconds in (0.004, 0.3, 100.0):
        durations.add(seconds)
    fields: dict[str, Any] = {
        "now_us": now_us,
        "ready": True,
        "sound": True,
        "breakers": [breaker],
        "relay": RelayStats(delivered=7, faults=Counter({"unavailable": 3})),
        "alerts": {"sent": 2, "failed": 1},
        "deliveries": [{"ok": durations}, {"ok": durations, "poison": durations}],
    }
    files = [
        OutboxMetrics(
            condition=FileCondition.WORKING,
            pending=5,
            pending_bytes=500,
            oldest_pending_us=now_us - 40_000_000,
            lanes={"ready": 1, "blocked": 1},
            incidents={"conversation_blocked": 1},
            progress_us=now_us - 1_000_000,
            wal_bytes=4096,
        ),
        OutboxMetrics(condition=FileCondition.STANDBY, pending=1, oldest_pending_us=now_us, progress_us=now_us),
    ]
    return aggregate(files, **(fields | changes))


def samples(found: HealthSnapshot) -> dict[str, float]:
    body, _ = exposition(found)
    return {
        one.name + "".join(f"{{{key}={value}}}" for key, value in sorted(one.labels.items())): one.value
        for family in parse(body.decode())
        for one in family.samples
    }


def test_figures_of_all_files_are_summed_up() -> None:
    found = samples(figures())
    expected = {
        "outbox_files{state=working}": 1,
        "outbox_files{state=standby}": 1,
        "outbox_files{state=unusable}": 0,
        "outbox_pending_events": 6,
        "outbox_oldest_pending_seconds": 40,
        "outbox_lanes{state=blocked}": 1,
        "outbox_lanes{state=paused}": 0,
        "incidents_open{kind=conversation_blocked}": 1,
        "relay_delivered_events_total": 7,
        "relay_faults_total{class=unavailable}": 3,
        "relay_faults_total{class=poison}": 0,
        "alerts_total{outcome=failed}": 1,
        "relay_breaker_state{state=closed}": 1,
    }

    assert {name: found[f"letopis_{name}"] for name in expected} == expected
    assert figures().summary() == "2 outboxes, 1 standby, 6 pending, oldest 40 s, 1 blocked, store reachable"


def test_the_histogram_is_cumulative_and_joins_all_stores() -> None:
    found = samples(figures())
    name = "letopis_relay_delivery_duration_seconds"
    buckets = [value for key, value in found.items() if key.startswith(f"{name}_bucket") and "outcome=ok" in key]

    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1]) == (2, 6)
    assert found[f"{name}_count{{outcome=ok}}"] == 6
    assert found[f"{name}_sum{{outcome=ok}}"] == pytest.approx(200.608)
    assert found[f"{name}_count{{outcome=poison}}"] == 3


def test_a_store_that_is_away_shows_for_how_long() -> None:
    hands = Hands()
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    breaker = Breaker(clock=clock, uniform=lambda _, most: most)
    breaker.trip(DOWN, ())
    hands.advance(90)
    found = figures(breakers=[breaker], now_us=clock.now_us())

    assert found.degraded
    shown = [
        samples(found)[f"letopis_relay_breaker_{name}"] for name in ("open_seconds", "trips_total", "state{state=open}")
    ]
    assert shown == [90, 1, 1]
    assert "store unavailable for 90 s" in found.summary()


def test_the_lag_of_a_name_is_that_of_all_stores() -> None:
    found = samples(figures(lags=[{"sales.daily": 3, "follower.warehouse": 0}, {"sales.daily": 4}]))
    names = ("sales.daily", "follower.warehouse")
    assert [found[f"letopis_follower_lag_events{{name={name}}}"] for name in names] == [7, 0]


def test_names_and_kinds_follow_the_conventions() -> None:
    for one in METRICS:
        assert re.fullmatch(r"letopis_[a-z][a-z_]*[a-z]", one.name)
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert not re.search(r"_(ms|milliseconds|minutes|kb|count)$", one.name)
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_labels_are_few_and_known_beforehand() -> None:
    """Never an id, a name of a file, or a URL: a series a conversation would bring a Prometheus down."""
    assert {one.label for one in METRICS} == {"", "version", "state", "kind", "outcome", "class", "name"}
    known = {"working", "standby", "unusable", "ready", "retrying", "blocked", "paused", "closed", "open", "half_open"}
    known |= {"store_down", "conversation_blocked", "relay_silent", "history_incomplete", "erasures_missing"}
    known |= {"sent", "failed", "ok", "given_up", "error"}
    known |= {str(one) for one in FaultClass}
    body, _ = exposition(figures())
    values = {
        value
        for family in parse(body.decode())
        for sample in family.samples
        for key, value in sample.labels.items()
        if key not in ("le", "version")
    }

    assert values <= known


def test_all_totals_of_a_relay_add_up() -> None:
    numbers = {name: number for number, name in enumerate(RelayStats.__slots__, start=1) if name != "faults"}
    total, one = RelayStats(), RelayStats(**numbers, faults=Counter({"poison": 2}))
    add_stats(total, one)
    add_stats(total, one)
    assert {name: getattr(total, name) for name in numbers} == {name: 2 * number for name, number in numbers.items()}
    assert total.faults == {"poison": 4}


def test_the_reference_has_every_metric_and_no_other() -> None:
    row = r"(?m)^\| `(letopis_\w+)`(?:\{`?(\w+)`?\})? \| (\w+) \|"
    rows = re.findall(row, PAGE.read_text(encoding="utf-8"))
    assert rows == [(one.name, one.label, one.kind) for one in METRICS]


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

    assert relay.stats.delivered == 4
    assert counted(store) == {"ok": 1}
    assert store.progress_at[outbox.origin.origin_id] >= before
    await store.store.close()


async def test_faults_are_counted_by_their_class_and_what_was_given_up_apart(outbox: OutboxFile) -> None:
    async with silent() as port:
        for place, error, outcome in (
            (await refused_port(), StoreFault, "unavailable"),
            (port, TimeoutError, "given_up"),
        ):
            store = InstrumentedStore(ConversationStore(f"postgresql://bot@127.0.0.1:{place}/h"))
            with pytest.raises(error):
                async with asyncio.timeout(1):
                    await store.apply(outbox.origin, [])
            await store.store.close()
            assert counted(store) == {outcome: 1}


async def test_outboxes_share_one_store_which_keeps_the_options_of_its_url_when_it_rested(tmp_path: Path) -> None:
    pool = StorePool("postgresql://user@host/db?connections=7", clock=Clock())
    handle = pool.get(tmp_path / "a.outbox.db")
    assert pool.get(tmp_path / "b.outbox.db") is handle
    await handle.rest()
    assert handle.store.runtime.engine.pool.size() == 7  # type: ignore[attr-defined]
