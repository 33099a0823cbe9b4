"""Reads hold what was acknowledged before them, on each store, and a slow question is that question's trouble alone."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import pytest

from letopis.outbox import History, OutboxFile, Relay
from letopis.outbox.event_log.acknowledge import acknowledge
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.pending_reads import pending_search
from letopis.outbox.pending_reads.pending_search import pending_of, snapshot
from letopis.outbox.pending_reads.pending_slice import read_slice
from letopis.outbox.pending_reads.read_path import ReadPath
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store import (
    Conflict,
    ConversationRewound,
    FaultClass,
    Message,
    OutboxUnavailable,
    ReadTimeout,
    Saved,
    StoreFault,
)
from letopis.store.conversation_store import ConversationStore
from letopis.store.read.reader import StoreView, ViewQuery
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from letopis.store.runtime import StoreRuntime
from tests.support.outboxes import prune
from tests.support.relays import deliver_all, lane, say, sql
from tests.support.sayings import change, present


@pytest.fixture
async def history(tmp_path: Path, store_url: str) -> AsyncIterator[History]:
    """A history on each store, which delivers nothing on its own."""
    async with ConversationStore.open(store_url, migrate=True):
        pass
    async with History(tmp_path / "bot.outbox.db", store=store_url, relay=False, watch=False) as opened:
        yield opened


def between(monkeypatch: pytest.MonkeyPatch, event: Callable[[], Any]) -> list[int]:
    """Have something happen once, between the look into the file and the question to the store."""
    asked: list[int] = []
    view = StoreRuntime.view

    async def later(self: StoreRuntime, query: ViewQuery) -> StoreView:
        asked.append(1)
        if len(asked) == 1:
            await event()
        return await view(self, query)

    monkeypatch.setattr(StoreRuntime, "view", later)
    return asked


async def ids(history: History, **window: Any) -> list[str]:
    page = await history.messages("c", **window)
    assert page.complete
    return [one.id for one in page]


@pytest.mark.parametrize("pruned", [False, True])
async def test_rewind_meanwhile_hides_nothing(history: History, monkeypatch: pytest.MonkeyPatch, pruned: bool) -> None:
    await history.append("c", Message.user("q", id="q"), Message.assistant("a", id="a"))
    await deliver_all(history)
    await history.chat("c").regenerate()
    await history.append("c", Message.assistant("b", id="b"))

    async def arrive() -> None:
        await deliver_all(history)
        if pruned:
            await prune(history, keep_last=0)

    asked = between(monkeypatch, arrive)

    assert await ids(history, last=10) == ["q", "b"]
    assert asked == [1], "nothing has to be read twice for it"
    assert [one.id for one in (await history.context("c")).messages] == ["q", "b"]
    assert present(await history.chat("c").conversation()).message_count == 2


async def test_what_is_said_meanwhile_is_not_cut_off(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    await history.append("c", *(Message.user(str(n), id=str(n)) for n in range(5)))
    await deliver_all(history)
    await history.chat("c").rewind(to="1")

    async def arrive() -> None:
        await history.append("c", Message.user("late", id="late"))
        await deliver_all(history)

    between(monkeypatch, arrive)

    assert await ids(history, last=3) in (["0", "1"], ["0", "1", "late"])
    assert await ids(history, last=3) == ["0", "1", "late"]


async def test_a_store_restored_meanwhile_is_completed(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    await history.append("c", *(Message.user(str(n), id=str(n)) for n in range(3)))
    await history.chat("c").rewind(to="1")
    await history.append("c", Message.user("3", id="3"))
    await deliver_all(history)

    async def lose() -> None:
        tables = ("events", "messages", "conversations", "lanes")
        await change(history.store, *(f"DELETE FROM letopis_{table}" for table in tables))

    asked = between(monkeypatch, lose)

    assert await ids(history, last=10) == ["0", "1", "3"]
    assert asked == [1, 1]
    assert {one.saved for one in await history.messages("c")} == {Saved.PENDING}
    assert len(await history.chat("c").events()) == 6


async def test_an_activation_delivered_meanwhile_counts(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old", "new"):
        await history.start("42", conversation_id=name)
    await deliver_all(history)
    await history.chat("old").activate()
    past = StoreRuntime.snapshot

    async def delivered_before(self: StoreRuntime, read: Any) -> Any:
        await deliver_all(history)
        await prune(history, keep_last=0)
        return await past(self, read)

    monkeypatch.setattr(StoreRuntime, "snapshot", delivered_before)

    assert present(await history.active("42", create=False)).conversation_id == "old"


async def test_a_slow_question_fails_alone(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    await history.append("c", Message.user("one"), Message.user("two"))
    await deliver_all(history)
    monkeypatch.setattr(history._parts.gateway, "_deadline", 0.4)
    past = ConversationStore.conversation

    async def slow(self: ConversationStore, name: str, *, as_of: Any = None) -> Any:
        await asyncio.sleep(0.8 if as_of is not None else 0)
        return await past(self, name, as_of=as_of)

    monkeypatch.setattr(ConversationStore, "conversation", slow)

    async def others() -> None:
        for _ in range(40):
            assert (await history.messages("c", last=5)).complete
            await asyncio.sleep(0.02)

    late, failed = await asyncio.gather(history.chat("c").conversation(as_of=2), others(), return_exceptions=True)

    assert isinstance(late, ReadTimeout)
    assert "timeout=" in str(late)
    assert failed is None
    assert not history._parts.gateway.unavailable
    assert present(await history.chat("c").conversation(as_of=2, timeout=20)).message_count == 1


async def test_a_fault_of_the_request_or_a_cancelled_statement_is_no_outage(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history.append("c", Message.user("one"))
    await deliver_all(history)

    fault = partial(StoreFault, fault_class=FaultClass.UNAVAILABLE)
    refused = AsyncMock(side_effect=StoreFault(fault_class=FaultClass.POISON, code="22021", reason="refused"))
    cancelled = AsyncMock(side_effect=fault(code="57014", reason="it took too long"))
    lost = AsyncMock(side_effect=fault(code="08006", reason="the connection was lost"))
    later = AsyncMock(return_value="an answer")

    with pytest.raises(StoreFault, match="refused"):
        await history._parts.gateway.read(refused)
    assert await history._parts.gateway.read(cancelled) is None
    with pytest.raises(ReadTimeout):
        await history._parts.gateway.read(cancelled, needed=True)
    assert (await history.messages("c", last=5)).complete
    assert await history._parts.gateway.read(lost) is None
    assert history._parts.gateway.unavailable
    assert await history._parts.gateway.read(later) is None
    later.assert_not_awaited()
    assert not (await history.messages("c", last=5)).complete


async def test_a_store_without_sign_of_life_is_away(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    await history.append("c", Message.user("one"))
    monkeypatch.setattr(history._parts.gateway, "_deadline", 0.2)

    async def never(*_: Any) -> Any:
        await asyncio.sleep(30)

    monkeypatch.setattr(ConversationStore, "identity", never)
    assert await history._parts.gateway.read(never) is None
    assert not (await history.messages("c", last=5)).complete
    assert history._parts.gateway.unavailable


async def test_a_store_that_answers_a_process_that_was_suspended_is_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, store = asyncio.get_running_loop(), ConversationStore(f"sqlite:///{tmp_path / 'history.db'}")

    async def suspended() -> str:
        patch.setattr(loop, "time", lambda real=loop.time: real() + 3_600)
        for _ in range(10):
            await asyncio.sleep(0)
        return "answer"

    with monkeypatch.context() as patch:
        assert await StoreGateway(store, breaker=lambda: None).read(suspended, timeout=1) == "answer"
    await store.close()


async def test_what_is_said_after_an_outbox_was_restored_from_a_backup_is_read(tmp_path: Path) -> None:
    """The store holds other events at the places of those that are pending, so reads took them for delivered: what
    was blocked as diverged was in no read at all."""
    path, backup = tmp_path / "bot.outbox.db", tmp_path / "backup.db"
    async with History(path, relay=False) as history:
        await history.append("c1", Message.user("kept"))
        await deliver_all(history)
    shutil.copy(path, backup)
    async with History(path, relay=False) as history:
        await history.append("c1", Message.user("forgotten 1"), Message.user("forgotten 2"))
        await deliver_all(history)
    path.unlink()
    shutil.copy(backup, path)

    async with History(path, relay=False) as history:
        await history.append("c1", Message.user("new"))
        await Relay(history.outbox, history.store).drain()

        texts = ["kept", "forgotten 1", "forgotten 2", "new"]
        found = await history.messages("c1")
        assert [one.text for one in found] == texts
        assert found[-1].saved is Saved.BLOCKED
        assert [one.text for one in await history.messages("c1", last=2)] == texts[-2:]
        conversation = present(await history.chat("c1").conversation())
        assert (conversation.message_count, conversation.pending) == (4, 1)


async def test_a_damaged_event_is_named_and_not_quoted(tmp_path: Path) -> None:
    """A read of what the outbox holds raised the JSON decoder's error, which carries the whole text of the event."""
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("one"))
        await sql(history.outbox, "UPDATE letopis_outbox_events SET data = substr(data, 1, 20) WHERE sequence = 2")

        chat = history.chat("c1")
        for read in (lambda: history.messages("c1"), chat.conversation, chat.events):
            with pytest.raises(OutboxUnavailable, match="event 2 of the conversation is damaged") as caught:
                await read()
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None


