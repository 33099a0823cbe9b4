"""A full outbox or disk refuses new events, and everything else continues."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from letopis import ConversationStore, Message, OutboxFull
from letopis.ops.doctor import check_location
from letopis.outbox import Bounds, OutboxFile
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.lanes import count_lanes
from letopis.outbox.file import limits as subject
from letopis.outbox.file import wal_checkpoint
from letopis.outbox.file.limits import DiskReserve, reserve_path
from letopis.outbox.file.opening import read_snapshot
from letopis.outbox.file.wal_checkpoint import readers_of
from letopis.outbox.operations import status
from tests.support.fix_disk import fill
from tests.support.platforms import posix_only
from tests.support.relays import DOWN, ToldStore, figures, relay_on, running, say, sql, until
from tests.support.verdicts import assert_whole

MiB = 1024**2


async def said(outbox: OutboxFile) -> int:
    count = "SELECT count(*) FROM letopis_outbox_events WHERE type = 'message.appended'"
    return int(await outbox.read(lambda connection: connection.exec_driver_sql(count).scalar_one()))


async def used_up(outbox: OutboxFile) -> int:
    """Append until that is refused; return how many messages were taken."""
    taken = 0
    while True:
        try:
            await outbox.append(prepare(f"c{taken % 20}", [Message.user("x" * 20_000)]))
        except OutboxFull:
            return taken
        taken += 1


@pytest.fixture
async def small(small_disk: Path) -> AsyncIterator[OutboxFile]:
    """An outbox on a small disk, of which some has to stay free."""
    outbox = await OutboxFile.open(small_disk / "bot.outbox.db", bounds=Bounds(min_free_bytes=8 * MiB))
    yield outbox
    await outbox.close()


@pytest.mark.parametrize("bounds", [Bounds(max_events=3), Bounds(max_events=None, max_bytes=250_000)])
async def test_a_full_outbox_refuses_new_events_drops_none_and_takes_acks(tmp_path: Path, bounds: Bounds) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db", bounds=bounds)
    taken = await used_up(outbox)
    with pytest.raises(OutboxFull, match="nothing was dropped"):
        await say(outbox, "new")

    assert 0 < taken == await said(outbox)
    await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = head, pruned = head")
    await sql(outbox, "DELETE FROM letopis_outbox_events")
    await say(outbox, "new")
    await outbox.close()


async def test_an_append_is_refused_where_the_disk_keeps_too_little(tmp_path: Path) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db", bounds=Bounds(min_free_bytes=2**60))
    with pytest.raises(OutboxFull, match="the disk of the outbox"):
        await say(outbox, "new")
    await outbox.close()


def empty_wal(path: Path) -> None:
    """Cut the WAL to nothing, so that even one more page needs space."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


async def test_a_disk_filled_by_others_takes_acks_from_the_reserve_and_recovers_by_itself(
    small: OutboxFile, small_disk: Path
) -> None:
    await small.maintain()
    reserve = reserve_path(small.path)
    assert reserve.stat().st_blocks * 512 >= subject.RESERVE_BYTES
    taken = await used_up(small)
    pending = (await figures(small)).pending
    empty_wal(small.path)
    hog = fill(small_disk)

    async with ConversationStore.open(small_disk.parent / "history.db") as store:
        with pytest.raises(OutboxFull):
            await say(small, "new")
        assert await said(small) == taken  # reads work
        relay = relay_on(small, store, batch=7)
        assert await relay.drain() == pending  # and so do acks, one transaction each
        assert relay.stats.acks_lost == 0
        assert not reserve.exists()
        with pytest.raises(OutboxFull):  # the space of the reserve is not for them
            await say(small, "new")
        for number in range(300):
            await sql(small, f"UPDATE letopis_outbox_lanes SET fault = 'a verb {number}'")

        hog.unlink()
        await say(small, "new")
        await relay.drain()
    await assert_whole(small, f"sqlite:///{small_disk.parent / 'history.db'}", pending + 2)
    await small.maintain()


async def test_the_reserve_is_made_again_once_the_disk_has_room_for_it(small: OutboxFile, small_disk: Path) -> None:
    reserve = reserve_path(small.path)
    await say(small, "c")
    hog = fill(small_disk)
    await small.maintain()
    assert not reserve.exists()

    hog.unlink()
    await small.maintain()
    assert (stat.S_IMODE(reserve.stat().st_mode), reserve.stat().st_size) == (0o600, subject.RESERVE_BYTES)


