"""A reset or a deletion of a long conversation is marked and carried out in steps, with the result of a short one."""

from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.store import ConversationStore, Message, MessageEdited
from letopis.store.database.schema import conversations, events, messages, search
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
from letopis.store.read.task_marks import PendingTasks
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox
from tests.conformance.test_tasks import LONG, carried_out, everything, held, said, small_steps, take_small_steps
from tests.support.sayings import catch_up_index, change, present, rows_of, send

__all__ = ("small_steps",)

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


async def rows(store: ConversationStore, *names: str) -> dict[str, list[Any]]:
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

    # Of a reset the path, of both the messages and the events; of the events, what the fork reads is kept.
    marks = 3 if end is RESET else 2
    assert await store.pending_tasks() == PendingTasks(tasks=marks, rows=marks * 21 - 4, erasing=1)
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


@pytest.mark.parametrize("afterwards", AFTERWARDS)
@pytest.mark.parametrize("early", [True, False])
async def test_long_equals_short(store: ConversationStore, new_store_url: Any, afterwards: str, *, early: bool) -> None:
    # Above, everything is read after each step; here, what is left in the end counts.
    told: Told = [("p", at_length()), ("f", [forked("p", 4)]), ("p", [RESET])]
    names = ("p", "f", "g")
    outbox = await take(store, told)
    if early:
        await carried_out(store, *names, each=5)
    for name, what in AFTERWARDS[afterwards]:
        await send(store, outbox, name, *what)
    marked = await everything(store, "p", "f")
    await carried_out(store, *names, each=5)

    with pytest.MonkeyPatch.context() as patch:
        take_small_steps(patch, rows=2_000)
        async with ConversationStore.open(new_store_url("sqlite"), migrate=True) as other:
            await take(other, [*told, *AFTERWARDS[afterwards]])
            assert await other.pending_tasks() == PendingTasks()
            found, wanted = await rows(store, *names), await rows(other, *names)
            for table, held_there in wanted.items():
                assert found[table] == held_there, table
            short = await everything(other, "p", "f")
    assert marked["search"] == short["search"] and marked["statistics"] == short["statistics"]
    for name in ("p", "f"):
        assert marked[name][:4] == short[name][:4]
    assert set(map(repr, marked["rebuild"].values())) == {"()"}


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("between", [ConversationRewound(), RESET, ConversationDeleted()])
async def test_a_fork_of_a_fork_reads_what_was_reset(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch, between: Body, *, long: bool
) -> None:
    if not long:
        take_small_steps(monkeypatch, rows=2_000)
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
        await carried_out(store, "p", "f", "g", each=3)
        assert [(one.id, one.text) for one in await store.messages("g")] == reads

    await send(store, outbox, "f", between)
    await same()
    await send(store, outbox, "p", RESET, Message.user("hello again", id="n1"))
    await same()
    left = await held(store, "p")
    assert "words of 8'" in left.replace('"', "'") and "words of 9" not in left
    async for rebuilt in store.rebuild(every=True):
        assert rebuilt.differences == ()
    await same()

    await send(store, outbox, "g", RESET, Message.user("hello as well", id="n2"))
    await carried_out(store, "p", "f", "g", each=3)
    assert "words" not in await held(store, "p") + await held(store, "g")
    if between != ConversationRewound():  # what a clear left is there for time travel
        assert "words" not in await held(store, "f")
    assert [one.text for one in await store.messages("p")] == ["hello again"]
    assert [one.text for one in await store.messages("g")] == ["hello as well"]


async def test_a_fork_of_what_came_after_holds_nothing_of_before(store: ConversationStore) -> None:
    outbox = await take(store, [("p", said(LONG)), ("f", [forked("p", 4)]), ("p", [RESET, *said(3, 100)])])
    await carried_out(store, "p", "f")
    await send(store, outbox, "g", forked("p", LONG + 3))
    await send(store, outbox, "f", ConversationDeleted())
    await carried_out(store, "p", "f", "g")
    left = await held(store, "p")
    assert "words of 101" in left and "words of 4" not in left
    assert [one.id for one in await store.messages("g")] == ["m100", "m101"]


async def test_lost_rows_of_it_are_made_again_and_erase_nothing_that_is_read(store: ConversationStore) -> None:
    await take(
        store, [("p", said(LONG)), ("f", [forked("p", 6)]), ("p", [RESET, Message.user("hello again", id="n1")])]
    )
    await carried_out(store, "p", "f")
    before, read = await rows(store, "p"), list(await store.messages("f"))
    await change(store, sa.delete(messages), sa.delete(conversations))
    async for _ in store.rebuild():
        pass
    await carried_out(store, "p", "f")
    assert list(await store.messages("f")) == read
    assert await rows(store, "p") == before


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
