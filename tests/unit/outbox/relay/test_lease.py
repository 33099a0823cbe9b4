"""One relay per outbox file."""

import asyncio
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.file.sign_of_life import lock_path
from letopis.outbox.relay.lease import Heartbeat, Lease, LeaseLock, OutboxIdentityChanged, boot_id, write_heartbeat
from letopis.store.errors import LetopisError
from letopis.store.model.events import to_microseconds
from tests.support.relays import Hands, Lingering, ToldStore, end, relay_on, say, sql, until

BEAT = Heartbeat(
    progress=True,
    breaker="open",
    breaker_since_us=5,
    reason="unavailable refused",
    detail="it is down",
    next_attempt_us=9,
    delivered=7,
)


def lease(outbox: OutboxFile, *, locked: bool = True) -> Lease:
    return Lease(outbox, clock=Clock(), holder="relay", locked=locked)


def standby_of(outbox: OutboxFile, hands: Hands) -> Lease:
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    return Lease(outbox, clock=clock, holder="standby", silence=30)


async def beat(outbox: OutboxFile, incarnation: int, heartbeat: Heartbeat = BEAT, *, now_us: int = 9) -> bool:
    return await outbox.write(lambda connection: write_heartbeat(connection, incarnation, heartbeat, now_us=now_us))


async def row(outbox: OutboxFile) -> dict[str, object]:
    names = "incarnation, holder, pid, host, boot_id, breaker, breaker_reason, delivered_total"
    found = await sql(outbox, f"SELECT {names} FROM letopis_outbox_relay")
    return dict(zip(names.split(", "), found[0], strict=True))


