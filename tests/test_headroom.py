"""Headroom: on a full disk new events are refused, and all else goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from letopis.outbox import headroom as subject
from letopis.outbox.append import prepare
from letopis.outbox.bounds import Bounds
from letopis.outbox.file import OutboxFile, look
from letopis.outbox.headroom import Headroom, ballast_of
from letopis.outbox.lanes import counts
from letopis.outbox.relay import Relay
from letopis.store.errors import OutboxFull
from letopis.store.history import ConversationStore
from letopis.store.messages import Message
from tests.campaigns.invariants import check
from tests.relays import DOWN, ToldStore, drained, end, figures, relay_on, say, sql, until

MiB = 1024**2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB, of its own."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("to mount a small tmpfs takes root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(place: Path) -> Path:
    """Take the disk's space to the last byte, as another program would."""
    hog = place / "hog"

    def write(piece: int) -> None:
        with hog.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(piece))

    for piece in (65536, 1):
        with pytest.raises(OSError, match="No space left"):
            write(piece)
    return hog


async def used_up(outbox: OutboxFile) -> int:
    """Append until that is refused; return how many messages were taken."""
    taken = 0
    while True:
        try:
            await outbox.append(prepare(f"c{taken % 20}", [Message.user("x" * 20_000)]))
        except OutboxFull:
            return taken
        taken += 1