async def test_slice_of_delivered_events_has_their_conflicts(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    conflicts = {3: Conflict(expected=2, actual=7)}
    await outbox.write(partial(acknowledge, delivered={"a": 3}, now_us=1, superseded={"a": conflicts}))
    read = partial(read_slice, conversation_id="a", origin_id=outbox.origin.origin_id)
    for since, known in ((2, conflicts), (3, {})):
        assert (await outbox.read(partial(on_cursor, work=partial(read, since=since)))).conflicts == known


@pytest.mark.parametrize(("events", "busy", "in_thread"), [(7, False, False), (7, True, True), (8, False, True)])
async def test_a_few_events_are_read_in_the_loop_where_that_does_not_block_it(
    outbox: OutboxFile, events: int, busy: bool, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say(outbox, "a", events)  # and the one that begins the conversation
    if busy:
        monkeypatch.setattr(outbox.probe, "read", lambda _: None)
    gateway, read = Mock(spec=StoreGateway), AsyncMock(wraps=outbox.read)
    with patch.object(OutboxFile, "read", read):
        pending = await ReadPath(outbox, gateway)._pending("a", None, None)

    assert (len(pending.rows), read.await_count) == (events + 1, int(in_thread))


async def test_a_file_that_the_loop_cannot_read_is_read_in_the_thread(outbox: OutboxFile) -> None:
    await say(outbox, "a", 1)

    def busy(_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    outbox.probe.lookup("a")
    assert outbox.probe.read(busy) is None
    assert outbox.probe.read(lambda cursor: cursor) is None, "a connection with an error is not used again"
    assert not outbox.probe.lookup("a").settled
    assert outbox.probe.read(lambda cursor: cursor.execute("SELECT 1").fetchone()) == (1,)


async def test_a_cut_tells_whether_its_message_is_in_the_slice_itself(outbox: OutboxFile) -> None:
    await outbox.append(prepare("a", [Message.user("one", id="m1"), Message.user("two", id="m2")]))
    for target in ("m1", "older"):
        await outbox.append(prepare("a", [ConversationRewound(to_message_id=target)]))
    read = partial(read_slice, conversation_id="a", origin_id=outbox.origin.origin_id)
    pending = await outbox.read(partial(on_cursor, work=read))

    assert pending.path_cuts(0) == [("m1", True), ("older", False)]
    assert pending.path_cuts(2) == [("m1", False), ("older", False)]


async def test_events_that_the_store_set_aside_are_marked(outbox: OutboxFile) -> None:
    await say(outbox, "a", 3)
    verdicts = {"a": {3: Conflict(expected=2, actual=7)}}
    await outbox.write(partial(acknowledge, delivered={"a": 3}, now_us=1, superseded=verdicts))
    before = replace(await lane(outbox, "a"), delivered=1)

    found = await outbox.read(partial(pending_of, lanes=[before], origin_id=outbox.origin.origin_id))

    marked = {event.sequence: SUPERSEDED_KEY in event.metadata for event in found["a"].events}
    assert marked == {2: False, 3: True, 4: False}


async def test_the_conversation_with_the_newest_event_is_read_where_not_all_fit(
    outbox: OutboxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("newest", "longest ago", "newest"):
        await say(outbox, name)
    monkeypatch.setattr(pending_search, "MAX_SEARCHED_EVENTS", 4)

    found = await outbox.read(partial(snapshot, origin_id=outbox.origin.origin_id, conversation=None))

    assert (list(found.conversations), found.complete) == (["newest"], False)
