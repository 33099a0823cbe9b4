"""The relay's own behaviour, against a scripted store."""

import asyncio
import logging
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path
from unittest.mock import DEFAULT, AsyncMock, Mock

import anyio
import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.retry.circuit_breaker import BreakerState
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.database.faults import FaultClass
from letopis.store.errors import Closed, OriginSuperseded, OutboxUnavailable
from letopis.store.model.identifiers import partition_of
from letopis.store.rules.apply_plan import LaneBatch
from tests.support.relays import (
    DOWN,
    POISON,
    Hands,
    ToldStore,
    bind_to,
    drained,
    end,
    fault,
    figures,
    lane,
    relay_on,
    running,
    say,
    sql,
    until,
)

ONE_TWO_FOUR = RetryPolicy(jitter="none")


def poisoned(*conversation_ids: str) -> ToldStore:
    """A store that refuses all messages of these conversations, not their beginnings."""

    def refuse(lanes: Sequence[LaneBatch]) -> BaseException | None:
        bad = any(lane.conversation_id in conversation_ids and lane.deliveries[-1].sequence > 1 for lane in lanes)
        return POISON if bad else None

    return ToldStore(refuse)


async def test_a_batch_is_of_one_partition_of_the_store(outbox: OutboxFile) -> None:
    store = ToldStore()
    store.known_partitions = 16
    names = [f"c{number}" for number in range(40)]
    for name in names:
        await say(outbox, name)
    await relay_on(outbox, store).drain()

    assert sum(map(store.held, names)) == 80
    of_batches = [{partition_of(lane.conversation_id, 16) for lane in batch} for batch in store.batches]
    assert all(len(partitions) == 1 for partitions in of_batches)
    assert len(of_batches) == len({partition_of(name, 16) for name in names})