def empty_wal(path: Path) -> None:
    """Cut the WAL to nothing, so that even one more page needs space."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


async def said(outbox: OutboxFile) -> int:
    count = "SELECT count(*) FROM letopis_outbox_events WHERE type = 'message.appended'"
    return int(await outbox.read(lambda connection: connection.exec_driver_sql(count).scalar_one()))


async def test_the_watermark_refuses_what_is_new_and_nothing_else(small_disk: Path) -> None:
    outbox = await OutboxFile.open(small_disk / "bot.outbox.db", bounds=Bounds(min_free_bytes=8 * MiB))
    taken = await used_up(outbox)
    with pytest.raises(OutboxFull, match="kept for delivering what is pending"):
        await say(outbox, "new")
    pending = (await figures(outbox)).pending
    store = ToldStore()
    delivered = await relay_on(outbox, store).drain()

    assert taken > 100
    assert await said(outbox) == taken
    assert delivered == pending
    assert shutil.disk_usage(small_disk).free > 4 * MiB
    await outbox.close()


async def test_a_disk_filled_by_others_takes_acks_from_the_ballast_and_recovers_by_itself(small_disk: Path) -> None:
    outbox = await OutboxFile.open(small_disk / "bot.outbox.db", bounds=Bounds(min_free_bytes=8 * MiB))
    await outbox.tidy()
    ballast = ballast_of(outbox.path)
    assert ballast.stat().st_blocks * 512 >= subject.BALLAST
    taken = await used_up(outbox)
    pending = (await figures(outbox)).pending
    empty_wal(outbox.path)
    hog = fill(small_disk)

    async with ConversationStore.open(small_disk.parent / "history.db") as store:
        with pytest.raises(OutboxFull):
            await say(outbox, "new")
        assert await said(outbox) == taken  # reads work
        relay = relay_on(outbox, store, batch=7)
        assert await relay.drain() == pending  # and so do acks, one transaction each
        assert relay.stats.acks_lost == 0
        assert not ballast.exists()
        with pytest.raises(OutboxFull):  # the space of the ballast is not for them
            await say(outbox, "new")
        for number in range(300):
            await sql(outbox, f"UPDATE letopis_outbox_lanes SET fault = 'a verb {number}'")

        hog.unlink()
        await say(outbox, "new")
        await relay.drain()
    verdict = await check([outbox.path], f"sqlite:///{small_disk.parent / 'history.db'}", drained=True)
    await outbox.tidy()

    assert verdict.ok, verdict
    assert verdict.stored == pending + 2
    await outbox.close()


async def test_the_ballast_is_made_again_once_the_disk_has_room_for_it(small_disk: Path) -> None:
    outbox = await OutboxFile.open(small_disk / "bot.outbox.db", bounds=Bounds(min_free_bytes=8 * MiB))
    await say(outbox, "c")
    hog = fill(small_disk)
    await outbox.tidy()
    assert not ballast_of(outbox.path).exists()

    hog.unlink()
    await outbox.tidy()
    assert stat.S_IMODE(ballast_of(outbox.path).stat().st_mode) == 0o600
    assert ballast_of(outbox.path).stat().st_size == subject.BALLAST
    await outbox.close()


async def test_an_outbox_on_a_full_disk_is_opened_and_looked_at_with_the_space_of_the_ballast(small_disk: Path) -> None:
    path = small_disk / "bot.outbox.db"
    for attempt in (look, OutboxFile.open):
        outbox = await OutboxFile.open(path, bounds=Bounds(min_free_bytes=8 * MiB))
        await outbox.tidy()
        await say(outbox, "c")
        await outbox.close()
        hog = fill(small_disk)
        if attempt is look:
            assert (await look(path, counts)).pending >= 2
        else:
            outbox = await OutboxFile.open(path)
            assert (await figures(outbox)).pending >= 2
            await outbox.close()
        assert not ballast_of(path).exists()
        hog.unlink()


async def test_a_full_disk_without_a_ballast_is_told_by_name_and_loses_nothing(small_disk: Path) -> None:
    outbox = await OutboxFile.open(small_disk / "bot.outbox.db", bounds=Bounds(min_free_bytes=None))
    taken = await used_up(outbox)
    hog = fill(small_disk)
    for _ in range(3):
        with pytest.raises(OutboxFull, match="SQLITE_FULL"):
            await outbox.append(prepare("c1", [Message.user("x" * 20_000)]))
    assert await said(outbox) == taken

    assert await outbox.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"

    hog.unlink()
    await say(outbox, "c1")
    assert await said(outbox) == taken + 1
    await outbox.close()


async def test_a_relay_makes_the_ballast_in_a_quiet_moment_also_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.outbox.drain.TIDY", 0.05)
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    relay: Relay = relay_on(outbox, ToldStore(lambda _: DOWN))
    await say(outbox, "c")
    task = asyncio.create_task(relay.run())
    await until(ballast_of(outbox.path).exists)
    await end(task)
    await outbox.close()

    assert not relay.breaker.closed


async def test_a_wal_that_a_reader_made_large_is_cut_back_when_idle(tmp_path: Path) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    wal = tmp_path / "bot.outbox.db-wal"
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()
    leave = threading.Event()

    def linger(connection: object) -> None:
        connection.exec_driver_sql("SELECT count(*) FROM letopis_outbox_events").scalar_one()  # type: ignore[attr-defined]
        loop.call_soon_threadsafe(entered.set)
        leave.wait(30)

    reader = asyncio.create_task(outbox.read(linger))
    await entered.wait()
    for number in range(160):
        await outbox.append(prepare(f"c{number}", [Message.user("x" * 60_000)]))
    grown = wal.stat().st_size
    await outbox.tidy()
    while_read = wal.stat().st_size
    leave.set()
    await reader
    await outbox.tidy()

    assert grown > 8 * MiB
    assert while_read == grown  # a reader is not waited for
    assert wal.stat().st_size == 0
    await drained_by(outbox)
    await outbox.close()


async def drained_by(outbox: OutboxFile) -> None:
    relay = relay_on(outbox, ToldStore())
    await relay.drain()
    await drained(outbox)


def test_two_processes_make_one_ballast(tmp_path: Path) -> None:
    first = Headroom(tmp_path / "bot.outbox.db", watermark=None, ballast=4096)
    second = Headroom(tmp_path / "bot.outbox.db", watermark=None, ballast=4096)

    assert first.restore() and second.restore()
    assert [one.name for one in tmp_path.iterdir()] == ["bot.outbox.db.ballast"]
    assert first.release()
    assert not second.release()


def test_a_ballast_is_written_where_the_system_cannot_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert Headroom(tmp_path / "b", watermark=None).restore()
    assert (tmp_path / "b.ballast").stat().st_size == subject.BALLAST
