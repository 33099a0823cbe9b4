"""Relays in processes of their own: killed, started again, standing by."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.lease import SILENCE_SECONDS
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.database import dialects
from letopis.store.database.timeouts import Timeouts
from letopis.store.write import applier, transaction
from tests.campaigns.invariants import check
from tests.support.child import command
from tests.support.relays import drained, end, figures, relay_on, say, sql, until
from tests.support.sayings import NewStore
from tests.support.verdicts import assert_whole

RELAY = """
import asyncio, sys
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay import relay
from letopis.store.conversation_store import ConversationStore

async def main(outbox, store, batch, leisure):
    relay.MAX_IDLE_SECONDS = leisure = float(leisure)
    file = await OutboxFile.open(outbox)
    async with ConversationStore.open(store) as history:
        found = relay.Relay(file, history, batch=int(batch), idle_poll=leisure, holder="test process")
        print("ready", flush=True)
        await found.run()

asyncio.run(main(*sys.argv[1:]))
"""


COUNT = "SELECT count(*) FROM letopis_messages"


class Process:
    def __init__(self, outbox: OutboxFile, store: Path, *, batch: int = 500, leisure: float = 0.25) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-c", RELAY, str(outbox.path), f"sqlite:///{store}", str(batch), str(leisure)],
            stdout=subprocess.PIPE,
            text=True,
        )

    async def ready(self) -> Process:
        assert self._popen.stdout is not None
        assert await asyncio.to_thread(self._popen.stdout.readline) == "ready\n"
        return self

    @property
    def pid(self) -> int:
        return self._popen.pid

    def signal(self, how: signal.Signals) -> None:
        self._popen.send_signal(how)

    async def stand_still(self) -> None:
        """Stop it, and wait until it stands: a thread that is inside a system call first comes to the end of it."""
        self.signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        while tasks.exists() and any(  # noqa: ASYNC110 - the kernel rings no bell
            (one / "stat").read_text().rpartition(")")[2].split()[0] not in ("T", "t") for one in tasks.iterdir()
        ):
            await asyncio.sleep(0.001)

    def kill(self) -> None:
        with self._popen:
            self._popen.kill()


def writable(path: Path) -> bool:
    """Return True if no connection holds the write lock of an SQLite file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0.1)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


async def holder(outbox: OutboxFile) -> int:
    found = await sql(outbox, "SELECT pid FROM letopis_outbox_relay")
    return int(found[0][0]) if found else 0


async def test_standby_takes_over_from_a_killed_one_before_its_silence_counts(
    outbox: OutboxFile, tmp_path: Path
) -> None:
    store = tmp_path / "history.db"
    relays = {one.pid: one for one in [await Process(outbox, store).ready() for _ in range(2)]}
    waits = []
    for _ in range(3):

        async def held() -> bool:
            return await holder(outbox) in relays

        await until(held)
        first = await holder(outbox)
        relays.pop(first).kill()
        start = time.monotonic()
        await say(outbox, "a")
        await drained(outbox)
        waits.append(time.monotonic() - start)
        assert await holder(outbox) in relays
        new = await Process(outbox, store).ready()
        relays[new.pid] = new
    for one in relays.values():
        one.kill()

    assert max(waits) < SILENCE_SECONDS / 2


async def test_a_holder_that_was_stopped_wakes_up_to_find_itself_replaced(outbox: OutboxFile, tmp_path: Path) -> None:
    """SIGSTOP in the middle of its work, a takeover past the lock, SIGCONT: what it writes back late is refused."""
    store = tmp_path / "history.db"
    stopped = await Process(outbox, store, batch=3).ready()
    for number in range(80):
        await say(outbox, f"c{number % 8}", 5)

    async def begun() -> bool:
        return 0 < (await figures(outbox)).pending < 400

    await until(begun)
    await stopped.stand_still()
    while not (writable(outbox.path) and writable(store)):  # stopped with a lock in its hand: once more
        stopped.signal(signal.SIGCONT)
        await asyncio.sleep(0.003)
        await stopped.stand_still()
    async with ConversationStore.open(f"sqlite:///{store}") as history:
        successor = relay_on(outbox, history, locked=False)
        await successor.drain()
        stopped.signal(signal.SIGCONT)
        for number in range(10):
            await say(outbox, f"c{number % 8}", 5)
        await drained(outbox)
    stopped.kill()
    await assert_whole(outbox, f"sqlite:///{store}", 458)


