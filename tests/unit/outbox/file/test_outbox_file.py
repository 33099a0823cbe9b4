"""The outbox file is created private, migrated once, refused when it is something else, and told from its copy."""

import asyncio
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import sqlalchemy as sa

from letopis import Closed, ConfigurationError, ConversationStore, Message, OutboxFile, OutboxFull, OutboxUnavailable
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.outbox.event_log.schema import metadata
from letopis.outbox.file import inspection
from letopis.outbox.file.inspection import explained, outbox_path, read_file
from letopis.outbox.file.opening import read_snapshot
from letopis.outbox.file.pending_probe import PendingProbe
from letopis.outbox.file.sqlite_errors import translate
from letopis.outbox.history.append import Appender
from letopis.outbox.history.receipts import Deliveries
from letopis.outbox.history.transaction import transaction
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.database import open_files
from letopis.store.model.codec import DEFAULT_LIMITS
from tests.support.platforms import open_descriptors, posix_only
from tests.support.relays import DOWN, sql
from tests.support.sqlite_rows import change, rows

COUNT = "SELECT count(*) FROM letopis_outbox_events"


async def events(outbox: OutboxFile) -> int:
    return int(await outbox.read(lambda connection: connection.exec_driver_sql(COUNT).scalar_one()))


def said(text: str = "hi", conversation_id: str = "c1") -> Prepared:
    return prepare(conversation_id, [Message.user(text)])


def test_four_processes_that_race_for_a_fresh_file_all_get_it(tmp_path: Path) -> None:
    """One creates and migrates, the others wait; all see one identity, and what each appends is kept."""
    code = """
        import asyncio, sys
        from letopis import Message, OutboxFile
        from letopis.outbox.event_log.append_encoding import prepare

        async def main(path, name):
            outbox = await OutboxFile.open(path)
            await outbox.append(prepare("shared", [Message.user(name)]))
            print(outbox.origin.origin_id, outbox.origin.epoch, flush=True)
            await outbox.close()

        for line in sys.stdin:
            asyncio.run(main(line.strip(), sys.argv[1]))
    """
    command, pipe = [sys.executable, "-c", textwrap.dedent(code)], subprocess.PIPE
    racers = [
        subprocess.Popen([*command, str(number)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for number in range(4)
    ]
    for round_ in range(6):
        path = tmp_path / f"race-{round_}.db"
        for racer in racers:
            racer.stdin.write(f"{path}\n")
            racer.stdin.flush()
        answers = {racer.stdout.readline() for racer in racers}
        assert len(answers) == 1, answers
        sequences = rows(path, "SELECT sequence FROM letopis_outbox_events ORDER BY sequence")
        assert sequences == [(1,), (2,), (3,), (4,), (5,)]
    for racer in racers:
        _, err = racer.communicate(timeout=60)
        assert racer.returncode == 0, err


def a_text(path: Path) -> None:
    path.write_text("just some notes, and long enough to be looked at as a header of a database file\n" * 40)


def newer(path: Path, version: str = "9999") -> None:
    change(path, "CREATE TABLE letopis_outbox_version (version_num VARCHAR(32) NOT NULL)")
    change(path, f"INSERT INTO letopis_outbox_version VALUES ('{version}')")


def foreign(path: Path) -> None:
    newer(path, "deadbeef")


def a_history_store(path: Path) -> None:
    async def make() -> None:
        async with ConversationStore.open(path):
            pass

    asyncio.run(make())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (a_text, "no SQLite database"),
        (newer, "install the newer release"),
        (foreign, "not one of Letopis"),
        (a_history_store, "is a history store"),
    ],
)
async def test_a_file_that_is_something_else_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "other.db"
    await asyncio.to_thread(make, path)
    before = path.read_bytes()
    threads = set(threading.enumerate())

    with pytest.raises(ConfigurationError, match=says) as caught:
        await OutboxFile.open(path)

    assert "file is not a database" not in str(caught.value), "the driver's own words"
    assert make in (newer, foreign) or path.read_bytes()[100:] == before[100:]
    assert not any(thread.name.startswith("letopis") for thread in set(threading.enumerate()) - threads)


