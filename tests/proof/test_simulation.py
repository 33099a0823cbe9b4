"""The simulation's own rules: time jumps, chance repeats, there are no threads, and processes end at once."""

import asyncio
import random
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.proof.simulation import strands
from tests.proof.simulation.driver import Disk, File
from tests.proof.simulation.loop import Deadlock, Process, VirtualLoop
from tests.proof.simulation.mutants import MUTANTS
from tests.proof.simulation.part import judged
from tests.proof.simulation.world import DIED, Result
from tests.support.defects import DEFECTS


def live(work: Coroutine[Any, Any, Any], *, seed: int = 7) -> Any:
    loop = VirtualLoop(random.Random(seed))
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def test_waiting_for_what_cannot_come_is_no_endless_wait() -> None:
    loop = VirtualLoop(random.Random(1))
    with pytest.raises(Deadlock):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_a_control_is_not_caught_by_a_process_that_a_badly_planted_defect_ended() -> None:
    died = Result(seed=1, profile="storm", broken=[f"1.5 s: bot-0 {DIED} AttributeError('no such function')"])
    lost = Result(seed=2, profile="storm", broken=["2.5 s: 'chat' is lost"])

    assert [judged("a defect", found).violations for found in ([died], [died, lost])] == [0, 1]
    assert "'chat' is lost" in judged("a defect", [died, lost]).notes


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
    with closing(sqlite3.connect(path)) as made, made:
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


def test_a_mutant_is_a_defect_that_can_be_planted() -> None:
    assert len(MUTANTS) >= 12
    assert MUTANTS.keys() <= DEFECTS.keys()
