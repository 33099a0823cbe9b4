"""Relays in processes of their own: woken by commits of another, stopped beside others."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay import relay as relays
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.database import dialects
from letopis.store.database.timeouts import Timeouts
from letopis.store.write import applier, transaction
from tests.campaigns.invariants import check
from tests.support.child import command
from tests.support.relays import drained, end, figures, relay_on, say, until
from tests.support.sayings import NewStore

COUNT = "SELECT count(*) FROM letopis_messages"


async def deliver_when_woken(path: str, url: str) -> None:
    """Deliver until killed; look for events unasked every ten minutes only."""
    relays.MAX_IDLE_SECONDS = 600.0  # type: ignore[misc]
    outbox = await OutboxFile.open(Path(path))
    async with ConversationStore.open(url) as store:
        await Relay(outbox, store, idle_poll=600.0).run()


async def test_a_relay_elsewhere_is_woken_by_each_commit(outbox: OutboxFile, tmp_path: Path) -> None:
    """From commit here to the row in the store there, while the file is busy; `tests/benchmarks` measures how long."""
    store = tmp_path / "history.db"
    with subprocess.Popen(command(deliver_when_woken, outbox.path, f"sqlite:///{store}")) as process:
        try:
            await say(outbox, "warm up")
            await drained(outbox)
            with closing(sqlite3.connect(store, isolation_level=None)) as reader:
                for number in range(1, 101):
                    await asyncio.sleep(0.01)
                    await say(outbox, "a")
                    await until(lambda number=number: reader.execute(COUNT).fetchone()[0] > number)
        finally:
            process.kill()


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
@pytest.mark.parametrize("limit", [None, LONG_LIMIT_SECONDS], ids=["seconds", "the control: as long as a longer limit"])
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_stopped_relay_delays_others_for_seconds(
    tmp_path: Path, new_store_url: NewStore, kind: str, limit: float | None
) -> None:
    url = new_store_url(kind)
    path, neighbour = await _outboxes(tmp_path, url)
    took, told = await _delay(path, neighbour, url, limit=limit)
    verdict = await check([path, neighbour.path], url, drained=True)
    await neighbour.close()

    assert (took > SOON_SECONDS) is (limit is not None)
    assert limit is not None or told == [0, {"conflict": 1}]
    assert verdict.ok, verdict


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_wait_for_a_connection_is_no_outage(outbox: OutboxFile, new_store_url: NewStore, kind: str) -> None:
    """All connections of the process are in use for longer than one is waited for, again and again."""
    url = new_store_url(kind)
    async with ConversationStore.open(url, migrate=True, pool_size=1, timeouts=Timeouts(statement=0.2)) as store:
        await say(outbox, "chat", 1)
        relay = relay_on(outbox, store)
        await relay.drain()
        await say(outbox, "chat", 1)
        async with store.runtime.engine.connect():
            task = asyncio.create_task(relay.run())
            await asyncio.sleep(1.5)
            assert (await figures(outbox)).pending == 1
            assert relay.breaker.closed
        await drained(outbox)
        await end(task)

    assert relay.breaker.trips == 0
    assert relay.stats.faults.keys() <= {"conflict"}
