"""The simulation's own rules: time jumps, chance repeats, there are no threads, and processes end at once."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from letopis.store.model.codec import digest_of
from tests.campaigns.states import Ack
from tests.proof.simulation import strands
from tests.proof.simulation.driver import Disk, File
from tests.proof.simulation.ledger import Broken, OutboxLedger, StoreLedger
from tests.proof.simulation.loop import Deadlock, Process, VirtualLoop
from tests.proof.simulation.mutants import MUTANTS
from tests.proof.simulation.part import problems
from tests.proof.simulation.plan import PROFILES, plan_of
from tests.proof.simulation.world import Result
from tests.support.defects import DEFECTS

SALT = b"s" * 16


def live(work: Coroutine[Any, Any, Any], *, seed: int = 7) -> Any:
    loop = VirtualLoop(random.Random(seed))
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def test_hours_pass_at_once() -> None:
    async def sleep() -> float:
        before = asyncio.get_running_loop().time()
        await asyncio.sleep(36_000)
        return asyncio.get_running_loop().time() - before

    assert 36_000 <= live(sleep()) < 36_001


def test_waiting_for_what_cannot_come_is_no_endless_wait() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualLoop(random.Random(1))
    with pytest.raises(Deadlock):
        loop.run_until_complete(wait())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    with suppress(Deadlock):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()


async def _race() -> list[int]:
    order: list[int] = []

    async def run(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*(run(number) for number in range(5)))
    return order


def test_the_same_seed_gives_the_same_order_and_another_seed_another_one() -> None:
    assert live(_race(), seed=1) == live(_race(), seed=1)
    assert live(_race(), seed=1) != live(_race(), seed=2)


def test_a_killed_process_does_nothing_more_and_cleans_nothing_up() -> None:
    seen: list[str] = []

    async def victim() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                seen.append("tick")
        finally:
            seen.append("cleaned up")

    async def run() -> None:
        process = Process("victim")
        process.on_kill.append(lambda: seen.append("killed"))
        process.start(victim())
        await asyncio.sleep(2.5)
        process.kill()
        await asyncio.sleep(10)
        assert seen == ["tick", "tick", "killed"]

    live(run())


def test_a_stopped_process_goes_on_where_it_was() -> None:
    seen: list[float] = []

    async def run() -> None:
        loop = strands.running_loop()

        async def tick() -> None:
            while True:
                await asyncio.sleep(1)
                seen.append(round(loop.now - 1000))

        process = Process("sleeper")
        process.start(tick())
        await asyncio.sleep(2.5)
        process.stopped = True
        await asyncio.sleep(10)
        loop.resume(process)
        await asyncio.sleep(1.2)
        process.kill()

    live(run())

    assert seen == [1, 2, 12, 13] or seen == [1, 2, 13, 14]


def test_a_strand_hands_over_in_order_and_waits_in_virtual_time() -> None:
    got: list[int] = []

    async def run() -> float:
        loop = strands.running_loop()
        queue, done = strands.SimpleQueue(), loop.create_future()

        def serve() -> None:
            while (number := queue.get()) is not None:
                loop.call_soon_threadsafe(got.append, number)
            strands.wait(60)
            loop.call_soon_threadsafe(done.set_result, None)

        before = loop.now
        strands.Strand(target=serve).start()
        for number in (*range(20), None):
            queue.put(number)
        await done
        return loop.now - before

    assert live(run()) >= 60
    assert got == list(range(20))


class Fine:
    def before(self, line: object, sql: str, params: object) -> None: ...

    def after(self, line: object, sql: str) -> None: ...


def test_what_a_killed_process_had_not_committed_is_rolled_back(tmp_path: Path) -> None:
    path, disk, commits = tmp_path / "a.db", Disk(), list[str]()
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE t (n)")
    made.close()
    disk.add(File(str(path), Fine(), lambda process: commits.append(process.name)))

    async def write() -> None:
        connection = disk.connect(path, isolation_level=None)
        for number in range(2):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (?)", (number,))
            if number == 0:
                connection.commit()
        await asyncio.sleep(60)

    async def run() -> None:
        process = Process("writer")
        process.start(write())
        await asyncio.sleep(1)
        process.kill()

    live(run())

    look = sqlite3.connect(path)
    assert look.execute("SELECT n FROM t").fetchall() == [(0,)]
    look.execute("BEGIN IMMEDIATE")  # its lock is gone with it
    look.close()
    assert commits == ["writer"]


def ledgers(folder: Path) -> tuple[OutboxLedger, sqlite3.Connection, sqlite3.Connection]:
    outbox, store = sqlite3.connect(folder / "o.db"), sqlite3.connect(folder / "s.db")
    outbox.executescript(
        "CREATE TABLE letopis_outbox_origin (origin_id);"
        "CREATE TABLE letopis_outbox_relay (incarnation);"
        "CREATE TABLE letopis_outbox_drafts (message_id, data);"
        "CREATE TABLE letopis_outbox_lanes (conversation_id, head, delivered, pruned, state, attempts);"
        "CREATE TABLE letopis_outbox_events (position INTEGER PRIMARY KEY, conversation_id, sequence, event_id, digest,"
        " type, schema_version, data, metadata, salt);"
        "CREATE VIEW letopis_outbox_log AS SELECT * FROM letopis_outbox_events"
    )
    store.execute(
        "CREATE TABLE letopis_events (position, conversation_id, version, event_id, origin_id, sequence, digest, type,"
        " data, metadata)"
    )
    store.executescript(
        "CREATE TABLE letopis_messages (conversation_id, version, left_at);"
        "CREATE TABLE letopis_lanes (origin_id, conversation_id, sequence);"
        "CREATE TABLE letopis_record_ledger (origin_id, conversation_id, sequence, event_id, digest, superseded);"
        "CREATE TABLE letopis_records (partition, record_id, scope, namespace, record_key, revision, body);"
        "CREATE TABLE letopis_record_parts (partition, record_id, part, body)"
    )
    outbox.execute("INSERT INTO letopis_outbox_origin VALUES (?)", (b"o" * 16,))
    outbox.execute("INSERT INTO letopis_outbox_relay VALUES (1)")
    outbox.execute("INSERT INTO letopis_outbox_lanes VALUES ('a', 0, 0, 0, 'ready', 0)")
    outbox.commit()
    store.commit()
    ledger = OutboxLedger(folder / "o.db", StoreLedger(folder / "s.db"), lambda _: None)
    ledger.committed("bot")
    return ledger, outbox, store


def append(outbox: sqlite3.Connection, sequence: int) -> None:
    digest = digest_of("a", "t", 1, "{}", None, SALT)
    row = ("a", sequence, bytes([sequence]) * 16, digest, "t", 1, "{}", None, SALT)
    outbox.execute(
        "INSERT INTO letopis_outbox_events (conversation_id, sequence, event_id, digest, type, schema_version, data,"
        " metadata, salt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    )
    outbox.execute("UPDATE letopis_outbox_lanes SET head = ?", (sequence,))
    outbox.commit()


def store_one(store: sqlite3.Connection, position: int, sequence: int) -> None:
    digest = digest_of("a", "t", 1, "{}", None, SALT)
    row = (position, "a", position, bytes([sequence]) * 16, b"o" * 16, sequence, digest, "t", "{}", None)
    store.execute("INSERT INTO letopis_events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    store.commit()


def test_the_ledger_is_content_with_what_is_right(tmp_path: Path) -> None:
    ledger, outbox, store = ledgers(tmp_path)
    append(outbox, 1)
    ledger.committed("bot")
    ledger.acknowledged(Ack("a", UUID(bytes=b"\1" * 16), 1))
    store_one(store, 1, 1)
    ledger.store.committed()
    outbox.execute("UPDATE letopis_outbox_lanes SET delivered = 1")
    outbox.commit()
    ledger.committed("bot")

    assert ledger.pending == 0


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE letopis_outbox_lanes SET delivered = 1", "written off"),
        ("UPDATE letopis_outbox_lanes SET state = 'blocked'", "nothing is wrong"),
        ("UPDATE letopis_outbox_lanes SET attempts = 1", "innocent"),
        ("DELETE FROM letopis_outbox_events", "keeps 0 events"),
        ("UPDATE letopis_outbox_relay SET incarnation = 0", "goes back"),
    ],
)
def test_the_ledger_notices(tmp_path: Path, statement: str, words: str) -> None:
    ledger, outbox, _ = ledgers(tmp_path)
    append(outbox, 1)
    ledger.committed("bot")
    outbox.execute(statement)
    outbox.commit()

    with pytest.raises(Broken, match=words):
        ledger.committed("bot")


def test_the_ledger_notices_a_gap_a_double_and_what_is_not_there(tmp_path: Path) -> None:
    ledger, outbox, store = ledgers(tmp_path)
    for sequence in (1, 2):
        append(outbox, sequence)
        ledger.committed("bot")
    with pytest.raises(Broken, match="in no file"):
        ledger.acknowledged(Ack("a", UUID(bytes=b"\3" * 16), 3))
    store_one(store, 1, 2)
    with pytest.raises(Broken, match="out of order, or a gap"):
        ledger.store.committed()


def test_a_seed_always_makes_the_same_plan_and_all_profiles_come_up() -> None:
    assert plan_of(5) == plan_of(5)
    assert {plan_of(seed).profile for seed in range(len(PROFILES))} == set(PROFILES)


def test_a_mutant_is_a_defect_that_can_be_planted() -> None:
    assert len(MUTANTS) >= 12
    assert MUTANTS.keys() <= DEFECTS.keys()


def test_problems_name_the_seed() -> None:
    results = [Result(seed=1, profile="storm"), Result(seed=2, profile="quiet", broken=["told", "again"])]

    assert problems(results) == ("seed 2 (quiet): told",)
