"""Daemons of many files in processes of their own: what they take, and what a kill at any moment leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy.ext.asyncio import create_async_engine

from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.outbox.daemon.share import Share
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConfigurationError
from letopis.store.database.urls import normalise_url
from tests.support.daemons import DaemonProcess, ask, letopis, rows, until
from tests.support.fleets import EVENTS_PER_FILE, figures_of, make_fleet
from tests.support.platforms import posix_only
from tests.support.relays import say

pytestmark = posix_only("the figures of a process come from /proc")

LOCK_DESCRIPTORS = 1


@pytest.fixture
def store(fresh_postgresql_url: str, tmp_path: Path) -> str:
    assert letopis("db", "upgrade", "--store", fresh_postgresql_url, folder=tmp_path).returncode == 0
    return fresh_postgresql_url


def stored(url: str) -> list[tuple[str, int]]:
    """Conversation and version of every event, in the order of the log."""

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


def test_a_daemon_of_twenty_files_takes_few_threads_and_one_descriptor_of_each_quiet_file(
    tmp_path: Path, store: str
) -> None:
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
        daemon.signal(signal.SIGTERM)

        assert daemon.wait() == Exit.OK
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
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == Exit.OK

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
        daemon.signal(signal.SIGTERM)

        assert daemon.wait() == Exit.OK


async def _append(path: Path) -> None:
    outbox = await OutboxFile.open(path)
    await say(outbox, f"more-{path.name}", 1)
    await outbox.close()


class TestProcesses:
    """Several processes share the files."""

    def test_each_file_is_served_by_one_and_a_killed_one_is_started_again(self, tmp_path: Path, store: str) -> None:
        paths = asyncio.run(make_fleet(tmp_path, 16, messages=1))
        arguments = ("--outbox", str(tmp_path / "*.outbox.db"), "--store", store, "--listen", "0", "--processes", "2")
        with DaemonProcess(*arguments, folder=tmp_path) as daemon:
            port = daemon.port()
            until(lambda: pending(paths) == 0 and ready(port)["ready"], "delivered", patience=120)
            serving = {
                index: holders([one for one in paths if Share(index=index, count=2).holds(one)]) for index in (0, 1)
            }
            assert all(len(one) == 1 for one in serving.values())
            assert serving[0] != serving[1]
            assert daemon.pid not in serving[0] | serving[1]
            until(lambda: ready(port)["outboxes"]["working"] == 16, "all are reported of")

            def delivered() -> float:
                samples = {one.name: one.samples[0].value for one in parse(ask(port, "/metrics")[1]) if one.samples}
                return samples["letopis_relay_delivered_events"]

            until(lambda: delivered() == 32, "each process says what it delivered")

            (victim,) = serving[0]
            os.kill(victim, signal.SIGKILL)
            for path in paths:
                asyncio.run(_append(path))
            until(lambda: pending(paths) == 0, "delivered after the kill", patience=120)
            until(lambda: ready(port)["ready"], "ready again", patience=60)
            assert daemon.said("it is started again")
            survivors = holders(paths)
            assert victim not in survivors
            daemon.signal(signal.SIGTERM)

            assert daemon.wait() == Exit.OK
            assert not any(Path(f"/proc/{pid}").exists() for pid in survivors)
        assert len(stored(store)) == len(set(stored(store))) == 16 * 4

    def test_they_end_with_the_process_that_started_them(self, tmp_path: Path) -> None:
        paths = asyncio.run(make_fleet(tmp_path, 4, messages=1))
        arguments = ("--outbox", str(tmp_path / "*.outbox.db"), "--store", str(tmp_path / "h.db"), "--processes", "2")
        with DaemonProcess(*arguments, folder=tmp_path) as daemon:
            until(lambda: pending(paths) == 0, "delivered", patience=120)
            serving = holders(paths)
            daemon.signal(signal.SIGKILL)
            daemon._popen.wait(30)
            until(lambda: not any(_runs(pid) for pid in serving), "they end", patience=60)

    def test_a_store_without_tables_ends_all_of_them(self, tmp_path: Path, fresh_postgresql_url: str) -> None:
        asyncio.run(make_fleet(tmp_path, 4, messages=1))
        arguments = ("--outbox", str(tmp_path / "*.outbox.db"), "--store", fresh_postgresql_url, "--processes", "2")
        with DaemonProcess(*arguments, folder=tmp_path) as daemon:
            assert daemon.wait() == Exit.CONFIGURATION


def _runs(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


@pytest.mark.parametrize("text", ["junk", "", "1", "2/2", "-1/2", "0/", "0/2/3", "9" * 5_000 + "/2"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--share is for the processes"):
        Share.parse(text)


def test_a_share_is_read_as_it_is_written() -> None:
    assert Share.parse(str(Share(index=1, count=3))) == Share(index=1, count=3)


def test_shares_part_the_files_and_do_not_depend_on_how_a_path_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    shares = [Share(index=index, count=3) for index in range(3)]
    for number in range(60):
        path = tmp_path / "folder" / f"{number}.db"
        path.touch()
        (holder,) = (one for one in shares if one.holds(path))
        assert holder.holds(tmp_path / "link" / path.name)
    sizes = [sum(one.holds(path) for path in (tmp_path / "folder").iterdir()) for one in shares]
    assert min(sizes) > 8
    assert Share.parse(str(shares[1])) == shares[1]