async def test_a_relay_elsewhere_is_woken_by_each_commit(outbox: OutboxFile, tmp_path: Path) -> None:
    """From commit here to the row in the store there, while the file is busy; `tests/benchmarks` measures how long."""
    store = tmp_path / "history.db"
    relay = await Process(outbox, store, leisure=600).ready()
    await say(outbox, "warm up")
    await drained(outbox)
    reader = sqlite3.connect(store, isolation_level=None)
    for number in range(1, 101):
        await asyncio.sleep(0.01)
        await say(outbox, "a")
        await until(lambda number=number: reader.execute(COUNT).fetchone()[0] > number)
    reader.close()
    relay.kill()


# --- Neighbours ---


SOON_SECONDS = 5.0
LONG_LIMIT_SECONDS = 8


async def deliver_and_stop(path: str, url: str, limit: float | None) -> list[Any]:
    """Deliver what is pending, but stop this process where its first transaction holds the log.

    :param limit: seconds that the database lets the transaction wait; ``None`` for the product's own.
    """
    if limit is not None:
        dialects._APPEND = dialects._APPEND.replace("'3000'", f"'{limit * 1000}'")  # type: ignore[misc]
        dialects.LOG_IDLE_SECONDS = transaction.LOG_IDLE_SECONDS = limit  # type: ignore[misc, attr-defined]
    real, stopped = applier.append_to_log, list[None]()

    async def append(*given: Any) -> None:
        await real(*given)
        if not stopped:
            stopped.append(None)
            os.kill(os.getpid(), signal.SIGSTOP)

    applier.append_to_log = append  # type: ignore[attr-defined]
    outbox = await OutboxFile.open(Path(path))
    try:
        async with ConversationStore.open(url, migrate=False) as store:
            relay = Relay(outbox, store)
            delivered = 0
            while delivered < 3:
                delivered += await relay.drain()
            return [relay.breaker.trips, dict(relay.stats.faults)]
    finally:
        await outbox.close()


async def _delay(path: Path, neighbour: OutboxFile, url: str, *, limit: float | None = None) -> tuple[float, list[Any]]:
    """Return how long a neighbour's delivery took beside a stopped relay, and what that relay tells when it goes on."""
    words = command(deliver_and_stop, path, url, limit)
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert process.poll() is None
            await asyncio.sleep(0.01)
        async with ConversationStore.open(url, migrate=False) as store:
            began = time.monotonic()
            assert await relay_on(neighbour, store).drain() == 1
            took = time.monotonic() - began
        process.send_signal(signal.SIGCONT)
        answer, _ = await asyncio.to_thread(process.communicate, timeout=60)
        return took, json.loads(answer)
    finally:
        process.kill()
        process.wait()


async def _outboxes(tmp_path: Path, url: str) -> tuple[Path, OutboxFile]:
    stopped = await OutboxFile.open(tmp_path / "stopped.outbox.db")
    await say(stopped, "chat", 2)  # with the event that starts it: 3
    await stopped.close()
    neighbour = await OutboxFile.open(tmp_path / "neighbour.outbox.db")
    async with ConversationStore.open(url, migrate=True) as store:
        await say(neighbour, "first", 1)
        await relay_on(neighbour, store).drain()
    await say(neighbour, "first", 1)
    return stopped.path, neighbour


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_stopped_relay_delays_others_for_seconds(tmp_path: Path, new_store_url: NewStore, kind: str) -> None:
    url = new_store_url(kind)
    path, neighbour = await _outboxes(tmp_path, url)
    took, (trips, faults) = await _delay(path, neighbour, url)
    verdict = await check([path, neighbour.path], url, drained=True)
    await neighbour.close()

    assert took < SOON_SECONDS
    assert (trips, faults) == (0, {"conflict": 1})
    assert verdict.ok, verdict


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_it_takes_longer_without_the_limit(tmp_path: Path, new_store_url: NewStore, kind: str) -> None:
    """The control: the delay is the limit's."""
    url = new_store_url(kind)
    path, neighbour = await _outboxes(tmp_path, url)
    took, _ = await _delay(path, neighbour, url, limit=LONG_LIMIT_SECONDS)
    await neighbour.close()

    assert took > SOON_SECONDS


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_wait_for_a_connection_is_no_outage(outbox: OutboxFile, new_store_url: NewStore, kind: str) -> None:
    """All connections of the process are in use for longer than one is waited for, again and again."""
    url = new_store_url(kind)
    async with ConversationStore.open(url, migrate=True, pool_size=1, timeouts=Timeouts(statement=0.2)) as store:
        await say(outbox, "chat", 1)
        relay = relay_on(outbox, store)
        await relay.drain()
        await say(outbox, "chat", 1)
        async with store._runtime.engine.connect():
            task = asyncio.create_task(relay.run())
            await asyncio.sleep(1.5)
            assert (await figures(outbox)).pending == 1
            assert relay.breaker.closed
        await drained(outbox)
        await end(task)

    assert relay.breaker.trips == 0
    assert relay.stats.faults.keys() <= {"conflict"}