async def test_the_holder_is_written_down_for_people_and_its_lock_file_is_private(
    outbox: OutboxFile, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert lock_path(tmp_path / "link" / outbox.path.name) == lock_path(outbox.path)
    assert await lease(outbox).acquire()
    found = await row(outbox)
    assert (found["incarnation"], found["holder"], found["pid"]) == (1, "relay", os.getpid())
    assert (found["boot_id"], found["breaker"]) == (boot_id(), "closed")
    assert stat.S_IMODE(lock_path(outbox.path).stat().st_mode) == 0o600


async def test_two_do_not_hold_it_at_once_and_each_holder_has_a_number_of_its_own(outbox: OutboxFile) -> None:
    one, two = lease(outbox), lease(outbox)

    assert await one.acquire()
    assert not await two.acquire() and not two.held
    assert await one.acquire()
    for _ in range(2):
        await one.release()
        assert (await row(outbox))["pid"] == 0
    assert await two.acquire()
    assert (one.incarnation, two.incarnation) == (0, 2)
    await two.release()
    assert await one.acquire()
    assert one.incarnation == 3


async def test_a_beat_says_how_it_goes_and_stamps_progress_if_there_is_some(outbox: OutboxFile) -> None:
    one, stamps = lease(outbox), "SELECT heartbeat_at, progress_at, breaker_since FROM letopis_outbox_relay"
    await one.acquire()
    [(_, progress_at, _)] = await sql(outbox, stamps)
    assert await beat(outbox, one.incarnation, replace(BEAT, progress=False, delivered=0), now_us=8)
    assert await sql(outbox, stamps) == [(8, progress_at, 5)]

    assert await beat(outbox, one.incarnation)
    assert await sql(outbox, stamps) == [(9, 9, 5)]
    found = await row(outbox)
    assert (found["breaker"], found["breaker_reason"], found["delivered_total"]) == ("open", "unavailable refused", 7)


async def test_a_lease_that_cannot_be_written_down_is_not_taken(outbox: OutboxFile) -> None:
    await sql(outbox, "CREATE TRIGGER no BEFORE INSERT ON letopis_outbox_relay BEGIN SELECT raise(ABORT, 'no'); END")
    one = lease(outbox)
    with pytest.raises(LetopisError):
        await one.acquire()
    assert not one.held

    relay = relay_on(outbox, ToldStore())
    with pytest.raises(LetopisError):
        await relay.drain()
    assert not relay.standing_by, "no other relay holds it"

    await sql(outbox, "DROP TRIGGER no")
    assert await lease(outbox).acquire()


async def test_a_holder_that_gives_no_sign_of_life_is_taken_over_and_fenced(outbox: OutboxFile, hands: Hands) -> None:
    """A stopped process keeps its lock; its beat is what it cannot keep."""
    stopped = lease(outbox)
    standby = standby_of(outbox, hands)
    await stopped.acquire()

    for _ in range(9):
        hands.advance(29)
        await beat(outbox, stopped.incarnation, now_us=to_microseconds(hands.now()))
        assert not await standby.acquire(), "it lives"
    hands.advance(29)
    await beat(outbox, 0)  # a delivery without the lease is counted, and no sign of its life
    assert not await standby.acquire()
    hands.advance(2)
    assert await standby.acquire()

    assert standby.incarnation == stopped.incarnation + 1
    assert not await beat(outbox, stopped.incarnation)
    assert (await row(outbox))["delivered_total"] == 10 * BEAT.delivered
    await standby.release()
    await stopped.release()
    assert await standby.acquire()


async def test_a_holder_that_rests_is_not_taken_over_while_it_gives_signs_of_life(
    outbox: OutboxFile, hands: Hands
) -> None:
    """It has closed the file, so that nothing changes in its row."""
    standby = standby_of(outbox, hands)
    lock = LeaseLock(outbox.path)
    resting = Lease(outbox, clock=Clock(), holder="resting", lock=lock)
    assert await resting.acquire()
    resting.suspend()
    assert not resting.held
    for _ in range(10):
        hands.advance(20)
        assert lock.give_sign_of_life(to_microseconds(hands.now()))
        assert not await standby.acquire()
    hands.advance(31)
    assert await standby.acquire(), "the process was stopped: it gives no sign"
    assert standby.incarnation == 2


async def test_two_standbys_that_look_at_once_do_not_both_take_over(
    outbox: OutboxFile, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = lease(outbox)
    await stopped.acquire()
    two = [standby_of(outbox, hands) for _ in range(2)]
    for standby in two:
        assert not await standby.acquire()
    hands.advance(31)
    write, waiting, both = outbox.write, list[Any](), asyncio.Event()

    async def when_both_have_read(work: Any) -> Any:
        waiting.append(work)
        if len(waiting) == 2:
            both.set()
        await both.wait()
        return await write(work)

    monkeypatch.setattr(outbox, "write", when_both_have_read)
    async with asyncio.timeout(60):
        taken = await asyncio.gather(*(standby.acquire() for standby in two))
    assert sorted(taken) == [False, True]


async def test_lease_of_a_file_with_a_new_identity_is_refused(outbox: OutboxFile) -> None:
    """A relay that opened it before would deliver under the identity of the time before."""
    await sql(outbox, "UPDATE letopis_outbox_origin SET origin_id = randomblob(16)")
    relay = lease(outbox)

    with pytest.raises(OutboxIdentityChanged, match="open it again"):
        await relay.acquire()
    assert not relay.held
    assert await sql(outbox, "SELECT count(*) FROM letopis_outbox_relay") == [(0,)]
    assert LeaseLock(outbox.path).try_acquire(), "the lock was given back"


async def test_a_delivery_is_a_sign_of_life(outbox: OutboxFile, hands: Hands) -> None:
    """In the lock file, too: a daemon that stands by looks at nothing else."""
    relay = relay_on(outbox, ToldStore(), hands=hands)
    assert await relay.lease.acquire()
    hands.advance(5)
    await say(outbox, "a")
    assert await relay.drain_once() == 2

    assert LeaseLock(outbox.path).last_sign_of_life() == to_microseconds(hands.now())
    await relay.lease.release()


async def test_a_wait_for_the_store_that_is_cancelled_ends_after_what_it_waited_for(outbox: OutboxFile) -> None:
    """Or the lease is released, and the store closed, beside a transaction that is rolled back."""
    work = Lingering()
    heartbeat = relay_on(outbox, ToldStore())._dispatcher._heartbeat
    waiting = asyncio.create_task(heartbeat.during(work(), "a batch"))
    await work.began.wait()
    await end(waiting)
    assert work.ended.is_set()


async def test_a_relay_beats_while_the_store_works_on_a_batch(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.outbox.relay.lease.HEARTBEAT_SECONDS", 0.01)
    store, answer, beats = ToldStore(), asyncio.Event(), set[Any]()
    store.before = answer.wait  # type: ignore[assignment]
    await say(outbox, "a")
    relay = relay_on(outbox, store)
    assert await relay.lease.acquire()
    delivery = asyncio.create_task(relay.drain_once())

    async def beaten() -> bool:
        beats.update(await sql(outbox, "SELECT heartbeat_at FROM letopis_outbox_relay"))
        return len(beats) > 3  # more than one at the start and one at the end

    await until(beaten)
    answer.set()
    await delivery
    await relay.lease.release()
