"""Long rewinds, resets and deletions: marked at once, carried out in steps; reads in between are the same."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from letopis.store import ConversationStore, FaultClass, Message, MessageEdited
from letopis.store.database.schema import conversations, events, log_heads, messages, search
from letopis.store.database.store_identity import LogState, expect_store
from letopis.store.errors import HistoryDiverged
from letopis.store.model.event_types import (
    Body,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRewound,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
)
from letopis.store.ops.rebuild import rebuild
from letopis.store.read.task_marks import PendingTasks
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox
from tests.conformance.tables import on_sqlite
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
    for module in modules or ("write.loading", "write.erasing", "search.documents"):
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
    found["rebuild"] = {one.conversation_id: one.differences async for one in rebuild(store, check=True)}
    return found


async def _log(store: ConversationStore) -> AsyncIterator[Any]:
    head = await store.head(0)
    async for event in store.subscribe():
        yield event
        if event.position == head:
            return


async def carried_out(store: ConversationStore, *names: str, each: int = 4) -> int:
    """Carry out everything; after some of the steps all reads are the same."""
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


@on_sqlite
@pytest.mark.parametrize("deleted", [True, False])
async def test_a_rebuild_carries_out_what_is_marked_first(store: ConversationStore, deleted: bool) -> None:
    outbox = await new_outbox(store, "p", *said(LONG), ReactionAdded(message_id="m12", key="+"))
    await send(store, outbox, "p", ConversationDeleted() if deleted else ConversationRewound(to_message_id="m3"))
    assert [one.differences async for one in rebuild(store, check=True)] == [()]
    async for one in rebuild(store, every=True):
        assert one.differences == ()
    assert await store.pending_tasks() == PendingTasks()
    assert ("words of 12" in await held(store, "p")) is not deleted


async def test_step_that_is_cut_off_has_not_happened(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await deleted(store)
    steps = (await store.runtime.prepared()).steps
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
    outbox.append("p", *said(80))
    await send(store, outbox, "f", forked("p", 4))
    await send(store, outbox, "p", ConversationDeleted())
    for seen in range(1, 3):
        words = command(take_steps, store_url)
        victim = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert victim.stdout is not None
        for _ in range(3 * seen):
            await victim.stdout.readline()
        victim.kill()
        await victim.wait()
        assert len(await store.messages("f")) == 4 and (await store.messages("p")).items == ()
        assert [one.differences async for one in rebuild(store, check=True)] == [(), ()]
    assert (await store.pending_tasks()).tasks  # it was killed in the middle
    await finish_tasks(store)
    left = await held(store, "p")
    assert "words of 5'" not in left and all(f"words of {number}" not in left for number in range(10, 81))


async def test_a_store_that_is_closed_takes_no_step(store: ConversationStore) -> None:
    await deleted(store)
    before, there = await store.pending_tasks(), await held(store, "p")
    for closed in (LogState.CLOSING, LogState.MOVED):
        await change(store, sa.update(log_heads).values(closed=closed))
        with raises_fault(FaultClass.WRONG_STORE, "moved"):
            await store.run_pending_tasks()
        assert await store.pending_tasks() == before and await held(store, "p") == there
    await change(store, sa.update(log_heads).values(closed=LogState.OPEN))
    await finish_tasks(store)
    assert "words" not in await held(store, "p")


@on_sqlite
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
    engine = store.runtime.callers_engine.sync_engine

    def note(_: object, cursor: Any, *__: object) -> None:
        rows.append(max(0, cursor.rowcount))

    for name, count in (("short", 20), ("long", 100)):
        await send(store, outbox, name, *said(count))
        await catch_up_index(store)
        outbox.append(name, how)
        rows.clear()
        sa.event.listen(engine, "after_cursor_execute", note)
        await store.apply(outbox.origin, [outbox.batch(name, count + 1)])
        sa.event.remove(engine, "after_cursor_execute", note)
        touched.append((len(rows), sum(rows)))
    assert touched[0] == touched[1], touched
    assert (await store.pending_tasks()).rows > 100


# --- A reset or a deletion of a long conversation ---


Told = list[tuple[str, Sequence[Message | Body]]]
RESET = ConversationRewound(erase=True)


def at_length() -> Sequence[Message | Body]:
    """Messages 1 to 16 as versions 1 to 16, and something of each kind about them; 21 versions."""
    return [
        *said(LONG),
        ReactionAdded(message_id="m3", key="+", value="words"),
        MessageEdited(message_id="m5", content="words edited"),
        MessageSent(message_id="m6", platform_ids={"telegram": 1}),
        MessageRedacted(message_id="m7"),
        ConversationRenamed(title="words"),
    ]


async def take(store: ConversationStore, told: Told) -> Outbox:
    outbox = Outbox()
    for name, what in told:
        await send(store, outbox, name, *what)
    return outbox


APART = {
    "event_id",
    "origin_id",
    "position",
    "digest",
    "salt",
    "occurred_at",
    "recorded_at",
    "created_at",
    "updated_at",
}
"""What differs in each run."""


async def rows_about(store: ConversationStore, *names: str) -> dict[str, list[Any]]:
    found = {}
    for table in (conversations, messages, events):
        columns: list[Any] = [column for column in table.c if column.name not in APART]
        if table is events:
            columns.append(events.c.salt.is_(None).label("erased"))
        select = sa.select(*columns).where(table.c.conversation_id.in_(names))
        found[table.name] = sorted(await rows_of(store, select.order_by(*columns[:3])))
    return found


@pytest.mark.parametrize("end", [RESET, ConversationDeleted()], ids=["reset", "deletion"])
async def test_it_is_unreadable_at_once_and_gone_after_its_steps(store: ConversationStore, end: Body) -> None:
    outbox = await take(store, [("p", at_length()), ("f", [forked("p", 4), *said(2, 300)]), ("q", said(3, 100))])
    await catch_up_index(store)
    kept = list(await store.messages("f"))
    await send(store, outbox, "p", end, Message.user("hello again", id="n1"))
    again = ["hello again"] if end is RESET else []

    # The path, the messages and the events; of the events, what the fork reads is kept.
    assert await store.pending_tasks() == PendingTasks(tasks=3, rows=3 * 21 - 4, erasing=1)
    assert [one.text for one in await store.messages("p")] == again
    assert [hit.message.text for hit in await store.search("again")] == again
    assert {hit.conversation_id for hit in await store.search("words", limit=100)} == {"f", "q"}
    found = present(await store.conversation("p"))
    assert (found.state == "active", found.title, found.message_count) == (end is RESET, None, len(again))
    # A fork that comes too late has no content of what was erased, though the bytes are still there.
    await send(store, outbox, "late", forked("p", LONG))
    late = [f"words of {number}" for number in range(1, 5)] + [""] * (LONG - 4)
    assert [one.text for one in await store.messages("late")] == late
    assert "words of 12" in await held(store, "p")
    seen = repr(await everything(store, "p", "f", "late"))
    assert "words of 12" not in seen and "words edited" not in seen

    assert await carried_out(store, "p", "f", "late", "q") > 5
    await catch_up_index(store)
    assert await carried_out(store, "p", "f", "late", "q") == 0
    left = await held(store, "p")
    assert all(f"words of {number}" not in left for number in range(5, LONG + 1)) and "words of 4" in left
    assert ("hello again" in left) is (end is RESET)
    assert list(await store.messages("f")) == kept
    assert [one.text for one in await store.messages("late")] == late
    indexed = sa.select(search.c.version).where(search.c.conversation_id == "p", search.c.document != "")
    assert len(await rows_of(store, indexed)) == len(again)

    outbox.append("f", ConversationRewound())
    await send(store, outbox, "late", ConversationDeleted())
    await carried_out(store, "p", "f", "late")
    assert "words" not in await held(store, "p")
    assert [one.text for one in await store.messages("p")] == again


AFTERWARDS: dict[str, Told] = {
    "nothing": [],
    "what changes a message that is gone": [
        (
            "p",
            [
                MessageEdited(message_id="m9", content="words too late"),
                MessageSent(message_id="m10"),
                ReactionAdded(message_id="m11", key="+"),
                MessageRedacted(message_id="m2"),
            ],
        )
    ],
    "another reset": [("p", [*said(6, 100), ReactionAdded(message_id="m102", key="+")]), ("p", [RESET])],
    "a rewind, and one to what is gone": [
        ("p", said(6, 100)),
        ("p", [ConversationRewound(to_message_id="m101"), ConversationRewound(to_message_id="m3")]),
    ],
    "a deletion": [("p", said(6, 100)), ("p", [ConversationDeleted()])],
    "a fork of what came after, and a deletion": [
        ("p", said(6, 100)),
        ("g", [forked("p", 25)]),
        ("p", [ConversationDeleted()]),
    ],
    "all its forks go": [("f", [ConversationDeleted()])],
}


@on_sqlite
@pytest.mark.parametrize("afterwards", AFTERWARDS)
async def test_long_equals_short(store: ConversationStore, new_store_url: Any, afterwards: str) -> None:
    told: Told = [("p", at_length()), ("f", [forked("p", 4)]), ("p", [RESET])]
    names = ("p", "f", "g")
    outbox = await take(store, told)
    for name, what in AFTERWARDS[afterwards]:
        await send(store, outbox, name, *what)
    marked = await everything(store, "p", "f")
    await carried_out(store, *names, each=9)

    with pytest.MonkeyPatch.context() as patch:
        take_small_steps(patch, rows=2_000)
        async with ConversationStore.open(new_store_url("sqlite"), migrate=True) as other:
            await take(other, [*told, *AFTERWARDS[afterwards]])
            assert await other.pending_tasks() == PendingTasks()
            found, wanted = await rows_about(store, *names), await rows_about(other, *names)
            for table, held_there in wanted.items():
                assert found[table] == held_there, table
            short = await everything(other, "p", "f")
    assert marked["search"] == short["search"] and marked["statistics"] == short["statistics"]
    for name in ("p", "f"):
        assert marked[name][:4] == short[name][:4]
    assert set(map(repr, marked["rebuild"].values())) == {"()"}


@on_sqlite
@pytest.mark.parametrize("between", [ConversationRewound(), RESET, ConversationDeleted()])
async def test_a_fork_of_a_fork_reads_what_was_reset(store: ConversationStore, between: Body) -> None:
    outbox = await take(
        store,
        [
            ("p", [*said(LONG), ReactionAdded(message_id="m2", key="+")]),
            ("f", [forked("p", 8), *said(6, 100)]),
            ("g", [forked("f", 4)]),
        ],
    )
    reads = [(one.id, one.text) for one in await store.messages("g")]
    assert [name for name, _ in reads] == [*(f"m{n}" for n in range(1, 9)), "m100", "m101", "m102"]

    async def same() -> None:
        assert [(one.id, one.text) for one in await store.messages("g")] == reads
        await carried_out(store, "p", "f", "g")
        assert [(one.id, one.text) for one in await store.messages("g")] == reads

    await send(store, outbox, "f", between)
    await same()
    await send(store, outbox, "p", RESET, Message.user("hello again", id="n1"))
    await same()
    left = await held(store, "p")
    assert "words of 8'" in left.replace('"', "'") and "words of 9" not in left
    async for rebuilt in rebuild(store, every=True):
        assert rebuilt.differences == ()
    await same()

    await send(store, outbox, "g", RESET, Message.user("hello as well", id="n2"))
    await carried_out(store, "p", "f", "g")
    assert "words" not in await held(store, "p") + await held(store, "g")
    if between != ConversationRewound():  # what a clear left is there for time travel
        assert "words" not in await held(store, "f")
    assert [one.text for one in await store.messages("p")] == ["hello again"]
    assert [one.text for one in await store.messages("g")] == ["hello as well"]


@on_sqlite
async def test_lost_rows_of_it_are_made_again_and_erase_nothing_that_is_read(store: ConversationStore) -> None:
    await take(
        store, [("p", said(LONG)), ("f", [forked("p", 6)]), ("p", [RESET, Message.user("hello again", id="n1")])]
    )
    await carried_out(store, "p", "f")
    before, read = await rows_about(store, "p"), list(await store.messages("f"))
    await change(store, sa.delete(messages), sa.delete(conversations))
    async for _ in rebuild(store):
        pass
    await carried_out(store, "p", "f")
    assert list(await store.messages("f")) == read
    assert await rows_about(store, "p") == before


@on_sqlite
async def test_an_id_that_a_mark_has_erased_is_no_retry(store: ConversationStore) -> None:
    outbox = await take(store, [("p", said(LONG)), ("p", [RESET])])
    assert (await store.pending_tasks()).tasks == 3
    other = Outbox("other.outbox.db")
    other.append_encoded("p", outbox.lanes["p"][11:12])
    for _ in range(2):
        [refused] = (await other.deliver(store)).refused
        assert isinstance(refused, HistoryDiverged) and refused.erased
        await carried_out(store, "p")
    # Its own lane, that sends it again, is answered as before.
    again = await store.apply(outbox.origin, [outbox.batch("p")])
    assert not again.refused and again.applied[0].inserted == 0
