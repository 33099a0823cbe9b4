"""Many files in one daemon: which are open, when the others are opened, and what is said of them meanwhile."""

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis.ops.daemon import outbox_worker, timetable
from letopis.ops.daemon.daemon import Daemon
from letopis.ops.daemon.discovery import OutboxMatch
from letopis.ops.daemon.fleet import Fleet
from letopis.ops.daemon.health import HealthSnapshot
from letopis.ops.daemon.outbox_worker import OutboxWorker
from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.file.inspection import read_file
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.file.sign_of_life import lock_path
from letopis.outbox.operations.status import Status, status_of
from letopis.outbox.relay.dispatcher import MAX_BATCHES_PER_RUN
from letopis.outbox.relay.lease import LeaseLock
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.model.events import to_microseconds, utc_now
from tests.support.platforms import posix_only
from tests.support.relays import POISON, end, fault, say, until
from tests.support.sqlite_rows import rows
from tests.support.store_changes import copied, put_back
from tests.unit.ops.daemon.test_daemon import logging_left_alone, made, running  # noqa: F401 - a fixture

FILES = 6
OPEN = 2


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have quiet files looked at within a second instead of minutes."""
    monkeypatch.setattr(timetable, "LOOKS", RetryPolicy(base=0.5, factor=1.0, cap=0.5))
    monkeypatch.setattr(timetable, "TROUBLED_LOOK_SECONDS", 0.5)
    monkeypatch.setattr("letopis.ops.daemon.fleet.LOOK_PACE_SECONDS", 0.1)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Alert]:
    """What the daemon sends to its only channel."""
    alerts = list[Alert]()

    class Channel:
        name = recipient = "made-up"

        def send(self, alert: Alert) -> None:
            alerts.append(alert)

    monkeypatch.setattr("letopis.ops.daemon.daemon.open_channels", lambda *_, **__: (Channel(),))
    return alerts


def refuse(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], StoreFault | None]) -> None:
    """Have the store refuse each batch for which there is a fault."""
    apply = ConversationStore.apply

    async def asked(store: ConversationStore, origin: Any, batch: Any) -> Any:
        if (found := fault(batch)) is not None:
            raise found
        return await apply(store, origin, batch)

    monkeypatch.setattr(ConversationStore, "apply", asked)


async def made_fleet(folder: Path, files: int = FILES) -> list[Path]:
    return [await made(folder / f"{number}.outbox.db", f"c{number}") for number in range(files)]


def fleet(folder: Path, **settings: Any) -> AbstractAsyncContextManager[Daemon]:
    """A daemon on every file of a folder, of which few may be open."""
    settings = {"store": str(folder / "history.db")} | settings
    return running(folder / "*.outbox.db", fleet=Fleet(max_open=OPEN, quiet=0.2), **settings)


async def shown(daemon: Daemon) -> HealthSnapshot:
    daemon._snapshot = None
    return await daemon.snapshot()


def status(path: Path) -> Status:
    return read_file(path, lambda cursor: status_of(cursor, now_us=to_microseconds(utc_now())))


def delivered(daemon: Daemon, files: int = FILES) -> Callable[[], Any]:
    """Whether every file was delivered."""

    async def look() -> bool:
        found = await shown(daemon)
        return found.files["working"] == files and found.pending == 0

    return look


def quiet(daemon: Daemon, files: int = FILES) -> Callable[[], Any]:
    """Whether every file was delivered, and is closed."""

    async def look() -> bool:
        return not daemon._fleet.active and bool(await delivered(daemon, files)())

    return look


async def test_a_few_files_are_open_at_a_time_and_all_are_delivered_once(tmp_path: Path) -> None:
    paths = await made_fleet(tmp_path)
    most = 0
    async with fleet(tmp_path) as daemon:

        async def done() -> bool:
            nonlocal most
            most = max(most, sum(one._outbox is not None for one in daemon.workers))
            return bool(await quiet(daemon)())

        await until(done, patience=60)

        assert most <= OPEN
        assert all(one._outbox is None and one.lock.held for one in daemon.workers)
        for path in paths:
            found = status(path)
            assert (found.relay.running, found.pending, found.healthy) == (True, 0, True)
    for path in paths:
        assert not status(path).relay.running, "it said at the end that it is gone"
    assert rows(tmp_path / "history.db", "SELECT count(*), count(DISTINCT event_id) FROM letopis_events") == [(18, 18)]


@posix_only("what is open is read from /proc")
async def test_the_stores_beside_closed_files_are_closed_too(tmp_path: Path) -> None:
    paths = await made_fleet(tmp_path)
    async with fleet(tmp_path, store=None) as daemon:
        await until(quiet(daemon), patience=60)
        await until(lambda: not daemon._fleet._closing)
        open_now = {str(one.readlink()) for one in Path("/proc/self/fd").glob("*") if one.is_symlink()}
        assert not any(".history.db" in one for one in open_now)
        assert all(status(path).relay.running for path in paths)
        await made(paths[2], "c2", messages=1)
        await until(quiet(daemon), patience=60)
    for number, count in ((1, 3), (2, 4)):
        assert rows(tmp_path / f"{number}.history.db", "SELECT count(*) FROM letopis_events") == [(count,)]


async def test_a_file_that_goes_while_it_is_closed_is_let_go_and_one_that_is_replaced_is_served(tmp_path: Path) -> None:
    paths = await made_fleet(tmp_path)
    new = await made(tmp_path / "new", "other", messages=4)
    async with fleet(tmp_path) as daemon:
        await until(quiet(daemon), patience=60)
        gone = next(one for one in daemon.workers if one.path == paths[0])
        paths[0].unlink()
        new.replace(paths[1])
        await until(lambda: gone not in daemon.workers, patience=30)
        await until(quiet(daemon, FILES - 1), patience=30)

        assert not gone.lock.held
        assert daemon._totals().delivered == 18 + 5

    count = "SELECT count(*) FROM letopis_events WHERE conversation_id = 'other'"
    assert rows(tmp_path / "history.db", count) == [(5,)]


async def test_a_backlog_gives_its_turn_to_a_file_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "OPEN", 1)
    monkeypatch.setattr("letopis.ops.daemon.fleet.TURN_SECONDS", 0.0)
    backlog = await OutboxFile.open(tmp_path / "0.outbox.db")
    for number in range(40):
        await say(backlog, f"long{number}", 400)  # 33 batches
    await backlog.close()
    other = await made(tmp_path / "1.outbox.db", "short", messages=1)
    apply, delivered_to = ConversationStore.apply, list[str]()

    async def noted(store: ConversationStore, origin: Any, batch: Any) -> Any:
        delivered_to.append(batch[0].conversation_id[:4])
        if len(delivered_to) % 6 == 0 and "shor" not in delivered_to[-6:]:
            await made(other, "short", messages=1)
        return await apply(store, origin, batch)

    monkeypatch.setattr(ConversationStore, "apply", noted)
    async with fleet(tmp_path) as daemon:
        await until(delivered(daemon, 2), patience=90)

    first, *runs = "".join(name[0] for name in delivered_to).rstrip("l").split("s")
    assert len(first) + sum(map(len, runs)) > MAX_BATCHES_PER_RUN
    # What it has begun when the other file begins to wait, and one run more.
    assert max(map(len, [first, *runs])) <= 3 * MAX_BATCHES_PER_RUN


async def test_a_file_that_is_locked_for_long_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = await made_fleet(tmp_path)
    monkeypatch.setattr("letopis.outbox.file.opening.LOCK_TIMEOUT_SECONDS", 1.0)
    with closing(sqlite3.connect(paths[0], isolation_level=None)) as bot:
        bot.execute("BEGIN IMMEDIATE")
        async with fleet(tmp_path) as daemon:
            await until(lambda: sum(status(path).pending == 0 for path in paths) == FILES - 1, patience=60)
            assert status(paths[0]).pending == 3
            bot.execute("ROLLBACK")
            await until(quiet(daemon), patience=60)


async def test_one_bad_event_blocks_its_own_file_alone_and_is_reminded_of_while_that_is_closed(
    tmp_path: Path, soon: None, told: list[Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = await made_fleet(tmp_path)
    refuse(monkeypatch, lambda batch: POISON if any(one.conversation_id == "c3" for one in batch) else None)
    async with fleet(tmp_path, policy=RetryPolicy(base=2.0, factor=1, cap=2.0, jitter="none", attempts=2)) as daemon:
        # The waits for the retries are longer than a file stays open.
        await until(lambda: status(paths[3]).lanes["blocked"] == 1, patience=60)
        await until(lambda: told, patience=60)
        (worker,) = (one for one in daemon.workers if one.path == paths[3])
        await until(lambda: worker not in daemon._fleet.active, patience=60)
        found = await shown(daemon)

        assert (found.lanes["blocked"], found.pending) == (1, 3)
        assert sum(found.incidents.values()) == 1
    assert sum(status(path).pending for path in paths) == 3


async def test_a_restored_store_heals_files_that_are_closed(tmp_path: Path, soon: None) -> None:
    await made_fleet(tmp_path)
    async with fleet(tmp_path) as daemon:
        await until(delivered(daemon), patience=60)
    history = tmp_path / "history.db"
    backup = await copied(str(history))
    for number in range(FILES):
        await made(tmp_path / f"{number}.outbox.db", f"c{number}", messages=1)
    async with fleet(tmp_path) as daemon:
        await until(delivered(daemon), patience=60)
        assert rows(history, "SELECT count(*) FROM letopis_events") == [(24,)]
        await put_back(str(history), backup)

        async def healed() -> bool:
            return bool(rows(history, "SELECT count(*) FROM letopis_events") == [(24,)])

        await until(healed, patience=90)


async def test_a_lock_file_that_is_removed_is_made_and_locked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.ops.daemon.fleet.SIGN_OF_LIFE_SECONDS", 0.2)
    paths = await made_fleet(tmp_path)
    async with fleet(tmp_path) as daemon:
        await until(quiet(daemon), patience=60)
        lock_path(paths[0]).unlink()
        await until(lambda: lock_path(paths[0]).exists(), patience=30)
        await until(quiet(daemon), patience=30)

        assert not LeaseLock(paths[0]).try_acquire()


@posix_only("Windows lets no other process see a held lock file's times")
async def test_a_second_daemon_stands_by_with_every_file_closed_and_takes_over(tmp_path: Path) -> None:
    paths = await made_fleet(tmp_path)
    async with fleet(tmp_path) as first:
        await until(quiet(first), patience=60)
        async with fleet(tmp_path) as second:

            async def stands_by() -> bool:
                return (await shown(second)).files["standby"] == FILES and not second._fleet.active

            await until(stands_by, patience=60)
            assert not any(one.lock.held for one in second.workers)
            first.stop()
            await until(lambda: all(one.lock.held for one in second.workers), patience=30)
            for path in paths:
                await made(path, f"c{path.name[0]}", messages=1)
            await until(lambda: all(status(path).pending == 0 for path in paths), patience=60)
    assert rows(tmp_path / "history.db", "SELECT count(*) FROM letopis_events") == [(24,)]


async def test_a_stopped_holder_is_taken_over_and_one_that_gives_signs_of_life_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of both are closed: nothing but the lock and its time tells one from the other."""
    monkeypatch.setattr(outbox_worker, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(outbox_worker, "RECHECK_SILENCE_SECONDS", 1.0)
    paths = await made_fleet(tmp_path)
    stopped, living = LeaseLock(paths[0]), LeaseLock(paths[1])
    assert stopped.try_acquire() and living.try_acquire()

    async def live() -> None:
        while True:
            living.give_sign_of_life(to_microseconds(utc_now()))
            await asyncio.sleep(0.05)

    signs = asyncio.create_task(live())
    try:
        async with fleet(tmp_path):
            await until(lambda: sum(status(path).pending == 0 for path in paths) == FILES - 1, patience=60)
            assert status(paths[1]).pending == 3
    finally:
        await end(signs)
        stopped.release()
        living.release()


async def test_the_metrics_of_very_many_changed_files_are_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.ops.daemon.fleet.MAX_FILES_READ", 2)
    paths = await made_fleet(tmp_path)
    read = list[Path]()
    reads = outbox_worker.read_file
    monkeypatch.setattr(outbox_worker, "read_file", lambda path, work: (read.append(path), reads(path, work))[1])
    several = Fleet()
    for path in paths:
        several.add(OutboxWorker(OutboxMatch(path=path, matched=True), None, None))  # type: ignore[arg-type]
    sums = []
    for _ in range(3):
        read.clear()
        sums.append(sum(one.pending for one in await several.metrics()))
        assert len(read) <= 2

    assert sums == [6, 12, 18]


async def test_an_outage_of_all_files_is_one_message_and_a_restart_repeats_nothing(
    tmp_path: Path, soon: None, told: list[Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = await made_fleet(tmp_path)
    down = True

    def noted() -> bool:
        query = "SELECT count(*) FROM letopis_outbox_notifications WHERE state = 'sent'"
        return all(rows(path, query) == [(1,)] for path in paths)

    refuse(monkeypatch, lambda _: fault(FaultClass.MISCONFIGURED, "28P01") if down else None)
    monkeypatch.setattr("letopis.ops.daemon.daemon.Rules", partial(Rules, resolve_after=0.1))
    for _ in range(2):
        async with fleet(tmp_path):
            await until(noted, patience=60)
    assert [(alert.recovered, alert.facts["files"]) for alert in told] == [(False, FILES)]

    down = False
    async with fleet(tmp_path) as daemon:
        await until(lambda: len(told) > 1, patience=90)
        await until(delivered(daemon), patience=60)
    assert [alert.recovered for alert in told] == [False, True]