async def test_an_outbox_on_a_full_disk_is_opened_and_looked_at_with_the_space_of_the_reserve(small_disk: Path) -> None:
    path = small_disk / "bot.outbox.db"
    for attempt in (read_snapshot, OutboxFile.open):
        outbox = await OutboxFile.open(path, bounds=Bounds(min_free_bytes=8 * MiB))
        await outbox.maintain()
        await say(outbox, "c")
        await outbox.close()
        hog = fill(small_disk)
        if attempt is read_snapshot:
            assert (await read_snapshot(path, count_lanes)).pending >= 2
        else:
            outbox = await OutboxFile.open(path)
            assert (await figures(outbox)).pending >= 2
            await outbox.close()
        assert not reserve_path(path).exists()
        hog.unlink()


async def test_a_relay_makes_the_reserve_in_a_quiet_moment_also_while_the_store_is_away(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.outbox.relay.idle_work.TIDY_INTERVAL_SECONDS", 0.05)
    await say(outbox, "c")
    async with running(relay_on(outbox, ToldStore(lambda _: DOWN))) as relay:
        await until(reserve_path(outbox.path).exists)
    assert not relay.breaker.closed


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM letopis_outbox_events").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


async def appended_until_full(outbox: OutboxFile) -> None:
    for number in range(1_000):
        await outbox.append(prepare("c1", [Message.user(f"{number}" + "x" * 60_000)]))
        await outbox.maintain()
        # The sizes are looked at once a second, and this machine may be quick.
        outbox.gate.files._verify_beside_at = 0.0


async def test_a_wal_that_a_reader_holds_is_told_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It grew to 488 MB silently: status was healthy, nothing was logged, and no bound held."""
    path = tmp_path / "bot.outbox.db"
    for module in (status, wal_checkpoint, check_location):
        monkeypatch.setattr(module, "LARGE_WAL_BYTES", 12 * MiB)
    outbox = await OutboxFile.open(path, bounds=Bounds(max_bytes=20 * MiB, min_free_bytes=None))
    reader = subprocess.Popen([sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert reader.stdout.readline() == b"reading\n"
        with caplog.at_level("WARNING", "letopis.outbox.writer"), pytest.raises(OutboxFull) as refused:
            await appended_until_full(outbox)
        found = await outbox.read(lambda connection: status.read_status(connection, now_us=outbox.now_us()))
        finding = check_location._wal(path)
    finally:
        reader.communicate(b"")

    assert "in its WAL and may hold" in str(refused.value)
    assert [record.message.split(":")[0] for record in caplog.records] == ["the outbox's WAL has grown to 12 MiB"]
    assert found.wal_bytes > 12 * MiB and not found.healthy
    assert finding.level == "warn"
    assert all(f"pid {reader.pid}" in text for text in (caplog.text, str(finding)))
    await outbox.maintain()
    assert path.with_name("bot.outbox.db-wal").stat().st_size == 0
    await outbox.append(prepare("c1", [Message.user("again")]))
    assert readers_of(path) == ()
    await outbox.close()


def test_two_processes_make_one_reserve(tmp_path: Path) -> None:
    first = DiskReserve(tmp_path / "bot.outbox.db", watermark=None, reserve=4096)
    second = DiskReserve(tmp_path / "bot.outbox.db", watermark=None, reserve=4096)
    assert first.restore() and second.restore()
    assert [one.name for one in tmp_path.iterdir()] == ["bot.outbox.db.ballast"]
    assert first.release()
    assert not second.release()


@posix_only("Windows has no statvfs")
async def test_a_disk_that_reports_no_blocks_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096))
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    await outbox.append(prepare("c", [Message.user("hi")]))
    assert await said(outbox) == 1
    await outbox.close()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=9, f_bavail=0, f_frsize=4096))
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    with pytest.raises(OutboxFull):
        await outbox.append(prepare("c", [Message.user("full")]))
    await outbox.close()


def test_a_reserve_is_written_where_the_system_cannot_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor has it ``statvfs``."""
    usage, reserve = shutil.disk_usage(tmp_path), DiskReserve(tmp_path / "b", watermark=None)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.delattr(os, "statvfs", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert (reserve.restore(), reserve.free()) == (True, usage.free)
    assert (tmp_path / "b.ballast").stat().st_size == subject.RESERVE_BYTES