@pytest.mark.parametrize(
    ("name", "create", "says"),
    [("nowhere/bot.outbox.db", True, "mkdir"), ("bot.outbox.db", False, "no outbox")],
    ids=["a missing folder", "a missing file"],
)
async def test_what_is_missing_is_named_and_not_created_unasked(
    tmp_path: Path, name: str, create: bool, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await OutboxFile.open(tmp_path / name, create=create)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "raised", "says"),
    [(errno.EACCES, ConfigurationError, "cannot be created"), (errno.EMFILE, OutboxUnavailable, "too many files")],
)
async def test_what_cannot_be_created_says_why(
    tmp_path: Path, number: int, raised: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "create_private_file", Mock(side_effect=OSError(number, os.strerror(number))))
    with pytest.raises(raised, match=says):
        await OutboxFile.open(tmp_path / "bot.outbox.db")


def sqlite_fault(code: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("the driver's own words")
    error.sqlite_errorname = code
    return error


@pytest.mark.parametrize(
    ("error", "exhausted", "raised", "says"),
    [
        (sqlite_fault("SQLITE_CANTOPEN"), True, OutboxUnavailable, "too many files"),
        (sqlite_fault("SQLITE_CANTOPEN"), False, ConfigurationError, "check the owner and the mode"),
        (sqlite_fault("SQLITE_BUSY_SNAPSHOT"), False, OutboxUnavailable, "begin it with BEGIN IMMEDIATE"),
        (OSError(errno.EMFILE, ""), True, OutboxUnavailable, "too many files"),
        (OSError(errno.EIO, ""), False, OutboxUnavailable, f"cannot be reached [{errno.EIO}]"),
        (DOWN, False, ConfigurationError, "'bot.db': a fault of the test"),
    ],
)
def test_errors_of_opening_are_explained(
    error: Exception, exhausted: bool, raised: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "is_exhausted", lambda _=None: exhausted)
    reason = explained(error, Path("bot.db"))
    assert (type(reason), says in str(reason)) == (raised, True), reason
    if exhausted and isinstance(error, sqlite3.Error):
        assert says in str(translate(error)), "of a file that is open"


@pytest.mark.parametrize(
    ("code", "reserve", "raised"),
    [
        ("SQLITE_BUSY", False, None),
        ("SQLITE_FULL", True, None),
        ("SQLITE_FULL", False, OutboxFull),
        ("SQLITE_IOERR", False, OutboxUnavailable),
    ],
)
async def test_a_read_is_repeated_where_that_may_help(
    outbox: OutboxFile, code: str, reserve: bool, raised: type[Exception] | None
) -> None:
    faults = [sqlite_fault(code)]

    def look(_: sa.Connection) -> str:
        if faults:
            raise faults.pop()
        return "read"

    assert outbox.gate.reserve.restore() if reserve else not outbox.gate.reserve.release()
    if raised is None:
        assert await outbox.read(look) == "read"
    else:
        with pytest.raises(raised, match=code):
            await outbox.read(look)
    assert await events(outbox) == 0, "the next read has a connection again"


def test_a_probe_without_a_file_knows_nothing(tmp_path: Path) -> None:
    probe = PendingProbe(tmp_path / "missing.db")
    assert (probe.read(lambda _: 1), probe.store_id(), probe.content("chat", "name")) == (None, None, b"")


@pytest.mark.parametrize("path", ["", ":memory:", "postgresql://localhost/x"])
def test_what_cannot_be_a_file_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError):
        outbox_path(path)


def test_a_url_of_a_file_is_understood(tmp_path: Path) -> None:
    assert outbox_path(f"sqlite:///{tmp_path / 'x.db'}") == tmp_path / "x.db"


async def test_a_database_of_the_bot_becomes_an_outbox_too(tmp_path: Path) -> None:
    path = tmp_path / "bot.db"
    change(path, "CREATE TABLE credits (owner TEXT PRIMARY KEY, n INTEGER)", "INSERT INTO credits VALUES ('42', 7)")
    outbox = await OutboxFile.open(path)
    assert await sql(outbox, "SELECT n FROM credits") == [(7,)]
    await outbox.append(said())
    await outbox.close()


