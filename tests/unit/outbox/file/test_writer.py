"""The writer groups, isolates and retries under the same ids, and cannot be torn."""

import asyncio
import logging
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from unittest.mock import Mock, create_autospec

import pytest
import sqlalchemy as sa

from letopis import Message, OutboxFile, OutboxFull, OutboxUnavailable
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.file import committer, opening
from letopis.outbox.file.committer import Committer
from tests.support.platforms import open_descriptors
from tests.support.relays import sql
from tests.unit.outbox.file.test_outbox_file import said, sqlite_fault

IDS = "SELECT event_id FROM letopis_outbox_events"
LANES = "SELECT conversation_id, head FROM letopis_outbox_lanes"
SEQUENCES = "SELECT conversation_id, sequence FROM letopis_outbox_log ORDER BY conversation_id, sequence"


async def check_whole(outbox: OutboxFile) -> None:
    """Every lane has exactly the sequences 1 to its head."""
    held: dict[str, list[int]] = {}
    for conversation_id, sequence in await sql(outbox, SEQUENCES):
        held.setdefault(conversation_id, []).append(sequence)
    lanes = {row[0]: row[1] for row in await sql(outbox, LANES)}
    assert held == {name: list(range(1, head + 1)) for name, head in lanes.items()}


async def test_concurrent_appends_share_a_transaction_and_keep_their_order(outbox: OutboxFile) -> None:
    transact = create_autospec(Committer._transact, side_effect=Committer._transact)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Committer, "_transact", transact)
        results = await asyncio.gather(*(outbox.append(said(str(n), f"c{n % 7}")) for n in range(300)))

    for name in range(7):
        sequences = [one.sequences[0] for one in results[name::7]]
        assert sequences == list(range(2, len(sequences) + 2))
    assert transact.call_count <= 10
    await check_whole(outbox)


async def test_an_append_waits_for_whoever_holds_the_gate(outbox: OutboxFile) -> None:
    await outbox.gate.acquire()
    with pytest.raises(OutboxUnavailable, match="this task holds a transaction"):
        await outbox.append(said("within"))

    async def append() -> int:
        return (await outbox.append(said("behind it"))).written

    waiting = asyncio.create_task(append())
    await asyncio.sleep(0.05)
    assert not waiting.done()

    outbox.gate.release()
    assert await waiting == 2


async def test_work_that_fails_fails_alone(outbox: OutboxFile) -> None:
    await sql(outbox, "CREATE TABLE t (n INTEGER PRIMARY KEY)")

    def insert(number: int, connection: sa.Connection) -> int:
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))
        if number == 2:
            raise ValueError("mine")
        return number

    with pytest.raises(ValueError, match="mine"):
        await outbox.write(partial(insert, 2))  # in a transaction of its own
    assert await sql(outbox, "SELECT n FROM t") == []
    writes = (outbox.write(partial(insert, number)) for number in (1, 2, 3, 3))
    one, bad, three, again, appended = await asyncio.gather(*writes, outbox.append(said()), return_exceptions=True)

    assert (one, three) == (1, 3)
    assert isinstance(bad, ValueError)
    assert isinstance(again, OutboxUnavailable | sa.exc.IntegrityError)
    assert isinstance(appended, Appended)
    assert await sql(outbox, "SELECT n FROM t") == [(1,), (3,)]
    await check_whole(outbox)


@pytest.mark.parametrize("code", ["SQLITE_IOERR", "SQLITE_FULL"])
async def test_work_that_sqlite_may_have_rolled_back_fails_alone(outbox: OutboxFile, code: str) -> None:
    work = Mock(side_effect=sqlite_fault(code))
    first, second = outbox.append(said("1")), outbox.append(said("2"))  # a group of its own, and the next one's
    bad, *appended = await asyncio.gather(outbox.write(work), first, second, return_exceptions=True)

    assert isinstance(bad, OutboxUnavailable | OutboxFull) and code in str(bad)
    assert all(isinstance(one, Appended) for one in appended)
    await check_whole(outbox)


async def test_a_lock_of_another_process_is_waited_for(outbox: OutboxFile) -> None:
    other = sqlite3.connect(outbox.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.4, other.execute, ("COMMIT",)).start()
    started = time.monotonic()

    assert (await outbox.append(said())).written == 2
    assert time.monotonic() - started >= 0.3
    other.close()


