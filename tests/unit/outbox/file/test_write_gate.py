"""The gate lets one writer at a time to a file that is in its place and has room."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.committer import WriteGate
from letopis.outbox.file.identity import file_id_of
from letopis.outbox.file.limits import Bounds
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.errors import OutboxFull, OutboxUnavailable
from letopis.store.model.messages import Message

UNLIMITED = Bounds(max_bytes=None, min_free_bytes=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "bot.outbox.db"
    path.write_bytes(b"x" * 4096)
    return path


def test_the_file_is_verified_before_the_room_on_it(path: Path) -> None:
    gate = WriteGate(path, file_id_of(path), bounds=UNLIMITED)
    gate.check_room(None)
    path.unlink()
    with pytest.raises(OutboxUnavailable, match="gone from its place"):
        gate.check_room(None)
    gate.check_space(None)  # left to a writer that verifies the file before its commit


def test_the_disk_and_the_limits_are_checked(path: Path) -> None:
    with pytest.raises(OutboxFull, match="the disk of the outbox"):
        WriteGate(path, file_id_of(path), bounds=Bounds(max_bytes=None, min_free_bytes=2**60)).check_space(None)

    gate = WriteGate(path, file_id_of(path), bounds=Bounds(max_bytes=1, min_free_bytes=None))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a)")
        with pytest.raises(OutboxFull, match="may hold 1"):
            gate.check_space(connection.cursor())


async def test_an_append_waits_for_whoever_holds_the_gate(outbox: OutboxFile) -> None:
    await outbox.gate.acquire()
    with pytest.raises(OutboxUnavailable, match="this task holds a transaction"):
        await outbox.append(prepare("c1", [Message.user("within")]))

    async def append() -> int:
        return (await outbox.append(prepare("c1", [Message.user("behind it")]))).written

    waiting = asyncio.create_task(append())
    await asyncio.sleep(0.05)
    assert not waiting.done()

    outbox.gate.release()
    assert await waiting == 2
