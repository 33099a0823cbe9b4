"""An SQLite store whose search index is built while other connections write."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.history.history import History
from letopis.outbox.history.search import Search
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.event_types import MessageRedacted
from letopis.store.model.messages import Message
from letopis.store.search import indexer
from letopis.store.search.index import Document, SQLiteIndex
from tests.support.relays import deliver_all, until
from tests.support.sayings import catch_up_index, new_outbox, present, send
from tests.support.sqlite_rows import rows

EVENTS = 600


def while_stemming(monkeypatch: pytest.MonkeyPatch, deed: Callable[[], None]) -> None:
    """Have something done each time before words are stemmed for the index, in the thread that stems them."""
    right = SQLiteIndex.rows

    def late_rows(self: SQLiteIndex, documents: Iterable[Document]) -> Any:
        deed()
        return right(self, documents)

    monkeypatch.setattr(SQLiteIndex, "rows", late_rows)


def is_locked(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return True
        return False


async def test_no_word_is_stemmed_while_an_sqlite_store_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.db"
    locked = []
    async with ConversationStore.open(f"sqlite:///{path}") as store:
        await new_outbox(store, "c", *(Message.user(f"ответ {number}") for number in range(EVENTS)))
        truncation = present(store.runtime._wal_truncator._running)
        await truncation  # it takes the lock for a moment, in the thread that writes
        while_stemming(monkeypatch, lambda: locked.append(is_locked(path)))

        assert await store.catch_up_search() == EVENTS

    assert locked == [False] * EVENTS


async def test_deliveries_go_on_and_no_incident_opens_while_the_index_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery is awaited in the middle of the build: it would never end if the build held the lock meanwhile."""
    monkeypatch.setattr(indexer, "MAX_EVENTS_PER_TRANSACTION", 100)
    loop = asyncio.get_running_loop()
    saved = 0
    async with History(tmp_path / "bot.outbox.db") as history:
        for number in range(EVENTS):
            receipt = await history.append("old", Message.user(f"ответ {number}"))
        assert await receipt.saved(timeout=60)

        async def deliver() -> None:
            nonlocal saved
            receipt = await history.append(f"new-{saved}", Message.user("во время сборки"))
            saved += await receipt.saved(timeout=60)

        stemmed = 0

        def deed() -> None:
            nonlocal stemmed
            stemmed += 1
            if stemmed % 100 == 50:
                asyncio.run_coroutine_threadsafe(deliver(), loop).result()

        while_stemming(monkeypatch, deed)
        # The reader is another process's: its search builds the index, and this process only delivers.
        async with ConversationStore.open(f"sqlite:///{tmp_path / 'bot.history.db'}") as console:
            while await console.catch_up_search(EVENTS):
                pass
            found = await console.search('"ответ 7"')

        assert saved == EVENTS // 100
        assert [hit.message.text for hit in found] == ["ответ 7"]
        status = await history.status()
        assert (status.incidents, status.breaker.state, status.pending) == ((), "closed", 0)


async def test_redacted_while_stemmed_is_not_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loop = tmp_path / "history.db", asyncio.get_running_loop()
    async with ConversationStore.open(f"sqlite:///{path}") as store:
        outbox = await new_outbox(store, "c", Message.user("тайна", id="secret"), Message.user("ответ", id="kept"))
        done = []

        async def redact() -> None:
            await send(store, outbox, "c", MessageRedacted(message_id="secret"))

        def deed() -> None:
            if not done:
                done.append(True)
                asyncio.run_coroutine_threadsafe(redact(), loop).result()

        while_stemming(monkeypatch, deed)
        await catch_up_index(store)

    assert rows(path, "SELECT version FROM letopis_search WHERE document <> ''") == [(2,)]


async def test_a_relay_keeps_the_index_up_to_date_once_the_store_was_searched(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        for number in range(5):
            receipt = await history.append("c", Message.user(f"ответ {number}"))
        assert await receipt.saved(timeout=60)
    count = partial(rows, tmp_path / "bot.history.db", "SELECT count(*) FROM letopis_search")
    assert count() == [(0,)]

    async with ConversationStore.open(f"sqlite:///{tmp_path / 'bot.history.db'}") as other:
        assert len(await other.search("ответ")) == 5

    async with History(tmp_path / "bot.outbox.db") as history:
        receipt = await history.append("c", Message.user("ответ 5"))
        assert await receipt.saved(timeout=60)
        await until(lambda: count() == [(6,)])


async def test_an_undo_that_is_delivered_meanwhile_is_not_undone_twice(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewind is in the file's snapshot and in the store's: folded again, it takes what was appended after it."""
    async with History(tmp_path / "bot.outbox.db", store=store_url, relay=False, watch=False) as history:
        await history.append("c", Message.user("вопрос", id="question"), Message.assistant("ответ", id="first"))
        await deliver_all(history)
        await history.chat("c").undo()
        await history.append("c", Message.user("вопрос", id="again"), Message.assistant("ответ", id="second"))
        right = Search._in_store

        async def late(self: Search, ask: Any) -> Any:
            await deliver_all(history)
            await history.append("c", Message.assistant("ответ", id="third"))
            await deliver_all(history)
            return await right(self, ask)

        monkeypatch.setattr(Search, "_in_store", late)
        page = await history.search("ответ")

    assert {hit.message.id for hit in page} >= {"second"}
    assert "first" not in {hit.message.id for hit in page}
    assert page.complete