async def test_an_append_wakes_it(outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.outbox.relay.relay.MAX_IDLE_SECONDS", 600.0)
    store = ToldStore()
    async with running(relay_on(outbox, store)) as relay:
        for number in range(30):
            await until(lambda: relay.idle_since is not None)
            await say(outbox, f"c{number}")
            await until(lambda number=number: store.held(f"c{number}") == 2)


async def test_while_the_breaker_is_open_appends_wake_nobody_and_then_again(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.outbox.relay.relay.MAX_IDLE_SECONDS", 600.0)
    store = ToldStore(lambda _: DOWN)
    relay = relay_on(outbox, store)
    steps = AsyncMock(wraps=relay._dispatcher.run_batches)
    monkeypatch.setattr(relay._dispatcher, "run_batches", steps)
    async with running(relay):
        await say(outbox, "a")
        await until(lambda: relay.breaker.state is BreakerState.OPEN)
        before, probes = steps.await_count, sum(relay.stats.faults.values())
        for number in range(30):
            await say(outbox, f"c{number}")
            await asyncio.sleep(0.01)
        probes = sum(relay.stats.faults.values()) - probes
        assert steps.await_count - before <= 4 + 2 * probes  # those around a probe
        store.refuse = lambda _: None
        await until(lambda: relay.breaker.closed and store.held("c29") == 2)
        await asyncio.sleep(0.1)  # it has found that nothing is pending
        await say(outbox, "b")
        await until(lambda: store.held("b") == 2, patience=10)


async def test_a_probe_is_one_event_of_a_conversation_that_did_not_fail_before(
    outbox: OutboxFile, hands: Hands
) -> None:
    store = ToldStore(lambda _: DOWN)
    relay = relay_on(outbox, store, hands=hands)
    await say(outbox, "a", 5)
    await relay.drain_once()
    await say(outbox, "b", 5)
    hands.advance(100)
    await relay.drain_once()

    sent = [[(one.conversation_id, len(one.deliveries)) for one in lanes] for lanes in store.batches]
    assert sent == [[("a", 6)], [("a", 6)], [("b", 1)], [("b", 1)]]


async def test_a_store_that_is_back_is_noticed_with_nothing_to_deliver(outbox: OutboxFile, hands: Hands) -> None:
    store = ToldStore(lambda _: DOWN)
    relay = relay_on(outbox, store, hands=hands)
    await say(outbox, "a")
    await relay.drain_once()
    await sql(outbox, "UPDATE letopis_outbox_lanes SET state = 'paused'")
    store.refuse = lambda _: None
    hands.advance(100)
    await relay.drain_once()

    assert (store.pings, relay.breaker.closed) == (1, True)


async def test_a_conversation_that_is_refused_is_retried_after_1_2_and_4_seconds_and_then_blocked(
    outbox: OutboxFile, hands: Hands
) -> None:
    """The waits of ``RetryPolicy(base=1, factor=2, jitter="none", attempts=3)``, the default, to the second."""
    store = poisoned("bad")
    relay = relay_on(outbox, store, policy=ONE_TWO_FOUR, hands=hands)
    await say(outbox, "bad", 2)
    tried = []
    for tenth in range(150):
        before = len(store.batches)
        while await relay.drain_once():
            pass
        if len(store.batches) > before:
            tried.append(tenth / 10)
        hands.advance(0.1)
    stuck = await lane(outbox, "bad")

    assert tried == [0.0, 1.0, 3.0, 7.0]
    assert (stuck.state, stuck.delivered, stuck.attempts, stuck.fault_class) == ("blocked", 1, 4, "poison")
    assert "22021" in (stuck.fault or "")
    assert relay.stats.blocked == 1


async def test_a_lost_acknowledgement_is_only_a_second_delivery(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ToldStore()
    relay = relay_on(outbox, store)
    await say(outbox, "a", 3)
    await bind_to(outbox, store)
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "write", AsyncMock(side_effect=OutboxUnavailable("the disk is full")))
        with pytest.raises(OutboxUnavailable):
            await relay.drain_once()

    assert (await lane(outbox, "a")).delivered == 0
    assert await relay.drain_once() == 4
    assert (store.held("a"), relay.stats.duplicates, relay.stats.acks_lost) == (4, 4, 1)


async def test_the_loop_outlives_whatever_a_step_raises(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ToldStore()
    relay = relay_on(outbox, store)
    read = outbox.read
    errors: list[BaseException] = [RuntimeError("a secret"), OutboxUnavailable("busy"), KeyError("a secret")]

    async def broken(work: object) -> object:
        if errors:
            raise errors.pop()
        return await read(work)  # type: ignore[arg-type]

    monkeypatch.setattr(outbox, "read", broken)
    async with running(relay):
        await say(outbox, "a")
        await until(lambda: store.held("a") == 2)

    assert relay.stats.loop_errors == 3
    assert "RuntimeError at test_relay.py:" in caplog.text
    assert "a secret" not in caplog.text


async def test_stop_ends_an_idle_relay_at_once(outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.outbox.relay.relay.MAX_IDLE_SECONDS", 600.0)
    relay = relay_on(outbox, ToldStore())
    task = asyncio.create_task(relay.run())
    await until(lambda: relay.lease.held)
    await asyncio.sleep(0.05)
    relay.stop()
    async with asyncio.timeout(60):
        await task


@pytest.mark.parametrize("how", ["stop", "task", "scope"])
async def test_a_run_that_is_ended_finishes_the_batch_in_flight_and_acknowledges_it(
    outbox: OutboxFile, how: str
) -> None:
    store = ToldStore()
    relay = relay_on(outbox, store)
    entered = store.hold(0.2)
    await say(outbox, "a", 3)
    async with asyncio.timeout(60), anyio.create_task_group() as group:
        task = asyncio.create_task(relay.run()) if how == "task" else group.start_soon(relay.run)
        await entered.wait()
        if how == "task":
            await end(task)
            assert task.cancelled()
        else:
            relay.stop() if how == "stop" else group.cancel_scope.cancel()

    assert (store.held("a"), (await lane(outbox, "a")).delivered) == (4, 4)
    assert not relay.lease.held


@pytest.mark.parametrize("first", ["cancellation", "stop", "nothing, but it does not wait for ever"])
async def test_a_cancellation_that_comes_second_drops_a_store_that_hangs(outbox: OutboxFile, first: str) -> None:
    """First signal, second signal."""
    store = ToldStore()
    relay = relay_on(outbox, store, stop_timeout=0.2 if first.startswith("nothing") else 600)
    entered = store.hold(3_600)
    await say(outbox, "a")
    task = asyncio.create_task(relay.run())
    await entered.wait()
    if not first.startswith("nothing"):
        relay.stop() if first == "stop" else task.cancel()
        await asyncio.sleep(0.1)
        assert not task.done()
    async with asyncio.timeout(60):
        await end(task)

    assert task.cancelled() or first == "stop"
    assert (await lane(outbox, "a")).pending == 2
    assert not relay.lease.held


async def test_a_store_that_lost_its_newest_events_gets_them_again(
    outbox: OutboxFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Idle conversations too: the tail is compared after each start and outage."""
    store = ToldStore()
    relay = relay_on(outbox, store)
    for name in ("quiet", "loud"):
        await say(outbox, name, 9)
    await relay.drain()
    assert not relay.lease.held
    for name in ("quiet", "loud"):
        del store.lanes[name][4:]
    await say(outbox, "loud", 1)
    again = relay_on(outbox, store)
    await again.drain()

    assert (store.held("quiet"), store.held("loud")) == (10, 11)
    assert again.stats.rewound == 6 + 6
    assert caplog.text.count("lost 6 events that it had, of 1 conversations; they are sent again") == 2
    assert (await figures(outbox)).pending == 0


async def test_a_superseded_outbox_opens_the_breaker_and_keeps_everything(
    outbox: OutboxFile, caplog: pytest.LogCaptureFixture
) -> None:
    origin = outbox.origin
    store = ToldStore(lambda _: OriginSuperseded(origin_id=origin.origin_id, epoch=1, current=2))
    relay = relay_on(outbox, store)
    await say(outbox, "a", 2)
    await relay.drain()

    assert relay.breaker.reason == "misconfigured origin-superseded"
    assert "--new-origin" in str(relay.breaker.outage)
    assert (await lane(outbox, "a")).state == "ready"
    assert [one.levelno for one in caplog.records if "cannot be delivered to" in one.message] == [logging.ERROR]


async def test_a_file_that_was_replaced_ends_the_relay_and_says_so(
    outbox: OutboxFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay = relay_on(outbox, ToldStore())
    task = asyncio.create_task(relay.run())
    await until(lambda: relay.lease.held)
    (tmp_path / "other").touch()
    (tmp_path / "other").rename(outbox.path)
    async with asyncio.timeout(60):
        with pytest.raises(OutboxUnavailable, match="replaced"):
            await task

    assert "replaced" in caplog.text


async def test_use_after_close_ends_the_relay(outbox: OutboxFile) -> None:
    task = asyncio.create_task(relay_on(outbox, ToldStore(lambda _: Closed("the store was closed"))).run())
    await say(outbox, "a")
    async with asyncio.timeout(60):
        with pytest.raises(Closed):
            await task
    assert (await lane(outbox, "a")).pending == 2


async def test_what_is_said_of_a_refusal_names_its_subject_and_not_its_content(
    outbox: OutboxFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="letopis")
    store = poisoned("bad\u2028c")
    relay = relay_on(outbox, store)
    await say(outbox, "bad\u2028c", 1, owner="42")
    while (await lane(outbox, "bad\u2028c")).state != "blocked":
        await relay.drain_once()
        await asyncio.sleep(0.01)
    records = [one for one in caplog.records if "conversation_id" in vars(one) and vars(one)["conversation_id"]]

    assert [one.levelno for one in records] == [logging.WARNING] * 3 + [logging.ERROR]
    for one in records:
        assert (vars(one)["conversation_id"], vars(one)["owner_id"]) == ("bad\u2028c", "42")
        assert vars(one)["message_id"] and vars(one)["event_id"]
        assert "\u2028" not in one.message and " says " not in one.message


async def test_chores_are_done_under_constant_load_too(outbox: OutboxFile) -> None:
    done: list[int] = []
    store = ToldStore()
    store.after = lambda: done.append(0)

    def chore(_: object) -> bool:
        done.append(1)
        return False

    relay = relay_on(outbox, store, batch=1, chores=[chore])
    await say(outbox, "a", 120)
    for _ in range(110):
        await relay.drain_once()

    assert done.count(1) >= 1 and done.count(0) >= 105


async def test_a_chore_that_fails_does_not_keep_anything_from_being_delivered(
    outbox: OutboxFile, caplog: pytest.LogCaptureFixture
) -> None:
    relay = relay_on(outbox, ToldStore(), chores=[Mock(side_effect=RuntimeError("a secret"))])
    await relay.drain()
    await say(outbox, "a", 2)
    assert await relay.drain() == 3
    assert "RuntimeError" in caplog.text and "a secret" not in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("a secret"), POISON, DOWN])
async def test_a_comparison_that_fails_does_not_keep_anything_from_being_delivered(
    outbox: OutboxFile, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    store = ToldStore()
    await say(outbox, "a", 2)
    await relay_on(outbox, store).drain()
    times = 2 if error is DOWN else 1  # one that was cut while it lay idle is no outage
    heads = AsyncMock(wraps=store.lane_heads, side_effect=chain([error] * times, repeat(DEFAULT)))
    store.lane_heads = heads  # type: ignore[method-assign]
    async with running(relay_on(outbox, store)) as relay:
        await until(lambda: heads.await_count >= times)
        await say(outbox, "a", 2)
        await drained(outbox)

    assert (relay.stats.loop_errors, relay.breaker.trips) == (0, 1 if error is DOWN else 0)
    assert "a secret" not in caplog.text


async def test_the_relay_shows_life_while_there_is_nothing_to_do_and_while_the_store_is_away(
    outbox: OutboxFile, hands: Hands
) -> None:
    store = ToldStore()
    relay = relay_on(outbox, store, hands=hands)
    await relay.lease.acquire()
    stamps = set()
    for number in range(10):
        if number == 5:
            store.refuse = lambda _: DOWN
            await say(outbox, "a")
        hands.advance(11)
        for _ in range(3):
            await relay.drain_once()
        stamps.add((await sql(outbox, "SELECT heartbeat_at FROM letopis_outbox_relay"))[0][0])

    found = await sql(outbox, "SELECT breaker, breaker_reason FROM letopis_outbox_relay")
    assert (len(stamps), found) == (10, [("open", "unavailable refused")])


async def test_a_strange_fault_of_the_only_conversation_charges_nothing(outbox: OutboxFile, hands: Hands) -> None:
    strange = fault(FaultClass.UNCLASSIFIED, "KeyError")
    store = ToldStore(lambda lanes: strange if any(one.conversation_id == "a" for one in lanes) else None)
    relay = relay_on(outbox, store, hands=hands)
    await say(outbox, "a")
    for _ in range(200):
        await relay.drain_once()
        hands.advance(1)
    waiting = await lane(outbox, "a")

    assert (waiting.state, waiting.attempts, waiting.fault_class) == ("retrying", 0, "unclassified")
    store.refuse = lambda _: None
    hands.advance(600)
    while await relay.drain_once():
        pass
    assert (await lane(outbox, "a")).delivered == 2
    assert not relay._dispatcher.retries._uncharged  # the next refusal waits as the first did


async def test_what_was_blocked_goes_on_once_the_store_is_found_to_refuse_all(outbox: OutboxFile, hands: Hands) -> None:
    """One conversation after another, each alone, meets a column that was narrowed: an ordinary event still fits."""
    names = ("c0", "c1", "c2")
    store = poisoned(*names)
    relay = relay_on(outbox, store, hands=hands)
    for name in names:
        await say(outbox, name)
        while relay.breaker.closed and (await lane(outbox, name)).state != "blocked":
            await relay.drain_once()
            hands.advance(1)
        assert relay.breaker.closed is (name != "c2")

    assert await sql(outbox, "SELECT DISTINCT state FROM letopis_outbox_lanes") == [("ready",)]
    store.refuse = lambda _: None
    hands.advance(100)
    await relay.drain()
    assert [store.held(name) for name in names] == [2, 2, 2]
