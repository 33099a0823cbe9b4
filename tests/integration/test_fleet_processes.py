"""Daemons of many files in processes of their own: what they take, and what a kill at any moment leaves."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy.ext.asyncio import create_async_engine

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.database.urls import normalise_url
from tests.support.daemons import DaemonProcess, ask, letopis, until
from tests.support.fleets import EVENTS_PER_FILE, figures_of, make_fleet
from tests.support.platforms import posix_only
from tests.support.relays import say
from tests.support.sqlite_rows import rows

pytestmark = posix_only("the figures of a process come from /proc")

LOCK_DESCRIPTORS = 1


@pytest.fixture
def store(fresh_postgresql_url: str, tmp_path: Path) -> str:
    assert letopis("db", "upgrade", "--store", fresh_postgresql_url, folder=tmp_path).returncode == 0
    return fresh_postgresql_url


def stored(url: str) -> list[tuple[str, int]]:
    async def read() -> list[tuple[str, int]]:
        engine = create_async_engine(normalise_url(url))
        try:
            async with engine.connect() as connection:
                found = await connection.exec_driver_sql(
                    "SELECT conversation_id, version FROM letopis_events ORDER BY position"
                )
                return [(row[0], row[1]) for row in found]
        finally:
            await engine.dispose()

    return asyncio.run(read())


def pending(paths: list[Path]) -> int:
    def of(path: Path) -> int:
        with closing(sqlite3.connect(path, timeout=20)) as connection:
            (found,) = connection.execute(
                "SELECT coalesce(sum(head - delivered), 0) FROM letopis_outbox_lanes"
            ).fetchone()
        return int(found)

    return sum(map(of, paths))


def holders(paths: list[Path]) -> set[int]:
    return {rows(path, "SELECT pid FROM letopis_outbox_relay")[0][0] for path in paths}


def ready(port: int) -> Any:
    return json.loads(ask(port, "/healthz/ready")[1])


def test_daemon_of_twenty_files_takes_few_threads_and_one_descriptor_each(tmp_path: Path, store: str) -> None:
    paths = asyncio.run(make_fleet(tmp_path, 20))
    arguments = ("--outbox", str(tmp_path / "*.outbox.db"), "--store", store, "--listen", "0")
    with DaemonProcess(*arguments, folder=tmp_path) as daemon:
        most = 0

        def closed() -> bool:
            nonlocal most
            now = figures_of(daemon.pid)
            most = max(most, now.threads)
            return pending(paths) == 0 and now.open_files == 0

        until(closed, "delivered and closed", patience=120)
        now = figures_of(daemon.pid)
        health = ready(daemon.port())
        metrics = {one.name: one for one in parse(ask(daemon.port(), "/metrics")[1])}
        daemon.end()
    assert most < 20
    assert now.outbox_descriptors <= 20 * LOCK_DESCRIPTORS
    assert health["outboxes"] == {"working": 20, "standby": 0, "wrong_store": 0, "unusable": 0}
    assert (health["ready"], health["pending"]) == (True, 0)
    assert metrics["letopis_relay_delivered_events"].samples[0].value == 20 * EVENTS_PER_FILE
    assert len(stored(store)) == len(set(stored(store))) == 20 * EVENTS_PER_FILE


def test_a_kill_midway_delivers_each_event_once_and_in_order(tmp_path: Path, store: str) -> None:
    files = 100
    paths = asyncio.run(make_fleet(tmp_path, files, messages=3))
    arguments = ("--outbox", str(tmp_path / "*.outbox.db"), "--store", store)
    for _ in range(2):
        with DaemonProcess(*arguments, folder=tmp_path) as daemon:
            before = pending(paths)
            until(lambda before=before: pending(paths) < before - 40, "some are delivered", patience=120)
            daemon.signal(signal.SIGKILL)
            assert daemon.wait() == -signal.SIGKILL
    with DaemonProcess(*arguments, folder=tmp_path) as daemon:
        until(lambda: pending(paths) == 0, "all are delivered", patience=120)
        daemon.end()

    found = stored(store)
    assert len(found) == files * 4
    for number in range(files):
        assert [version for name, version in found if name == f"chat-{number:05}"] == [1, 2, 3, 4]


def test_a_hangup_reaches_files_that_are_closed(tmp_path: Path) -> None:
    paths = asyncio.run(make_fleet(tmp_path, 12, messages=1))
    toml = tmp_path / "letopis.toml"
    toml.write_text('[daemon]\nlog_level = "INFO"\n')
    arguments = ("--outbox", str(tmp_path / "*.outbox.db"), "--store", str(tmp_path / "history.db"))
    with DaemonProcess(*arguments, folder=tmp_path) as daemon:
        until(lambda: pending(paths) == 0 and figures_of(daemon.pid).open_files == 0, "closed", patience=120)
        toml.write_text('[daemon]\nlog_level = "INFO"\n[relay]\nattempts = 7\n')
        daemon.signal(signal.SIGHUP)
        until(lambda: daemon.said("the configuration was read again"), "read again")
        asyncio.run(_append(paths[5]))
        until(lambda: pending(paths) == 0, "delivered after it")
        daemon.end()


def test_two_daemons_with_two_patterns_share_the_files(tmp_path: Path, store: str) -> None:
    paths = asyncio.run(make_fleet(tmp_path, 16, messages=1))
    mine = ("--outbox", str(tmp_path / "*[0-4].outbox.db"), "--store", store, "--listen", "0")
    others = ("--outbox", str(tmp_path / "*[!0-4].outbox.db"), "--store", store, "--listen", "0")
    with DaemonProcess(*mine, folder=tmp_path) as first, DaemonProcess(*others, folder=tmp_path) as second:
        until(lambda: pending(paths) == 0, "delivered", patience=120)
        working = [ready(daemon.port())["outboxes"]["working"] for daemon in (first, second)]
        half = [path for path in paths if path.name[8] in "01234"]

        assert holders(half) == {first.pid}
        assert holders([path for path in paths if path not in half]) == {second.pid}
        assert working == [10, 6]
        for daemon in (first, second):
            daemon.end()
    assert len(stored(store)) == len(set(stored(store))) == 16 * 2


async def _append(path: Path) -> None:
    outbox = await OutboxFile.open(path)
    await say(outbox, f"more-{path.name}", 1)
    await outbox.close()
