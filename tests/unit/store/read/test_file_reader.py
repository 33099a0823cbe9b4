"""A read of a file says what the reader of a server says, which reads with other statements."""

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from letopis.store import ConversationStore, Message
from letopis.store.model import event_types as words
from letopis.store.model.events import NO_UPCASTERS
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import Window
from letopis.store.read.reader import Reader, StoreView, ViewQuery
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox
from tests.support.sayings import send


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[tuple[ConversationStore, Outbox]]:
    """A file with messages of every kind."""
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox = Outbox()
        for number in range(12):
            outbox.append("chat", Message.user(f"number {number}", id=f"m{number}"))
        outbox.append("chat", Message.assistant("with more", id="more", tokens=3, metadata={"a": 1}))
        outbox.append("chat", words.MessageSent(message_id="m1", platform_ids={"telegram": 4711}))
        outbox.append("chat", words.MessageEdited(message_id="m2", content="edited"))
        outbox.append("chat", words.MessageRedacted(message_id="m3"))
        await send(store, outbox, "chat", words.ReactionAdded(message_id="m4", key="+1"))
        yield store, outbox


async def compared(store: ConversationStore, query: ViewQuery) -> StoreView:
    """The view of a file, which is the one that a server's reader answers."""
    found = await store.runtime.view(query)
    whole = await store.runtime.connected(partial(plain_reader(store).view, query=query))
    assert found == (replace(whole, conversation=None, plain=True) if found.plain else whole), query
    return found


async def own(store: ConversationStore, reader: Reader, name: str, window: Window) -> object:
    lineage = Lineage(reader, (await store.runtime.prepared()).lineage.past)
    return await store.runtime.connected(lambda connection: lineage.own(connection, name, window))


def plain_reader(store: ConversationStore) -> Reader:
    return Reader(store.runtime.dialect, partitions=1, upcasters=NO_UPCASTERS)


@pytest.mark.parametrize(
    "window", [Window(last=5), Window(last=50), Window(first=3, after=4), Window(last=4, before=9), Window(first=99)]
)
async def test_it_says_what_the_reader_of_a_server_says(kept: tuple[ConversationStore, Outbox], window: Window) -> None:
    store, outbox = kept
    origin_id = outbox.origin.origin_id
    ready = await store.runtime.prepared()

    for names in ((), ("m1", "m5", "more", "missing")):
        query = ViewQuery(conversation_id="chat", origin_id=origin_id, window=window, names=names)
        bounded = replace(query, bound=lambda view: (0, view.places["m5"].version if view.places else 3))
        for asked in (query, bounded, replace(query, window=None)):
            found = await compared(store, asked)
            assert found.plain == (asked is query and not names)
            assert found.sequence == found.version == 17
            assert len(found.places) == (3 if names else 0)
    assert await own(store, ready.reader, "chat", window) == await own(store, plain_reader(store), "chat", window)


@pytest.mark.parametrize("what", ["rewind", "reset", "deletion"])
async def test_it_says_what_the_reader_of_a_server_says_while_a_mark_waits(
    kept: tuple[ConversationStore, Outbox], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    for module in ("write.loading", "write.erasing"):
        monkeypatch.setattr(f"letopis.store.{module}.MAX_ROWS_PER_TRANSACTION", 3)
    monkeypatch.setattr("letopis.store.maintenance.task_steps.STEP_SECONDS", 0.0)
    monkeypatch.setattr("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 2)
    store, outbox = kept
    ready = await store.runtime.prepared()
    after = Message.user("after", id="after")
    marked, left = {
        "rewind": ([words.ConversationRewound(to_message_id="m5"), after], [*(f"m{n}" for n in range(6)), "after"]),
        "reset": ([words.ConversationRewound(erase=True), after], ["after"]),
        "deletion": ([words.ConversationDeleted()], []),
    }[what]
    outbox.append("fork", forked("chat", 9))
    await send(store, outbox, "chat", *marked)
    before, steps = list(await store.messages("fork")), 0
    assert (await store.pending_tasks()).tasks
    while True:
        for name in ("chat", "fork"):
            for window in (Window(last=50), Window(last=3), Window(first=4), Window(last=50, every=True)):
                for names in ((), ("m1", "m5", "m9", "after")):
                    origin_id = outbox.origin.origin_id
                    await compared(
                        store, ViewQuery(conversation_id=name, origin_id=origin_id, window=window, names=names)
                    )
                page = await own(store, ready.reader, name, window)
                assert page == await own(store, plain_reader(store), name, window)
        assert [one.id for one in await store.messages("chat", last=50)] == left
        assert [one.id for one in await store.messages("chat")] == left
        assert list(await store.messages("fork")) == before
        if not await store.run_pending_tasks():
            break
        steps += 1
    assert steps > 3
