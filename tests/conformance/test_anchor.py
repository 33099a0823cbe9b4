"""An anchor shows every change of the log up to its end, and bears with what a log may do: grow, erase, move."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import pytest
import sqlalchemy as sa

from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Message,
    MessageEdited,
    MessageRedacted,
)
from letopis.store.database.schema import conversations, events, lanes, log_heads, tasks
from letopis.store.model.codec import digest_of
from letopis.store.ops.anchors import Anchor, AnchorCheck, PartitionComparison, dump, load, make_anchor
from letopis.store.ops.move import move
from letopis.store.ops.rebuild import rebuild
from letopis.store.read.task_marks import ERASE, LEAVE, RESET
from letopis.store.rules.redaction import ARRIVED_ERASED_KEY, strip_event
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox
from tests.conformance.tables import on_sqlite
from tests.support.sayings import NewStore, change, finish_tasks, new_outbox, problems, rows_of, send
from tests.support.store_changes import damage

BLOCK = 4
NOW = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
CHATS = ("a", "b", "c")
SALT = b"0123456789abcdef"
NO_CAUSE = "event 7 of partition 0 was erased, and no event of its conversation says so"


async def filled(store: ConversationStore, *, messages: int = 3) -> Outbox:
    """Three conversations of `messages` and their beginning, each after the other in the log."""
    outbox = Outbox()
    for name in CHATS:
        said = [Message.user(f"{name} says {number}", id=f"{name}-{number}") for number in range(messages)]
        await send(store, outbox, name, ConversationStarted(owner_id=f"owner of {name}"), *said)
    return outbox


async def anchor_of(store: ConversationStore) -> Anchor:
    made = await make_anchor(store.runtime.callers_engine, now=NOW, block_events=BLOCK)
    assert load(dump(made)) == made
    return made


async def compared(store: ConversationStore, anchor: Anchor) -> tuple[list[str], list[PartitionComparison]]:
    check = AnchorCheck(anchor)
    return [problem async for problem in check.problems(store.runtime.callers_engine)], check.partitions


async def event_at(store: ConversationStore, position: int) -> dict[str, Any]:
    [row] = await rows_of(store, sa.select(events).where(events.c.position == position))
    return dict(row._mapping)


async def put(store: ConversationStore, position: int, values: Mapping[str, Any]) -> None:
    """Change an event, and let its digest fit."""
    row = {**await event_at(store, position), **values}
    digest = digest_of(row["conversation_id"], row["type"], row["schema_version"], row["data"], row["metadata"], SALT)
    await leave(store, position, **values, digest=digest, salt=SALT)


async def leave(store: ConversationStore, position: int, **values: Any) -> None:
    """Change an event, and leave its digest."""
    await change(store, sa.update(events).where(events.c.position == position).values(**values))


def removed(*positions: int) -> sa.Executable:
    return sa.delete(events).where(events.c.position.in_(positions))


async def test_an_unchanged_log_is_confirmed(store: ConversationStore) -> None:
    await filled(store)
    anchor = await anchor_of(store)
    assert [(one.position, len(one.blocks)) for one in anchor.partitions] == [(12, 3)]
    assert await compared(store, anchor) == ([], [PartitionComparison(partition=0, position=12, head=12)])
    assert replace(await anchor_of(store), made_at=NOW) == anchor


@pytest.mark.parametrize("messages", [-1, 2])  # an empty log has an anchor too; or one that ends within a block
async def test_newer_events_make_no_difference(store: ConversationStore, messages: int) -> None:
    if messages > 0:
        await filled(store, messages=messages)
    anchor = await anchor_of(store)
    position = anchor.partitions[0].position
    await new_outbox(store, "a", Message.assistant("an answer", id="late"))
    await new_outbox(store, "new", Message.user("hello", id="new"))
    expected = PartitionComparison(partition=0, position=position, head=position + 2)
    assert await compared(store, anchor) == ([], [expected])
    assert position == 3 * (messages + 1)


@on_sqlite
@pytest.mark.parametrize("rows", [1, BLOCK, 2 * BLOCK + 1])
async def test_anchor_of_any_page_size(store: ConversationStore, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(store)
    anchor, seen = await anchor_of(store), list[tuple[int, int]]()
    monkeypatch.setattr("letopis.store.ops.anchors.PAGE_EVENTS", rows)
    engine = store.runtime.callers_engine
    made = await make_anchor(engine, now=NOW, block_events=BLOCK, checked=lambda *done: seen.append(done))
    assert made == anchor
    page = BLOCK if rows <= BLOCK else 2 * BLOCK
    assert seen == [(min(done, 12), 12) for done in range(page, 12 + page, page)]


async def test_a_redaction_is_named_and_its_block_counted(store: ConversationStore) -> None:
    outbox = await filled(store)
    anchor = await anchor_of(store)
    await send(store, outbox, "b", MessageRedacted(message_id="b-1"))
    found, [partition] = await compared(store, anchor)
    assert (found, partition.redacted, partition.unchanged) == ([], 1, True)
    again = await anchor_of(store)
    assert (await compared(store, again))[1][0].redacted == 0
    assert [block.redacted for block in again.partitions[0].blocks] == [0, 1, 0, 0]


@pytest.mark.parametrize("end", [ConversationDeleted(reason="asked"), ConversationRewound(erase=True)])
async def test_erasures_are_named(store: ConversationStore, end: ConversationDeleted | ConversationRewound) -> None:
    outbox = await filled(store)
    anchor = await anchor_of(store)
    await send(store, outbox, "b", end)
    await finish_tasks(store)
    found, [partition] = await compared(store, anchor)
    assert (found, partition.redacted) == ([], 4)
    assert await problems(store) == []


async def test_a_rebuild_and_a_move_keep_what_was_anchored(store: ConversationStore, new_store_url: NewStore) -> None:
    outbox = await filled(store)
    await send(store, outbox, "c", MessageRedacted(message_id="c-0"))
    anchor = await anchor_of(store)
    assert [one async for one in rebuild(store, every=True)]
    assert (await compared(store, anchor))[0] == []
    target = new_store_url("sqlite")
    await move(store.url, target)
    async with ConversationStore.open(target, migrate=False) as moved:
        assert await compared(moved, anchor) == ([], [PartitionComparison(partition=0, position=13, head=13)])


async def test_each_partition_has_its_own(empty_database_url: str) -> None:
    async with ConversationStore.open(empty_database_url, partitions=3, migrate=True) as store:
        outbox = Outbox()
        for number in range(12):
            outbox.append(f"chat-{number}", *(Message.user(f"message {one}", id=f"{number}-{one}") for one in range(3)))
        await outbox.deliver(store)
        anchor = await anchor_of(store)
        assert sum(one.position for one in anchor.partitions) == 36
        assert all(one.position for one in anchor.partitions)
        assert [one.unchanged for one in (await compared(store, anchor))[1]] == [True] * 3
        forged = sa.update(events).where(events.c.partition == 1, events.c.position == 2)
        await change(store, forged.values(occurred_at=0))
        found, partitions = await compared(store, anchor)
        assert found == ["partition 1 of the log: events 1 to 4 are not those of the anchor"]
        assert [one.unchanged for one in partitions] == [True, False, True]
        fewer = replace(anchor, partitions=anchor.partitions[:2])
        assert "the anchor does not have partition 2 of the log" in (await compared(store, fewer))[0]
        more = replace(anchor, partitions=(*anchor.partitions, anchor.partitions[0]))
        assert "partition 3 of the log is gone" in (await compared(store, more))[0]


async def test_another_store_is_named(store: ConversationStore) -> None:
    await filled(store)
    other = replace(await anchor_of(store), store_id=uuid4())
    told = f"the anchor is of history store {other.store_id}, and this is {(await store.identity()).store_id}"
    assert await compared(store, other) == ([told], [])


# --- Controls: each of these must be found ----------------------------------------------------------------------------


def says(text: str) -> dict[str, str]:
    return {"data": f'{{"message_id":"b-1","role":"user","content":"{text}"}}'}


CONTENT, OTHERS, LAST = (
    "partition 0 of the log: events 5 to 8 have other content",
    "partition 0 of the log: events 5 to 8 are not those of the anchor",
    "partition 0 of the log: events 9 to 12 are not those of the anchor",
)
ERASED, REDACTED = ConversationRewound(erase=True), MessageRedacted(message_id="b-1")
STRIPPED = '{"message_id":"b-1","role":"user","content":""}'
REPLACED: Final = {"data": '{"owner_id":"somebody else"}'}
ARRIVED: Final = f'{{"{ARRIVED_ERASED_KEY}":true}}'
FORGERIES: Final[dict[str, tuple[Any, Callable[[ConversationStore], Awaitable[Any]], list[str] | None, list[str]]]] = {
    "content with its digest": (None, lambda it: put(it, 7, says("b says something else")), [], [CONTENT]),
    "the owner": (None, lambda it: put(it, 5, REPLACED), [], [OTHERS]),
    "the owner, after a redaction": (ERASED, lambda it: leave(it, 5, **REPLACED), [], [OTHERS]),
    "content that came back": (REDACTED, lambda it: put(it, 7, says("b says 1")), None, [CONTENT]),
    "a digest of what was redacted": (REDACTED, lambda it: put(it, 7, {"sequence": 3}), None, [CONTENT]),
    "the conversation": (None, lambda it: put(it, 8, {"conversation_id": "a", "version": 5}), None, [OTHERS]),
    **{
        column: (None, lambda it, name=column: leave(it, 12, **{name: events.c[name] + 1}), None, [LAST])
        for column in ("version", "sequence", "schema_version", "occurred_at", "recorded_at")
    },
    "an event less": (None, lambda it: change(it, removed(6)), None, [OTHERS]),
    "a block less": (None, lambda it: change(it, removed(5, 6, 7, 8)), None, [OTHERS]),
    # Their times change places too.
    "two messages": (None, lambda it: damage(it.url.render_as_string(hide_password=False), "swap", "c"), [], [LAST]),
    "an erasure by hand": (None, lambda it: leave(it, 7, data=STRIPPED, salt=None), [NO_CAUSE], []),
    "one that claims to have arrived so": (
        None,
        lambda it: leave(it, 7, data=STRIPPED, salt=None, metadata=ARRIVED),
        [],
        [OTHERS],
    ),
}
"""By what is changed: what is appended before, the change, what is found without an anchor, and what with one."""


@on_sqlite
@pytest.mark.parametrize("name", FORGERIES)
async def test_a_change_is_found(store: ConversationStore, name: str) -> None:
    before, forgery, plain, expected = FORGERIES[name]
    outbox = await filled(store)
    if before is not None:
        await send(store, outbox, "b", before)
    anchor = await anchor_of(store)
    await forgery(store)
    if plain is not None:  # what makes an anchor necessary
        assert await problems(store) == plain
    found, [partition] = await compared(store, anchor)
    assert found == expected
    assert partition.unchanged is (expected == [])


@on_sqlite
async def test_content_that_passes_for_redacted_is_found(store: ConversationStore) -> None:
    """A salt that was removed does not let content through."""
    await filled(store)
    await leave(store, 7, **says("b says something else"), salt=None)
    assert await problems(store) == ["event 7 of partition 0 is not what was written", NO_CAUSE]


async def test_content_beside_a_redaction_is_compared(store: ConversationStore) -> None:
    outbox = await filled(store)
    anchor = await anchor_of(store)
    await send(store, outbox, "b", MessageRedacted(message_id="b-0"))
    assert await problems(store) == (await compared(store, anchor))[0] == []
    await put(store, 7, says("b says something else"))
    assert (await compared(store, anchor))[0] == [CONTENT]


async def test_a_log_that_was_truncated_with_its_counters_is_found(store: ConversationStore) -> None:
    await filled(store)
    anchor = await anchor_of(store)
    of_c = [
        sa.update(table).where(table.c.conversation_id == "c").values({column: 2})
        for table, column in ((lanes, "sequence"), (conversations, "version"))
    ]
    await change(store, removed(11, 12), sa.update(log_heads).values(position=10), *of_c)
    assert await problems(store) == []
    found, [partition] = await compared(store, anchor)
    assert found == ["partition 0 of the log ends at 10, and the anchor knows it up to 12"]
    assert (partition.head, partition.unchanged) == (10, False)


@on_sqlite
@pytest.mark.parametrize("how", ["erased before its delivery", "reset", "reset, and read by a fork"])
async def test_late_edit_of_an_erased_message_has_its_cause(store: ConversationStore, how: str) -> None:
    outbox, other = Outbox(), Outbox("another")
    outbox.append("a", Message.user("secret", id="m"))
    if how == "erased before its delivery":
        outbox.lanes["a"] = [strip_event(event) for event in outbox.lanes["a"]]
    await outbox.deliver(store)
    assert await problems(store) == []  # if it was erased before, its redaction is still to come
    [*_, event] = await store.events("a")
    assert (event.metadata == {ARRIVED_ERASED_KEY: True}) is (event.digest is None) is how.startswith("erased")
    if how.endswith("fork"):
        await send(store, outbox, "f", forked("a", 1))
    if how.startswith("reset"):
        await send(store, outbox, "a", ConversationRewound(erase=True))
    await send(store, other, "a", MessageEdited(message_id="m", content="the secret again"))
    [*_, edit] = await store.events("a")
    assert edit.digest is None
    assert await problems(store) == []


TASK: Final = {"partition": 0, "conversation_id": "b", "version": 4, "after": 0, "upto": 4, "created_at": 1}
UNASKED: Final[dict[str, tuple[sa.Executable, str]]] = {
    **{
        kind: (sa.insert(tasks).values(**TASK, kind=kind), f"has a task '{kind}' that no event of it asked for")
        for kind in (LEAVE, ERASE, RESET)
    },
    "retained": (
        sa.update(conversations).where(conversations.c.conversation_id == "b").values(retained=3),
        "retains content for forks, and no event of it has erased any",
    ),
}


@on_sqlite
@pytest.mark.parametrize("name", UNASKED)
async def test_what_no_event_asked_for_is_found(store: ConversationStore, name: str) -> None:
    planted, told = UNASKED[name]
    await filled(store)
    await change(store, planted)
    assert await problems(store) == [f"conversation 'b' {told}"]
