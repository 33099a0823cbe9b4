"""A small read on the connection that is kept says what a read over the pool says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letopis.outbox.glance import NOTHING, UNKNOWN, Glance
from letopis.store import (
    Closed,
    ConversationStore,
    Message,
    MessageEdited,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    StoreFault,
)
from letopis.store.asking import Window
from letopis.store.kept import MOST, Kept
from tests.conformance.outboxes import Outbox


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[tuple[ConversationStore, Kept, Outbox]]:
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
        there = store._kept
        assert there is not None
        async with asyncio.timeout(5):
            while not there.fits(Window(last=1)):  # noqa: ASYNC110 - what is awaited is a thread
                await asyncio.sleep(0.01)
        yield store, there, outbox


@pytest.mark.parametrize(
    "window", [Window(last=5), Window(last=50), Window(first=3, after=4), Window(last=4, before=9), Window(first=99)]
)
async def test_it_says_what_the_pool_says(kept: tuple[ConversationStore, Kept, Outbox], window: Window) -> None:
    store, there, outbox = kept
    origin_id = outbox.origin.origin_id
    ready = await store._prepared()

    found, beside = await there.view("chat", origin_id=origin_id, window=window, beside=lambda: "beside")

    assert beside == "beside"
    assert found == await store._read_plain(
        lambda connection: ready.reader.view(connection, "chat", origin_id=origin_id, window=window)
    )
    assert await there.own("chat", window) == await store._read_plain(
        lambda connection: ready.lineage.own(connection, "chat", window)
    )


async def test_what_is_long_goes_over_the_pool(kept: tuple[ConversationStore, Kept, Outbox]) -> None:
    _, there, _ = kept

    assert not there.fits(Window())
    assert not there.fits(Window(last=MOST + 1))


async def test_a_cancelled_read_ends_at_once_and_the_next_one_is_answered(
    kept: tuple[ConversationStore, Kept, Outbox],
) -> None:
    store, there, outbox = kept
    go_on = threading.Event()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await there.view("chat", origin_id=outbox.origin.origin_id, window=Window(last=1), beside=go_on.wait)
    go_on.set()

    assert len(await store.messages("chat", last=3)) == 3


async def test_after_a_failure_it_connects_anew(kept: tuple[ConversationStore, Kept, Outbox]) -> None:
    store, there, outbox = kept

    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreFault):
        await there.view("chat", origin_id=outbox.origin.origin_id, window=Window(last=1), beside=fail)

    assert len(await store.messages("chat", last=3)) == 3


async def test_it_cannot_write(kept: tuple[ConversationStore, Kept, Outbox]) -> None:
    _, there, _ = kept
    assert there._connection is not None

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await there._connection.run(lambda driver: driver.execute("DELETE FROM letopis_messages"))


async def test_closed_is_closed(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await store.messages("chat", last=1)
        there = store._kept
        assert there is not None

    assert not there.fits(Window(last=1))
    with pytest.raises(Closed):
        await store.messages("chat", last=1)
    with pytest.raises(Closed):
        await there.own("chat", Window(last=1))


def test_a_glance_makes_no_file_and_says_that_it_knows_nothing(tmp_path: Path) -> None:
    glance = Glance(tmp_path / "missing.db")

    assert glance("chat") == UNKNOWN
    assert not (tmp_path / "missing.db").exists()
    glance.close()
    assert glance("chat") == UNKNOWN
    assert NOTHING.known