async def test_a_lock_that_stays_is_given_up_and_nothing_is_written(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "LOCK_TIMEOUT_SECONDS", 0.2)
    await outbox.append(said())
    other = sqlite3.connect(outbox.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(OutboxUnavailable, match="SQLITE_BUSY"):
            await outbox.append(said("late"))
    finally:
        other.execute("ROLLBACK")
        other.close()

    assert len(await sql(outbox, IDS)) == 2
    assert (await outbox.append(said("later"))).sequences == (3,)


# Faults of the disk, made in the driver: the COMMIT that fails, before or after it took effect.


class Faulty(sqlite3.Connection):
    """A connection whose next commits are scripted."""

    plan: list[str] = []  # noqa: RUF012 - one plan for all connections, they are made by the engine

    def commit(self) -> None:
        step = self.plan.pop(0) if self.plan else "well"
        if step == "committed, then an error":
            super().commit()
        if step != "well":
            if step == "an error":
                super().rollback()
            raise sqlite_fault("SQLITE_FULL" if step == "full" else "SQLITE_IOERR_FSYNC")
        super().commit()


@pytest.fixture
async def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OutboxFile]:
    make = opening._sync_engine

    def with_faults(path: Path) -> sa.Engine:
        engine = make(path)
        sa.event.listen(engine, "do_connect", lambda dialect, record, args, kwargs: kwargs.update(factory=Faulty))
        return engine

    monkeypatch.setattr(opening, "_sync_engine", with_faults)
    Faulty.plan = []
    opened = await OutboxFile.open(tmp_path / "bot.outbox.db")
    yield opened
    Faulty.plan = []
    await opened.close()


@pytest.mark.parametrize("step", ["an error", "committed, then an error"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_failed_commit_is_run_again_under_the_same_ids(
    faulty: OutboxFile, step: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its outcome is not known: what took effect is found again, what did not is written, and nothing twice."""
    Faulty.plan = [step] * times
    appends = [said(str(number), f"c{number}") for number in range(5)]

    with caplog.at_level(logging.WARNING):
        results = await asyncio.gather(*(faulty.append(one) for one in appends))

    assert [one.sequences for one in results] == [(2,)] * 5
    held = {row[0] for row in await sql(faulty, IDS)}
    assert {one.event_ids[0].bytes for one in results} <= held
    assert len(held) == 10
    await check_whole(faulty)
    assert caplog.text.count("running it again") == times
    assert "the driver's own words" not in caplog.text


@pytest.mark.parametrize(
    ("step", "raised", "says"),
    [("an error", OutboxUnavailable, "SQLITE_IOERR_FSYNC"), ("full", OutboxFull, "nothing was dropped")],
)
async def test_a_commit_that_never_works_is_reported_and_the_writer_lives_on(
    faulty: OutboxFile, step: str, raised: type[Exception], says: str
) -> None:
    Faulty.plan = [step] * 3
    with pytest.raises(raised, match=says) as caught:
        await faulty.append(said())
    assert "the driver's own words" not in str(caught.value)
    Faulty.plan = []
    assert (await faulty.append(said())).sequences == (2,)


def take_the_lock(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    other.close()


async def test_five_hundred_appends_cancelled_at_a_random_moment(outbox: OutboxFile) -> None:
    """Nothing acknowledged is missing, nothing is half, and no lock, task or descriptor is left behind."""
    chance = random.Random(20261125)
    await outbox.append(said())
    take_the_lock(outbox.path)  # SQLite keeps a descriptor that it closes under a lock, for the next connection
    open_before, tasks_before = open_descriptors(), len(asyncio.all_tasks())
    acknowledged: set[bytes] = set()
    given_up: set[bytes] = set()

    async def one(number: int) -> None:
        prepared = prepare(f"c{number % 5}", [Message.user(str(number)), Message.assistant("two")], owner="42")
        ids = {event.event_id.bytes for event in prepared.events}
        task = asyncio.ensure_future(outbox.append(prepared))
        await asyncio.sleep(chance.random() * 0.002)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, Appended):
            acknowledged.update(ids)
        else:
            assert isinstance(result, asyncio.CancelledError)
            given_up.update(ids)

    for start in range(0, 500, 5):
        await asyncio.gather(*(one(number) for number in range(start, start + 5)))
    await outbox.write(lambda _: None)  # what the last callers gave up may still be in the writer's hands
    held = {row[0] for row in await sql(outbox, IDS)}

    assert acknowledged <= held
    assert len(acknowledged) + len(given_up) == 1_000
    assert given_up, "no cancellation came in time: this test shows nothing"
    by_append = await sql(
        outbox,
        "SELECT conversation_id, count(*) FROM letopis_outbox_log WHERE type = 'message.appended'"
        " AND conversation_id <> 'c1' GROUP BY conversation_id",
    )
    assert all(count % 2 == 0 for _, count in by_append), "an append of two is all or nothing"
    await check_whole(outbox)
    take_the_lock(outbox.path)
    assert len(asyncio.all_tasks()) == tasks_before
    assert open_descriptors() <= open_before
    assert not outbox.gate.taken
