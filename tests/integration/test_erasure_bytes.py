"""What is erased is gone from the bytes of the files too, soon, while they are open: the write-ahead log included."""

import asyncio
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from letopis.outbox import History
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.pending_events import Selection
from letopis.outbox.operations.repair import NotRepairable, fix, pause, restore
from letopis.outbox.relay.relay import Relay
from letopis.store import Event, Message, MessageRedacted
from letopis.store.model.event_types import ConversationDeleted, ConversationRenamed
from tests.support.outboxes import open_apart
from tests.support.relays import deliver_all
from tests.support.verdicts import assert_whole

CHAT = "c1"
TOKEN = "s3cret-t0ken-of-a-person"
"""In every text that is to be gone."""
LONG = f"{TOKEN} " * 400
"""Longer than a page, so that it lies in overflow pages."""
PATIENCE = 20.0
CHOSEN = Selection(conversation_ids=(CHAT,))


def holding(*paths: Path) -> list[str]:
    """Search the files of open databases: in a process of its own, as closing them here drops SQLite's locks."""
    files = [str(file) for path in paths for file in path.parent.glob(f"{path.name}*")]
    words = ["grep", "-lsF", TOKEN, *files]  # silent about a file that was deleted just now
    found = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False).stdout
    return [Path(line).name for line in found.splitlines()]


async def assert_gone_soon(*paths: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while found := await asyncio.to_thread(holding, *paths):
        assert time.monotonic() < deadline, f"still in {found}"
        await asyncio.sleep(0.1)


@pytest.fixture
def outbox_path(tmp_path: Path) -> Path:
    return tmp_path / "bot.outbox.db"


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "bot.history.db"


@pytest.fixture
async def history(outbox_path: Path) -> AsyncIterator[History]:
    """A bot with its relay, delivering to the file beside it."""
    async with History(outbox_path) as opened:
        yield opened


async def converse(history: History) -> None:
    """Say the token in all places where content can be, among much else."""
    for number in range(30):
        await history.append(CHAT, Message.user(f"filler {number} " * 20, id=f"f-{number}"))
    await history.append(
        CHAT, Message.user(LONG, id="m", name=TOKEN, metadata={"k": TOKEN}), Message.assistant(TOKEN, id="n")
    )
    await history.chat(CHAT).edit("m", f"{LONG}!", reason=TOKEN)
    await history.append(CHAT, Event(type="custom.note", data={"message_id": "m"}))
    await history.chat(CHAT).sent("m", platform_ids={"telegram": 1}, file_path=f"/var/{TOKEN}")
    await history.chat(CHAT).sent("n", platform_ids={"telegram": 2})


async def redact(history: History) -> None:
    await history.append(CHAT, MessageRedacted(message_id="m"), MessageRedacted(message_id="n"))


async def test_the_search_for_bytes_finds_what_is_there(history: History, outbox_path: Path, store_path: Path) -> None:
    """The control: without it all others would pass on a search that sees nothing."""
    await converse(history)
    assert any(name.startswith(outbox_path.name) for name in holding(outbox_path))
    assert await history.drained(timeout=30)
    assert any(name.startswith(store_path.name) for name in holding(store_path))


async def test_redacted_while_it_is_pending(outbox_path: Path) -> None:
    async with History(outbox_path, relay=False) as history:
        await converse(history)
        with reading(outbox_path, "letopis_outbox_events"):
            await redact(history)
            assert holding(outbox_path)
        # What is said of it afterwards goes too.
        await history.chat(CHAT).sent("m", file_path=TOKEN)
        await history.chat(CHAT).failed("m", reason=TOKEN)

        # Nothing is delivered here: the file itself sees to it.
        await assert_gone_soon(outbox_path)


@pytest.mark.parametrize("pending", [False, True])
async def test_deleted(outbox_path: Path, store_path: Path, *, pending: bool) -> None:
    async with History(outbox_path, relay=False) as history:
        await converse(history)
        await history.append(CHAT, ConversationRenamed(title=LONG))
        if not pending:
            await deliver_all(history)
        await history.append(CHAT, ConversationDeleted(reason="asked"))
        await deliver_all(history)

        # The process that delivers tells the writer; here that is this one.
        await assert_gone_soon(outbox_path, store_path)
        await assert_whole(history.outbox, f"sqlite:///{store_path}")


async def test_the_original_of_a_repaired_event_goes_too(outbox_path: Path) -> None:
    async with History(outbox_path, relay=False) as history:
        outbox: OutboxFile = history.outbox
        receipt = await history.append(CHAT, Message.user(LONG, id="m"))
        [event_id] = receipt.event_ids
        relay = Relay(outbox, history.store, batch=1)
        await relay.drain_once()  # what begins the conversation, so that the message is next

        async def mend(text: str) -> None:
            await outbox.write(lambda connection: pause(connection, CHOSEN))
            data = {"message_id": "m", "role": "user", "content": text}
            await outbox.write(
                lambda connection: fix(connection, event_id, data, reason="mended", now_us=outbox.now_us())
            )

        await mend(f"{TOKEN} mended")
        await history.append(CHAT, MessageRedacted(message_id="m"))
        await assert_gone_soon(outbox_path)

        # Neither putting the original back nor fixing it again brings the content back.
        await outbox.write(lambda connection: pause(connection, CHOSEN))
        with pytest.raises(NotRepairable):
            await outbox.write(lambda connection: restore(connection, event_id, reason="back", now_us=outbox.now_us()))
        await mend(TOKEN)
        outbox.truncate_wal()  # as the command does by closing the file
        await assert_gone_soon(outbox_path)
        while not await history.drained(0):
            await relay.drain_once()
        [message] = await history.store.messages(CHAT)
        assert (message.content, message.redacted) == ("", True)
        await assert_gone_soon(outbox_path, outbox_path.with_name("bot.history.db"))


@contextmanager
def reading(path: Path, table: str) -> Iterator[None]:
    """Hold a reader's transaction open on a file, as a long report would."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute(f"SELECT count(*) FROM {table}").fetchall()
        yield
        connection.execute("COMMIT")


async def test_a_reader_in_the_way_is_waited_for(history: History, outbox_path: Path, store_path: Path) -> None:
    await converse(history)
    assert await history.drained(timeout=30)
    with reading(outbox_path, "letopis_outbox_events"), reading(store_path, "letopis_events"):
        await redact(history)
        assert await history.drained(timeout=30)
        assert len(holding(outbox_path, store_path)) >= 2

    await assert_gone_soon(outbox_path, store_path)
    await assert_whole(history.outbox, f"sqlite:///{store_path}")


async def test_who_opens_the_files_next_sees_to_what_a_process_left(outbox_path: Path, store_path: Path) -> None:
    async with History(outbox_path, relay=False) as first:
        await converse(first)
        await deliver_all(first)
        # They keep the write-ahead logs.
        with closing(sqlite3.connect(outbox_path)) as one, closing(sqlite3.connect(store_path)) as other:
            for connection in (one, other):
                connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            with reading(outbox_path, "letopis_outbox_events"), reading(store_path, "letopis_events"):
                await redact(first)
                await deliver_all(first)
                await first.outbox.close()
                await first.store.close()
            assert len(holding(outbox_path, store_path)) >= 2

            async with open_apart(outbox_path) as second:
                await second.append(CHAT, Message.user("on we go"))
                await assert_gone_soon(outbox_path, store_path)