async def test_a_copy_goes_on_under_the_next_epoch_and_the_original_does_not(tmp_path: Path) -> None:
    original, copy = tmp_path / "bot.outbox.db", tmp_path / "copy.outbox.db"
    outbox = await OutboxFile.open(original)
    origin = outbox.origin
    await outbox.close()
    shutil.copy(original, copy)

    opened = [await OutboxFile.open(path) for path in (copy, copy, original)]
    epochs = [one.origin.epoch for one in opened]

    assert epochs == [2, 2, 1], "once a copy, not at every start"
    assert opened[0].origin.origin_id == origin.origin_id
    for one in opened:
        await one.close()


def epoch(cursor: sqlite3.Cursor) -> int:
    return int(cursor.execute("SELECT epoch FROM letopis_outbox_origin").fetchone()[0])


async def by_sqlalchemy(path: Path) -> int:
    return await read_snapshot(path, lambda connection: epoch(connection.connection.cursor()))  # type: ignore[arg-type]


async def without_sqlalchemy(path: Path) -> int:
    return read_file(path, epoch)


@pytest.mark.parametrize("look", [by_sqlalchemy, without_sqlalchemy])
async def test_looking_from_outside_changes_nothing(tmp_path: Path, look: Callable[[Path], Awaitable[int]]) -> None:
    original, copy = tmp_path / "bot.outbox.db", tmp_path / "copy.outbox.db"
    await (await OutboxFile.open(original)).close()
    shutil.copy(original, copy)
    before = copy.read_bytes()

    assert [await look(copy) for _ in range(2)] == [1, 1]
    assert copy.read_bytes() == before
    with pytest.raises(ConfigurationError, match="no outbox at"):
        await look(tmp_path / "missing.db")
    newer(tmp_path / "newer.db")
    with pytest.raises(ConfigurationError, match="newer release"):
        await look(tmp_path / "newer.db")
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.parametrize(
    ("content", "says"), [(b"no database " * 1000, "no SQLite database"), (b"", "new file without tables")]
)
async def test_what_is_no_outbox_is_refused_after_one_look(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "other.db").write_bytes(content)
    with pytest.raises(ConfigurationError, match=says):
        read_file(tmp_path / "other.db", epoch)
    with pytest.raises(ConfigurationError, match=says):
        await OutboxFile.open(tmp_path / "other.db", create=False)


async def test_a_file_that_is_back_in_its_place_is_written_to_again(outbox: OutboxFile, tmp_path: Path) -> None:
    await outbox.append(said())
    away = outbox.path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(OutboxUnavailable, match="gone from its place"):
        await outbox.append(said("lost?"))
    away.rename(outbox.path)
    assert (await outbox.append(said("back"))).sequences == (3,)


async def test_close_leaves_no_thread_task_or_descriptor(tmp_path: Path) -> None:
    async def live(number: int) -> None:
        outbox = await OutboxFile.open(tmp_path / f"{number}.db")
        await outbox.append(said())
        async with outbox.engine.begin() as connection:
            await connection.exec_driver_sql("SELECT 1")
        assert await events(outbox) == 2
        await outbox.close()
        await outbox.close()

    await live(0)
    open_before, tasks = open_descriptors(), len(asyncio.all_tasks())
    for number in range(1, 6):
        await live(number)

    assert open_descriptors() <= open_before
    assert len(asyncio.all_tasks()) == tasks
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("letopis-outbox")]


async def test_after_close_everything_says_so(outbox: OutboxFile) -> None:
    await outbox.close()
    for late in (lambda: outbox.append(said()), lambda: outbox.write(print), lambda: outbox.read(print)):
        with pytest.raises(Closed):
            await late()


