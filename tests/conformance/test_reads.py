"""Pages are exact and stay stable while messages are added; invalid cursors are refused."""

import asyncio
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from letopis.store import Closed, ConversationStore, Event, Message, StoreFault, UnknownPart
from letopis.store.database.schema import messages as messages_table
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import Window
from letopis.store.read.reader import ViewQuery
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.reads import ONLY, WINDOWS, ReadConformance, fill
from tests.support.sayings import change, new_outbox, send


def query_of(window: Window | None) -> ViewQuery:
    return ViewQuery(conversation_id=ONLY, origin_id=Outbox().origin.origin_id, window=window)


@pytest.fixture
async def filled(store: ConversationStore) -> Outbox:
    """Return an outbox whose ten messages the store holds."""
    return await fill(store)


class TestReads(ReadConformance):
    """The published contract."""


async def test_a_view_holds_the_page_of_its_window(store: ConversationStore, filled: Outbox) -> None:
    for window, _, following in WINDOWS:
        page = await store.messages(ONLY, **window)
        asked = Window.of(**{"last": None, "first": None, "before": None, "after": None, **window})
        query = replace(query_of(asked), origin_id=filled.origin.origin_id)
        for one in (query, replace(query, whole=True)):
            view = await store.runtime.view(one)
            assert (view.messages, view.next, view.sequence) == (page.items, following, 21), window
            assert view.plain or view.conversation is not None


async def test_a_message_that_only_a_newer_release_reads_is_shown_as_it_is(store: ConversationStore) -> None:
    outbox = Outbox()
    await send(store, outbox, ONLY, Event(type="message.appended", schema_version=2, data={"shape": "of tomorrow"}))
    async with store.runtime.callers_engine.begin() as connection:  # as the newer release would have
        values = {"partition": 0, "conversation_id": ONLY, "version": 1, "message_id": "m-1", "content_version": 1}
        await connection.execute(sa.insert(messages_table).values(**values, role="narrator", state="appended"))
    [message] = await store.messages(ONLY)
    assert (message.id, message.content) == ("m-1", (UnknownPart({"shape": "of tomorrow"}),))


async def test_a_store_that_was_closed_says_so(store_url: str) -> None:
    store = ConversationStore(store_url, migrate=True)
    await store.ping()
    await store.prepare()
    await store.close()
    await store.close()
    for call in (store.ping, store.prepare, store.head, store.partitions, store.conversations):
        with pytest.raises(Closed):
            await call()


@pytest.mark.parametrize("store_url", ["postgresql", "mariadb"], indirect=True)
async def test_close_waits_for_what_is_under_way(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.store.runtime.CLOSE_TIMEOUT_SECONDS", 20)
    store = ConversationStore(store_url, migrate=True)
    await store.prepare()
    reading, pool = asyncio.Event(), store.runtime.callers_engine.sync_engine.pool

    async def slow(lineage: Lineage, connection: AsyncConnection) -> int:
        reading.set()
        await asyncio.sleep(0.3)
        return int((await connection.execute(sa.select(sa.func.count()).select_from(messages_table))).scalar_one())

    read = asyncio.create_task(store.runtime.snapshot(slow))
    await reading.wait()
    await store.close()
    assert await read == 0
    assert isinstance(pool, QueuePool) and (pool.checkedout(), pool.checkedin()) == (0, 0)
    with pytest.raises(Closed):
        await store.runtime.snapshot(slow)


@pytest.mark.parametrize("store_url", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("waits", [True, False], ids=["the close is waited for", "its caller waits no longer"])
async def test_close_though_a_read_hangs(store_url: str, monkeypatch: pytest.MonkeyPatch, *, waits: bool) -> None:
    if waits:
        monkeypatch.setattr("letopis.store.runtime.CLOSE_TIMEOUT_SECONDS", 0.1)
    store = ConversationStore(store_url, migrate=True)
    await store.prepare()
    reading, go_on, pool = asyncio.Event(), asyncio.Event(), store.runtime.callers_engine.sync_engine.pool
    assert isinstance(pool, QueuePool)

    async def hangs(lineage: Lineage, connection: AsyncConnection) -> None:
        reading.set()
        await go_on.wait()

    read = asyncio.create_task(store.runtime.snapshot(hangs))
    await reading.wait()
    if waits:
        async with asyncio.timeout(60):
            await store.close()
        assert not read.done()
    else:
        await store.ping()
        assert (pool.checkedout(), pool.checkedin()) == (1, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await store.close()
        assert pool.checkedin() == 0
    go_on.set()
    await read
    await greenlet_spawn(pool.dispose)  # of what was given back too late


async def test_a_damaged_payload_is_a_fault_of_the_store_and_quotes_nothing(store: ConversationStore) -> None:
    await new_outbox(store, ONLY, Message.user("secret"))
    await change(store, 'UPDATE letopis_events SET data = \'{"content": "secret\'')
    for call in (store.messages, store.events):
        with pytest.raises(StoreFault) as caught:
            await call(ONLY)
        assert "secret" not in repr(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None
