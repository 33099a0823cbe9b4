"""Files that are being created: on a machine with little time, by two processes at once, and by one that is killed."""

import asyncio
import multiprocessing
import re
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.outbox.file.inspection import read_file
from letopis.outbox.file.opening import read_snapshot
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.status import status_of
from letopis.store import ConfigurationError, ConversationStore, FaultClass, Message, StoreFault, components
from tests.proof.crash.gate import enter, guard, missing
from tests.support.platforms import posix_only

pytestmark = posix_only("Windows has no POSIX signals")
STALLED_IMPORT = """
    import asyncio, importlib.abc, sys
    from letopis.outbox.file.outbox_file import OutboxFile

    class Stalled(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "alembic.command":
                print("importing", flush=True)
                sys.stdin.readline()

    sys.meta_path.insert(0, Stalled())

    async def main():
        outbox = await OutboxFile.open(sys.argv[1])
        await outbox.close()

    asyncio.run(main())
    print("opened", flush=True)
"""


@pytest.mark.slow
async def test_the_time_of_the_creation_does_not_count_against_the_timeout_of_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = components.prepare_schema

    async def slowly(*given: Any, setup: Callable[[], AbstractContextManager[None]], **named: Any) -> int:
        with setup():
            for _ in range(300):  # in turns of the loop, as the read counts its time
                await asyncio.sleep(0.01)
        return await real(*given, setup=setup, **named)

    monkeypatch.setattr(components, "prepare_schema", slowly)
    async with History(tmp_path / "bot.outbox.db", relay=False, watch=False, read_timeout=1.0) as history:
        assert (await history.messages("chat")).complete


def test_a_new_outbox_is_opened_by_a_second_process_while_the_first_has_only_begun(tmp_path: Path) -> None:
    path = tmp_path / "bot.outbox.db"

    async def open_here() -> None:
        await (await OutboxFile.open(path)).close()

    words = [sys.executable, "-c", textwrap.dedent(STALLED_IMPORT), str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        asyncio.run(open_here())
        assert process.communicate("\n", timeout=60) == ("opened\n", None)
        assert process.returncode == 0


def create(folder: str, pipe: Connection) -> None:
    """Create an outbox and its store, and stop at each call that changes a file."""

    async def work() -> None:
        async with History(Path(folder, "bot.outbox.db"), watch=False) as history:
            await history.append("chat", Message.user("hi"))
            await history.drained(20)

    enter(pipe, ("pwrite64", "ftruncate", "fdatasync", "fsync", "unlink"))
    asyncio.run(work())


def killed(context: ForkServerContext, folder: Path, *, at: int) -> int:
    """Kill a process that creates both files at one of its calls; return how many there were."""
    folder.mkdir()
    ours, theirs = context.Pipe()
    process = context.Process(target=create, args=(str(folder), theirs), daemon=True)
    with ours:
        process.start()
        theirs.close()
        assert process.pid is not None
        try:
            return len(guard(ours, process.pid, lambda _: True, kill_at=at, patience=60))
        finally:
            process.join(60)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_process_killed_while_it_creates_its_files_heals_at_the_next_start(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.test_creation", "alembic.command", "letopis.store.components"])
    calls = killed(context, tmp_path / "whole", at=0)
    assert calls > 20
    said = set[str]()
    for at in [*range(1, 6), *range(6, calls, max(1, calls // 8))]:
        folder = tmp_path / str(at)
        killed(context, folder, at=at)
        path = folder / "bot.outbox.db"
        try:
            read_file(path, lambda cursor: status_of(cursor, now_us=0))
            said.add("an outbox")
        except ConfigurationError as error:
            said.add(str(error))
        assert asyncio.run(say_again(path)) == "hi again", at
    assert said == {"an outbox", NEW_FILE}


async def say_again(path: Path) -> str:
    """Open what a killed process left, append and deliver; return the last message."""
    async with History(path, watch=False) as history:
        await history.append("chat", Message.user("hi again"))
        assert await history.drained(60)
        page = await history.messages("chat")
        assert page.complete
        return page[-1].text


NEW_FILE = "'bot.outbox.db' is a new file without tables: the bot or `letopis init` makes it an outbox"


async def test_status_and_doctor_say_what_a_file_without_an_outbox_is(
    tmp_path: Path, letopis: Callable[..., tuple[int, str, str]]
) -> None:
    new, store, other = (tmp_path / name for name in ("bot.outbox.db", "history.db", "other.db"))
    new.touch()
    async with ConversationStore.open(store, migrate=True):
        pass
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE of_another (id INTEGER)")
    for path, what in (
        (new, NEW_FILE),
        (store, "'history.db' is a history store, and holds no outbox: give the path of the outbox"),
        (other, "'other.db' is another program's database, and holds no outbox: check the path"),
    ):
        code, _, err = await asyncio.to_thread(letopis, "--outbox", str(path), "status")
        assert (code, err.strip()) == (78, f"letopis: {what}")
        with pytest.raises(ConfigurationError, match=re.escape(what)):
            await read_snapshot(path, lambda _: None)
        code, out, err = await asyncio.to_thread(letopis, "--outbox", str(path), "doctor")
        assert what.partition(": ")[0] in out + err


async def test_a_file_that_is_no_database_is_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes, and they are not a database at all.\n" * 100)
    before = path.read_bytes()
    store = ConversationStore(path)

    with pytest.raises(StoreFault) as caught:
        await store.prepare()

    assert caught.value.fault_class is FaultClass.MISCONFIGURED
    assert "my notes" not in str(caught.value)
    assert path.read_bytes() == before
    await store.close()


def test_a_number_of_partitions_that_is_none_is_refused(tmp_path: Path) -> None:
    for partitions in (0, -1, 1025):
        with pytest.raises(ConfigurationError, match="partitions"):
            ConversationStore(tmp_path / "history.db", partitions=partitions)
