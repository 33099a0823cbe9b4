"""Daemons of many files in processes of their own: what they take, and what a kill at any moment leaves."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.integration.test_daemon_processes import filled
from tests.integration.test_daemon_processes import pending as pending_of
from tests.support.daemons import DaemonProcess, ask, letopis, until
from tests.support.fleets import EVENTS_PER_FILE, figures_of, make_fleet
from tests.support.moves import run_sql
from tests.support.platforms import posix_only

pytestmark = posix_only("the figures of a process come from /proc")

LOCK_DESCRIPTORS = 1


@pytest.fixture
def store(fresh_postgresql_url: str, tmp_path: Path) -> str:
    assert letopis("db", "upgrade", "--store", fresh_postgresql_url, folder=tmp_path).returncode == 0
    return fresh_postgresql_url


def pending(paths: list[Path]) -> int:
    return sum(pending_of(path) for path in paths)


def stored(url: str) -> list[tuple[str, int]]:
    return asyncio.run(run_sql(url, "SELECT conversation_id, version FROM letopis_events ORDER BY position"))


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
        health = json.loads(ask(daemon.port(), "/healthz/ready")[1])
        metrics = {one.name: one for one in parse(ask(daemon.port(), "/metrics")[1])}
        # A reload reaches the closed files too.
        daemon.signal(signal.SIGHUP)
        until(lambda: daemon.said("the configuration was read again"), "read again")
        filled(paths[5], "more", 1)
        until(lambda: pending(paths) == 0, "delivered after it")
        daemon.end()
    assert most < 20
    assert now.outbox_descriptors <= 20 * LOCK_DESCRIPTORS
    assert health["outboxes"] == {"working": 20, "standby": 0, "wrong_store": 0, "unusable": 0}
    assert (health["ready"], health["pending"]) == (True, 0)
    assert metrics["letopis_relay_delivered_events"].samples[0].value == 20 * EVENTS_PER_FILE
    assert len(stored(store)) == len(set(stored(store))) == 20 * EVENTS_PER_FILE + 2
