"""Long rewinds and deletions: marked at once, carried out in steps; reads in between are the same."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from letopis.store import ConversationStore, FaultClass, Message, MessageEdited
from letopis.store.database.schema import events, log_heads, messages
from letopis.store.database.store_identity import LogState, expect_store
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    MessageRedacted,
    ReactionAdded,
)
from letopis.store.read.task_marks import PendingTasks
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox
from tests.support.child import command
from tests.support.sayings import (
    catch_up_index,
    change,
    finish_tasks,
    new_outbox,
    present,
    raises_fault,
    rows_of,
    send,
)

LONG = 16
"""Messages of what counts as long here."""


def take_small_steps(patch: pytest.MonkeyPatch, *modules: str, rows: int = 3) -> None:
    """Everything of more rows than this is long, and a step is of four versions."""
    for module in modules or ("write.loading", "write.redaction", "search.documents"):
        patch.setattr(f"letopis.store.{module}.MAX_ROWS_PER_TRANSACTION", rows)
    patch.setattr("letopis.store.maintenance.task_steps.STEP_SECONDS", 0.0)
    patch.setattr("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 4)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    take_small_steps(monkeypatch)


def said(count: int, start: int = 1) -> list[Message]:
    return [
        Message.user(f"words of {number}", id=f"m{number}", tokens=1, metadata={"secret": f"label{number}"})
        for number in range(start, start + count)
    ]


async def everything(store: ConversationStore, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        page = await store.messages(name)
        every = await store.messages(name, every=True)
        log = await store.events(name)
        found[name] = (
            [(one.id, one.text, one.reactions, one.redacted) for one in page],
            [(one.id, one.text, one.on_path) for one in every],
            [(one.id, one.text) for one in await store.messages(name, last=5)],
            [[(one.id, one.text) for one in await store.messages(name, as_of=at)] for at in range(1, len(log), 5)],
            [(one.version, one.data, one.metadata, one.digest) for one in log],
            await store.conversation(name),
        )
    hits = await store.search("words", limit=200)
    found["search"] = sorted((hit.conversation_id, hit.message.id) for hit in hits)
    found["statistics"] = await store.statistics(by="secret")
    found["log"] = [(event.version, event.data) async for event in _log(store)]
    found["rebuild"] = {one.conversation_id: one.differences async for one in store.rebuild(check=True)}
    return found


async def _log(store: ConversationStore) -> AsyncIterator[Any]:
    head = await store.head(0)
    async for event in store.subscribe():
        yield event
        if event.position == head:
            return


async def carried_out(store: ConversationStore, *names: str, each: int = 1) -> int:
    """Carry out everything; between two steps all reads are the same."""
    before, steps = await everything(store, *names), 0
    while await store.run_pending_tasks():
        steps += 1
        if steps % each == 0:
            assert await everything(store, *names) == before
        assert steps < 1_000
    if steps % each:
        assert await everything(store, *names) == before
    assert await store.pending_tasks() == PendingTasks()
    return steps


async def held(store: ConversationStore, name: str) -> str:
    tables = (events, messages)
    return repr([await rows_of(store, sa.select(table).where(table.c.conversation_id == name)) for table in tables])


async def deleted(store: ConversationStore) -> None:
    """A long conversation whose deletion is marked."""
    outbox = await new_outbox(store, "p", *said(LONG))
    await send(store, outbox, "p", ConversationDeleted())


async def test_a_long_rewind_is_off_the_path_at_once(store: ConversationStore) -> None:
    outbox = await new_outbox(store, "p", *said(LONG))
    await send(store, outbox, "p", ConversationRewound(to_message_id="m10"), Message.user("words after", id="n1"))
    assert present(await store.conversation("p")).message_count == 11
    assert [one.id for one in await store.messages("p")] == [*(f"m{n}" for n in range(1, 11)), "n1"]
    assert (await store.pending_tasks()).tasks == 1
    # What happens meanwhile: a second rewind over the first, edits on both sides of it, redactions, a fork before it.
    outbox.append(
        "p",
        *said(6, 200),
        MessageEdited(message_id="m12", content="words edited"),
        MessageRedacted(message_id="m14"),
        ConversationRewound(to_message_id="m5"),
        Message.user("words at last", id="n2"),
    )
    await send(store, outbox, "f", forked("p", LONG))
    assert [one.id for one in await store.messages("p")] == [*(f"m{n}" for n in range(1, 6)), "n2"]
    assert present(await store.conversation("p")).message_count == 6
    assert len(await store.messages("f")) == LONG
    outbox.append("p", ConversationRewound(to_message_id="m12"))  # it is off the path: nothing happens
    await outbox.deliver(store)
    assert await carried_out(store, "p", "f") > 2
    assert await store.pending_tasks() == PendingTasks()
    await send(store, outbox, "p", ConversationRewound(), ConversationDeleted(), Message.user("words too late"))
    await carried_out(store, "p", "f")
    assert [one.text for one in await store.messages("f")][:2] == ["words of 1", "words of 2"]


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_rebuild_carries_out_what_is_marked_first(store: ConversationStore, deleted: bool) -> None:
    outbox = await new_outbox(store, "p", *said(LONG), ReactionAdded(message_id="m12", key="+"))
    await send(store, outbox, "p", ConversationDeleted() if deleted else ConversationRewound(to_message_id="m3"))
    assert [one.differences async for one in store.rebuild(check=True)] == [()]
    async for one in store.rebuild(every=True):
        assert one.differences == ()
    assert await store.pending_tasks() == PendingTasks()
    assert ("words of 12" in await held(store, "p")) is not deleted


async def test_step_that_is_cut_off_has_not_happened(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await deleted(store)
    steps = (await store._runtime.prepared()).steps
    work = steps._work

    async def cut_off(*given: Any, **named: Any) -> int:
        await work(*given, **named)
        raise ConnectionResetError

    while (before := await store.pending_tasks()).tasks:
        with monkeypatch.context() as patch:
            patch.setattr(type(steps), "_work", lambda self, *given, **named: cut_off(*given, **named))
            with pytest.raises(Exception):  # noqa: B017 - whatever a driver makes of it
                await store.run_pending_tasks()
        assert await store.pending_tasks() == before
        await store.run_pending_tasks()
    assert "words" not in await held(store, "p")


async def take_steps(url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        take_small_steps(patch)
        async with ConversationStore.open(url) as store:
            while await store.run_pending_tasks():
                print("step", flush=True)


async def test_whoever_carries_it_out_may_be_killed_at_any_moment(store: ConversationStore, store_url: str) -> None:
    outbox = Outbox()
    outbox.append("p", *said(200))
    await send(store, outbox, "f", forked("p", 4))
    await send(store, outbox, "p", ConversationDeleted())
    for seen in range(1, 5):
        words = command(take_steps, store_url)
        victim = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert victim.stdout is not None
        for _ in range(3 * seen):
            await victim.stdout.readline()
        victim.kill()
        await victim.wait()
        assert len(await store.messages("f")) == 4 and (await store.messages("p")).items == ()
        assert [one.differences async for one in store.rebuild(check=True)] == [(), ()]
    assert (await store.pending_tasks()).tasks  # it was killed in the middle
    await finish_tasks(store)
    left = await held(store, "p")
    assert "words of 5'" not in left and all(f"words of {number}" not in left for number in range(10, 201))


@pytest.mark.parametrize("state", [LogState.CLOSING, LogState.MOVED])
async def test_a_store_that_is_closed_takes_no_step(store: ConversationStore, state: LogState) -> None:
    await deleted(store)
    before, there = await store.pending_tasks(), await held(store, "p")
    for closed in (state, LogState.OPEN):
        await change(store, sa.update(log_heads).values(closed=closed))
        if closed is state:
            with raises_fault(FaultClass.WRONG_STORE, "moved"):
                await store.run_pending_tasks()
            assert await store.pending_tasks() == before and await held(store, "p") == there
    await finish_tasks(store)
    assert "words" not in await held(store, "p")


async def test_a_store_that_is_not_the_one_that_is_meant_takes_no_step(store: ConversationStore) -> None:
    await deleted(store)
    before, there = await store.pending_tasks(), await held(store, "p")
    with expect_store(uuid4()):
        for ask in (store.run_pending_tasks, store.pending_tasks):
            with raises_fault(FaultClass.WRONG_STORE, "identity"):
                await ask()
    assert await store.pending_tasks() == before and await held(store, "p") == there
    with expect_store((await store.identity()).store_id):
        assert await store.run_pending_tasks()


@pytest.mark.parametrize("how", [ConversationDeleted(), ConversationRewound(erase=True)])
async def test_the_first_transaction_touches_as_many_rows_whatever_the_length(
    store: ConversationStore, how: ConversationDeleted | ConversationRewound
) -> None:
    outbox, touched = Outbox(), list[tuple[int, int]]()
    rows: list[int] = []
    engine = store._runtime.callers_engine.sync_engine

    def note(_: object, cursor: Any, *__: object) -> None:
        rows.append(max(0, cursor.rowcount))

    for name, count in (("short", 20), ("long", 400)):
        await send(store, outbox, name, *said(count))
        await catch_up_index(store)
        outbox.append(name, how)
        rows.clear()
        sa.event.listen(engine, "after_cursor_execute", note)
        await store.apply(outbox.origin, [outbox.batch(name, count + 1)])
        sa.event.remove(engine, "after_cursor_execute", note)
        touched.append((len(rows), sum(rows)))
    assert touched[0] == touched[1], touched
    assert (await store.pending_tasks()).rows > 400