async def test_appends_that_wait_are_written_before_close_returns(outbox: OutboxFile) -> None:
    tasks = [asyncio.ensure_future(outbox.append(said(conversation_id=f"c{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await outbox.close()
    assert all(task.result().written == 2 for task in tasks)


def test_another_event_loop_is_told_so(tmp_path: Path) -> None:
    async def opened() -> OutboxFile:
        return await OutboxFile.open(tmp_path / "bot.db")

    async def appended(outbox: OutboxFile) -> None:
        await outbox.append(said())

    with asyncio.Runner() as first, asyncio.Runner() as second:
        outbox = first.run(opened())
        with pytest.raises(Closed, match="event loop"):
            second.run(appended(outbox))
        first.run(outbox.close())


def a_copy_in_its_place(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


TAKEN_AWAY: dict[str, tuple[Callable[[Path], None], str]] = {
    "removed": (Path.unlink, "gone from its place"),
    "replaced": (a_copy_in_its_place, "replaced by another"),
    "emptied": (lambda path: os.truncate(path, 0), "was emptied"),
    "no -wal": (lambda path: path.with_name("bot.db-wal").unlink(), "-wal file beside the outbox was removed"),
    "no -shm": (lambda path: path.with_name("bot.db-shm").unlink(), "-shm file beside the outbox was removed"),
    "another -wal": (lambda path: a_copy_in_its_place(path.with_name("bot.db-wal")), "-wal file .* replaced"),
}


def appender_of(outbox: OutboxFile) -> Appender:
    gateway = StoreGateway(ConversationStore(outbox.path.with_suffix(".history.db")), breaker=lambda: None)
    return Appender(outbox=outbox, gateway=gateway, deliveries=Deliveries(outbox, gateway), limits=DEFAULT_LIMITS)


@posix_only("Windows removes no open file")
@pytest.mark.parametrize("how", TAKEN_AWAY)
@pytest.mark.parametrize("again", [False, True], ids=["a new file", "a file that was closed before"])
async def test_nothing_is_acknowledged_into_a_file_that_nobody_will_find(tmp_path: Path, how: str, again: bool) -> None:
    take_away, says = TAKEN_AWAY[how]
    path = tmp_path / "bot.db"
    if again:
        await (await OutboxFile.open(path)).close()
    outbox = await OutboxFile.open(path)
    await outbox.append(said())
    appender = appender_of(outbox)
    take_away(path)
    left = sorted(one.name for one in tmp_path.iterdir())

    for _ in range(2):
        with pytest.raises(OutboxUnavailable, match=says):
            await outbox.append(said("is this kept?"))
        with pytest.raises(OutboxUnavailable, match=says):
            async with transaction(appender) as running:
                await running.append("c1", Message.user("and this?"))

    assert sorted(one.name for one in tmp_path.iterdir()) == left
    await outbox.close()


@posix_only("Windows removes no open file")
async def test_what_is_taken_away_in_the_middle_of_a_transaction_is_noticed_at_its_commit(tmp_path: Path) -> None:
    path = tmp_path / "bot.db"
    outbox = await OutboxFile.open(path)

    async def torn() -> None:
        async with transaction(appender_of(outbox)) as running:
            await running.append("c1", Message.user("hi"))
            path.with_name("bot.db-wal").unlink()

    with pytest.raises(OutboxUnavailable, match="-wal file"):
        await torn()

    await outbox.close()
    assert rows(path, COUNT) == [(0,)]


async def test_a_transaction_that_cannot_connect_says_so_in_our_words(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.store.database.sqlite.set_up", Mock(side_effect=sqlite_fault("SQLITE_IOERR")))
    with pytest.raises(OutboxUnavailable, match="input/output"):
        async with transaction(appender_of(outbox)):
            pass


async def test_the_migrated_file_is_what_the_tables_say(outbox: OutboxFile, tmp_path: Path) -> None:
    made = sa.create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    metadata.create_all(made)

    def shape(connection: sa.Connection) -> dict[str, str]:
        found = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type NOT IN ('view', 'trigger')"
            " AND name LIKE '%letopis_outbox%'"
        )
        kept = [(name, "".join(text.split()).lower()) for name, text in found if not name.endswith("_version")]
        return {name: text.replace('"', "") for name, text in kept}

    with made.connect() as connection:
        assert await outbox.read(shape) == shape(connection)
    made.dispose()
