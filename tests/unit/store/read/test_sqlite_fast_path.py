"""A small read on the connection that is kept says what a read over the pool says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.file.pending_probe import NO_EVENTS, UNKNOWN_PROGRESS, PendingProbe
from letopis.store import (
    Closed,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Message,
    MessageEdited,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    StoreFault,
)
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import Window
from letopis.store.read.reader import StoreView, ViewQuery
from letopis.store.read.sqlite_fast_path import MAX_MESSAGES, SQLiteFastReader
from letopis.store.testing.outbox import Outbox


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[tuple[ConversationStore, SQLiteFastReader, Outbox]]:
    """A file with messages of every kind, and its connection."""
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox = Outbox()
        for number in range(12):
            outbox.append("chat", Message.user(f"number {number}", id=f"m{number}"))
        outbox.append("chat", Message.assistant("with more", id="more", tokens=3, metadata={"a": 1}))
        outbox.append("chat", MessageSent(message_id="m1", platform_ids={"telegram": 4711}))
        outbox.append("chat", MessageEdited(message_id="m2", content="edited"))
        outbox.append("chat", MessageRedacted(message_id="m3"))
        outbox.append("chat", ReactionAdded(message_id="m4", key="+1"))
        await outbox.deliver(store)
        there = store._runtime.fast_reader
        assert there is not None
        async with asyncio.timeout(60):
            while not there.supports(Window(last=1)):  # noqa: ASYNC110 - what is awaited is a thread
                await asyncio.sleep(0.01)
        yield store, there, outbox


def query_of(outbox: Outbox, within: Callable[[], object]) -> ViewQuery:
    """A query that calls something in the thread that reads."""

    def bound(_: StoreView) -> None:
        within()

    return ViewQuery(conversation_id="chat", origin_id=outbox.origin.origin_id, window=Window(last=1), bound=bound)


@pytest.mark.parametrize(
    "window", [Window(last=5), Window(last=50), Window(first=3, after=4), Window(last=4, before=9), Window(first=99)]
)
async def test_it_says_what_the_pool_says(
    kept: tuple[ConversationStore, SQLiteFastReader, Outbox], window: Window
) -> None:
    store, there, outbox = kept
    origin_id = outbox.origin.origin_id
    ready = await store._runtime.prepared()

    for names in ((), ("m1", "m5", "more", "missing")):
        query = ViewQuery(conversation_id="chat", origin_id=origin_id, window=window, names=names)
        bounded = replace(query, bound=lambda view: view.places["m5"].version if view.places else 3)
        for asked in (query, bounded, replace(query, window=None)):
            found = await there.view(asked)

            whole = await store._runtime.connected(partial(ready.reader.view, query=asked))
            assert found == (replace(whole, conversation=None, plain=True) if found.plain else whole), asked
            assert found.plain == (asked is query and not names)
            assert found.sequence == found.version == 17
            assert len(found.places) == (3 if names else 0)
    own = partial(_own, ready.lineage, "chat", window)
    assert await there.own("chat", window) == await store._runtime.connected(own)


@pytest.mark.parametrize("what", ["rewind", "reset", "deletion"])
async def test_it_says_what_the_pool_says_while_a_mark_waits(
    kept: tuple[ConversationStore, SQLiteFastReader, Outbox], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for module in ("write.loading", "write.redaction"):
        monkeypatch.setattr(f"letopis.store.{module}.MAX_ROWS_PER_TRANSACTION", 3)
    monkeypatch.setattr("letopis.store.maintenance.task_steps.STEP_SECONDS", 0.0)
    monkeypatch.setattr("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 2)
    store, there, outbox = kept
    ready = await store._runtime.prepared()
    marked = {
        "rewind": [ConversationRewound(to_message_id="m5"), Message.user("after", id="after")],
        "reset": [ConversationRewound(erase=True), Message.user("after", id="after")],
        "deletion": [ConversationDeleted()],
    }
    outbox.append("fork", ConversationStarted(forked_from={"conversation_id": "chat", "version": 9}))
    outbox.append("chat", *marked[what])
    await outbox.deliver(store)
    left = {"rewind": [f"m{n}" for n in range(6)], "reset": [], "deletion": []}[what]
    left += ["after"] if what != "deletion" else []
    before, steps = list(await store.messages("fork")), 0
    assert (await store.pending_tasks()).tasks
    while True:
        for name in ("chat", "fork"):
            for window in (Window(last=50), Window(last=3), Window(first=4), Window(last=50, every=True)):
                for names in ((), ("m1", "m5", "m9", "after")):
                    asked = ViewQuery(
                        conversation_id=name, origin_id=outbox.origin.origin_id, window=window, names=names
                    )
                    found = await there.view(asked)
                    whole = await store._runtime.connected(partial(ready.reader.view, query=asked))
                    assert found == (replace(whole, conversation=None, plain=True) if found.plain else whole), asked
                own = partial(_own, ready.lineage, name, window)
                assert await there.own(name, window) == await store._runtime.connected(own)
        assert [one.id for one in await store.messages("chat", last=50)] == left
        assert [one.id for one in await store.messages("chat")] == left
        assert list(await store.messages("fork")) == before
        if not await store.run_pending_tasks():
            break
        steps += 1
    assert steps > 3


async def _own(lineage: Lineage, name: str, window: Window, connection: AsyncConnection) -> object:
    return await lineage.own(connection, name, window)


async def test_what_is_long_goes_over_the_pool(kept: tuple[ConversationStore, SQLiteFastReader, Outbox]) -> None:
    _, there, _ = kept

    assert not there.supports(Window())
    assert not there.supports(Window(last=MAX_MESSAGES + 1))


async def test_a_cancelled_read_ends_at_once_and_the_next_one_is_answered(
    kept: tuple[ConversationStore, SQLiteFastReader, Outbox],
) -> None:
    store, there, outbox = kept
    go_on = threading.Event()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await there.view(query_of(outbox, go_on.wait))
    go_on.set()

    assert len(await store.messages("chat", last=3)) == 3


async def test_after_a_failure_it_connects_anew(kept: tuple[ConversationStore, SQLiteFastReader, Outbox]) -> None:
    store, there, outbox = kept

    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreFault):
        await there.view(query_of(outbox, fail))

    assert len(await store.messages("chat", last=3)) == 3


async def test_it_cannot_write(kept: tuple[ConversationStore, SQLiteFastReader, Outbox]) -> None:
    _, there, _ = kept
    assert there._connection is not None

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await there._connection.run(lambda driver: driver.execute("DELETE FROM letopis_messages"))


async def test_closed_is_closed(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await store.messages("chat", last=1)
        there = store._runtime.fast_reader
        assert there is not None

    assert not there.supports(Window(last=1))
    with pytest.raises(Closed):
        await store.messages("chat", last=1)
    with pytest.raises(Closed):
        await there.own("chat", Window(last=1))


def test_a_glance_makes_no_file_and_says_that_it_knows_nothing(tmp_path: Path) -> None:
    probe = PendingProbe(tmp_path / "missing.db")

    assert probe.lookup("chat") == UNKNOWN_PROGRESS
    assert not (tmp_path / "missing.db").exists()
    probe.close()
    assert probe.lookup("chat") == UNKNOWN_PROGRESS
    assert NO_EVENTS.known
