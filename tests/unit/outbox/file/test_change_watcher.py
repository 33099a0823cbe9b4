"""Noticing what other processes do to the outbox file."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.file.change_watcher import FileWatcher, Signal
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.file.pending_probe import UNKNOWN_PROGRESS
from tests.support.platforms import own_threads, posix_only
from tests.support.relays import say


@pytest.fixture
def other(outbox: OutboxFile) -> Iterator[sqlite3.Connection]:
    """A connection as another process would have it."""
    with closing(elsewhere(outbox.path)) as connection:
        yield connection


def elsewhere(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)


def touch(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE letopis_outbox_origin SET created_at = created_at + 1")


def watching(outbox: OutboxFile, signal: Signal, **options: Any) -> FileWatcher:
    return FileWatcher(outbox.path, signal, file_id=outbox.file_id, **options)


async def heard(signal: Signal, *, after: int) -> None:
    await asyncio.wait_for(signal.wait(after=after), 60)


async def test_a_commit_of_another_connection_rings_the_bell(tmp_path: Path) -> None:
    """Also at a path with signs of its own."""
    folder = tmp_path / "50% of ünï?s #1"
    folder.mkdir()
    file = await OutboxFile.open(folder / "bot outbox.db")
    signal = Signal()
    with closing(elsewhere(file.path)) as other:
        async with watching(file, signal) as watch:
            seen = signal.generation
            touch(other)
            await heard(signal, after=seen)
    await file.close()

    assert (watch.commits, watch.replaced) == (1, False)


async def test_nothing_is_heard_of_what_was_committed_before_or_rolled_back(
    outbox: OutboxFile, other: sqlite3.Connection
) -> None:
    signal = Signal()
    await say(outbox, "a")
    async with watching(outbox, signal):
        await asyncio.sleep(0.1)
        assert signal.generation == 0
        other.execute("BEGIN IMMEDIATE")
        touch(other)
        other.execute("ROLLBACK")
        await asyncio.sleep(0.1)

    assert signal.generation == 0


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_file_that_was_replaced_or_removed_is_noticed(
    outbox: OutboxFile, tmp_path: Path, replaced: bool
) -> None:
    signal = Signal()
    async with watching(outbox, signal) as watch:
        seen = signal.generation
        if replaced:
            (tmp_path / "restored.db").write_bytes(b"")
            (tmp_path / "restored.db").replace(outbox.path)
        else:
            outbox.path.unlink()
        await heard(signal, after=seen)

        assert watch.replaced
        assert outbox.path.exists() is replaced


async def test_a_watch_leaves_no_thread_behind(outbox: OutboxFile) -> None:
    before = own_threads()
    for _ in range(5):
        async with watching(outbox, Signal()):
            assert own_threads() == before + 1
    assert own_threads() == before


@posix_only("Windows replaces no open file")
async def test_a_file_that_was_replaced_is_not_opened_and_keeps_the_wal_of_the_other(
    outbox: OutboxFile, tmp_path: Path
) -> None:
    """The last connection to close it checkpoints the WAL beside it and deletes that: the real file's last events."""
    await say(outbox, "c1")
    wal = tmp_path / "bot.outbox.db-wal"
    before = wal.stat()
    shutil.copyfile(outbox.path, tmp_path / "copy")
    (tmp_path / "copy").replace(outbox.path)

    signal = Signal()
    async with watching(outbox, signal) as watch:
        assert outbox.probe.lookup("c1") == UNKNOWN_PROGRESS
        await asyncio.sleep(0.1)
    outbox.probe.close()

    assert watch.replaced and signal.generation
    assert (wal.stat().st_ino, wal.stat().st_size) == (before.st_ino, before.st_size)


async def test_a_ring_between_look_and_wait_is_not_lost() -> None:
    signal = Signal()
    seen = signal.generation
    waiting = [asyncio.ensure_future(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    signal.notify()  # before the task has seen that it was cancelled
    await asyncio.wait_for(asyncio.gather(*waiting[1:], signal.wait(after=seen)), 60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(signal.wait(after=signal.generation), 0.01)
