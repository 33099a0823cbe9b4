"""Noticing what other processes do to the outbox file."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import statistics
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letopis.outbox.bell import Bell
from letopis.outbox.file import OutboxFile
from letopis.outbox.glance import UNKNOWN
from letopis.outbox.wake import FASTEST, SLOWEST, FileWatch
from tests.relays import say


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[OutboxFile]:
    file = await OutboxFile.open(tmp_path / "bot.outbox.db")
    yield file
    await file.close()


def elsewhere(path: Path) -> sqlite3.Connection:
    """A connection as another process would have it."""
    return sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)


def touch(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE letopis_outbox_origin SET created_at = created_at + 1")


async def test_a_commit_of_another_connection_rings_the_bell(outbox: OutboxFile) -> None:
    bell = Bell()
    other = elsewhere(outbox.path)
    async with FileWatch(outbox.path, bell, place=outbox.place) as watch:
        rings = bell.rings
        touch(other)
        async with asyncio.timeout(5):
            await bell.wait(rings)
    other.close()

    assert watch.commits == 1
    assert not watch.replaced


async def test_nothing_is_heard_of_what_was_rolled_back(outbox: OutboxFile) -> None:
    bell = Bell()
    other = elsewhere(outbox.path)
    async with FileWatch(outbox.path, bell, place=outbox.place):
        other.execute("BEGIN IMMEDIATE")
        touch(other)
        other.execute("ROLLBACK")
        await asyncio.sleep(0.1)
    other.close()

    assert bell.rings == 0


async def test_what_was_committed_before_the_watch_began_is_no_news(outbox: OutboxFile) -> None:
    bell = Bell()
    await say(outbox, "a")
    async with FileWatch(outbox.path, bell, place=outbox.place):
        await asyncio.sleep(0.1)

    assert bell.rings == 0


async def test_wake_ups_of_a_busy_file_come_within_milliseconds(outbox: OutboxFile) -> None:
    """The median is the promise; the 99th percentile is taken with room for a machine that is shared."""
    bell = Bell()
    other = elsewhere(outbox.path)
    delays = []
    async with FileWatch(outbox.path, bell, place=outbox.place):
        for _ in range(150):
            await asyncio.sleep(0.004)
            rings, start = bell.rings, time.perf_counter()
            await asyncio.to_thread(touch, other)
            committed = time.perf_counter()
            async with asyncio.timeout(5):
                await bell.wait(rings)
            delays.append(time.perf_counter() - committed)
            assert time.perf_counter() > start
    other.close()

    assert statistics.median(delays) < 0.03
    assert statistics.quantiles(delays, n=100)[98] < 0.15


async def test_the_pause_grows_with_the_quiet_and_has_a_limit(outbox: OutboxFile) -> None:
    watch = FileWatch(outbox.path, Bell(), place=outbox.place)

    assert [watch._pause(quiet) for quiet in (0, 0.2, 2, 10, 3_600)] == [FASTEST, FASTEST, 0.02, 0.1, SLOWEST]


async def test_a_quiet_file_costs_next_to_no_processor_time(outbox: OutboxFile) -> None:
    async with FileWatch(outbox.path, Bell(), place=outbox.place, fastest=0.02):
        before = time.process_time()
        await asyncio.sleep(2)
        spent = time.process_time() - before

    assert spent / 2 < 0.05


async def test_a_file_that_was_replaced_is_noticed(outbox: OutboxFile, tmp_path: Path) -> None:
    bell = Bell()
    async with FileWatch(outbox.path, bell, place=outbox.place) as watch:
        rings = bell.rings
        other = tmp_path / "restored.db"
        other.write_bytes(b"")
        other.replace(outbox.path)
        async with asyncio.timeout(5):
            await bell.wait(rings)

        assert watch.replaced


async def test_a_file_that_is_gone_is_noticed(outbox: OutboxFile) -> None:
    bell = Bell()
    async with FileWatch(outbox.path, bell, place=outbox.place) as watch:
        rings = bell.rings
        outbox.path.unlink()
        async with asyncio.timeout(5):
            await bell.wait(rings)

        assert watch.replaced
        assert not outbox.path.exists()


async def test_a_path_with_signs_of_its_own_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "50% of ünï?s #1"
    folder.mkdir()
    file = await OutboxFile.open(folder / "bot outbox.db")
    bell = Bell()
    other = elsewhere(file.path)
    async with FileWatch(file.path, bell, place=file.place) as watch:
        touch(other)
        async with asyncio.timeout(5):
            await bell.wait(0)
    other.close()
    await file.close()

    assert (watch.commits, watch.replaced) == (1, False)


async def test_a_watch_leaves_no_thread_behind(outbox: OutboxFile) -> None:
    before = threading.active_count()
    for _ in range(5):
        async with FileWatch(outbox.path, Bell(), place=outbox.place):
            assert threading.active_count() == before + 1

    assert threading.active_count() == before


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be replaced there")
async def test_a_file_that_was_replaced_is_not_opened_and_keeps_the_wal_of_the_other(tmp_path: Path) -> None:
    """Whoever closes it last moves the WAL that lies beside it into it, and deletes it: the real one's last events."""
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    await say(outbox, "c1")
    wal = tmp_path / "bot.outbox.db-wal"
    before = wal.stat()
    shutil.copyfile(outbox.path, tmp_path / "copy")
    (tmp_path / "copy").replace(outbox.path)

    bell = Bell()
    async with FileWatch(outbox.path, bell, place=outbox.place) as watch:
        assert outbox.glance("c1") == UNKNOWN
        await asyncio.sleep(0.1)
    outbox.glance.close()

    assert watch.replaced
    assert bell.rings
    assert (wal.stat().st_ino, wal.stat().st_size) == (before.st_ino, before.st_size)
    await outbox.close()
