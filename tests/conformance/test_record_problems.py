"""`db verify` finds what was changed in records by hand, and nothing where all that happened was delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import ConversationDeleted, ConversationStore, Message
from letopis.store.database.schema import lanes, record_ledger, record_parts, record_tags, records
from letopis.store.maintenance.integrity import find_problems
from letopis.store.model.identifiers import uuid7
from letopis.store.model.records import MAX_INLINE_BYTES, PART_BYTES, Scope, encode_namespace
from letopis.store.rules.apply_plan import LaneBatch
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import CP, clear, delete, hollow, put

LANE = Scope.conversation("chat-1").name
SPACE = Scope.space("app")
LARGE = b"x" * (PART_BYTES + MAX_INLINE_BYTES)

Tampering = Callable[[AsyncConnection], Awaitable[Any]]
NOT_PUT = "records of conversation chat-1: one is not what was put"
MISSING = "records of conversation chat-1: 3 were put and not removed, 2 are there"
NOT_THE_TAGS = "the rows of letopis_record_tags are not the tags of the records"


async def problems(store: ConversationStore) -> list[str]:
    return [problem async for problem in find_problems(store._runtime.callers_engine)]


async def filled(store: ConversationStore) -> Outbox:
    """Three records of a conversation: a small one with a tag, another of its size, and one in parts."""
    outbox = Outbox()
    outbox.append("chat-1", Message.user("hello"))
    outbox.append_encoded(
        LANE, [put(LANE, "a", b"one", tags={"user": "u", "run": 1}), put(LANE, "b", b"two"), put(LANE, "large", LARGE)]
    )
    await outbox.deliver(store)
    return outbox


def change(key: bytes, **values: Any) -> Tampering:
    return lambda connection: connection.execute(sa.update(records).where(records.c.record_key == key).values(values))


async def swap(connection: AsyncConnection) -> None:
    await change(b"a", body=b"two")(connection)
    await change(b"b", body=b"one")(connection)


async def zero_a_part(connection: AsyncConnection) -> None:
    last = sa.update(record_parts).where(record_parts.c.part == 1)
    await connection.execute(last.values(body=bytes(MAX_INLINE_BYTES)))


async def change_a_row_of_tags(connection: AsyncConnection) -> None:
    await connection.execute(sa.update(record_tags).where(record_tags.c.name == b"user").values(value=b"s:other"))


async def remove(connection: AsyncConnection) -> None:
    await connection.execute(sa.delete(records).where(records.c.record_key == b"b"))


async def empty_the_ledger(connection: AsyncConnection) -> None:
    await connection.execute(sa.delete(record_ledger))


async def remove_all(connection: AsyncConnection) -> None:
    for table in (records, record_parts, record_tags):
        await connection.execute(sa.delete(table))


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        pytest.param(change(b"a", body=b"won"), [NOT_PUT], id="a value"),
        pytest.param(swap, [NOT_PUT, NOT_PUT], id="two values swapped"),
        pytest.param(change(b"a", body=bytes(3)), [NOT_PUT], id="a value zeroed"),
        pytest.param(zero_a_part, [NOT_PUT], id="a part zeroed"),
        pytest.param(change(b"b", tags='{"user":"u"}'), [NOT_PUT, NOT_THE_TAGS], id="a tag"),
        pytest.param(change_a_row_of_tags, [NOT_THE_TAGS], id="a row of tags"),
        pytest.param(change(b"a", revision=uuid7()), [NOT_PUT], id="a revision"),
        pytest.param(change(b"b", record_key=b"c"), [NOT_PUT], id="a key"),
        pytest.param(remove, [MISSING], id="a record removed"),
        pytest.param(remove_all, [MISSING.replace("2 are", "0 are")], id="all records removed"),
        pytest.param(
            empty_the_ledger,
            ["records of conversation chat-1: the counter of an outbox does not match its events"],
            id="the ledger emptied",
        ),
    ],
)
async def test_a_change_by_hand_is_found(store: ConversationStore, tampering: Tampering, found: list[str]) -> None:
    await filled(store)
    assert await problems(store) == []
    async with store._runtime.callers_engine.begin() as connection:
        await tampering(connection)

    assert await problems(store) == found


async def test_what_was_delivered_is_no_problem(store: ConversationStore) -> None:
    one = await filled(store)
    other = Outbox()
    # Replaced by another outbox, in another size, deleted, hollowed, put again, and refused.
    other.append_encoded(LANE, [put(LANE, "a", LARGE), delete(LANE, "b"), put(LANE, "c", b"1", expected="absent")])
    await other.deliver(store)
    hollowed = hollow(put(LANE, "d", b"1"))
    one.append_encoded(LANE, [hollowed, put(LANE, "d", b"2", tags={"flag": True}), delete(LANE, "none")])
    one.append_encoded(LANE, [put(LANE, "d", b"3", expected="absent"), put(LANE, "large", b"small now")])
    await one.deliver(store)
    assert await problems(store) == []

    # Sent again, trimmed, cleared by a prefix and as a whole, one lane of a space and another.
    await store.apply(one.origin, [one.batch(LANE)])
    await store.apply(one.origin, [LaneBatch(conversation_id=LANE, deliveries=(), pruned=4)])
    spaces = [encode_namespace((label,)) for label in "abcdefgh"]
    for number, namespace in enumerate(spaces):
        lane = SPACE.lane(namespace)
        outbox = (one, other)[number % 2]
        outbox.append_encoded(
            lane, [put(lane, "k", b"1", namespace=namespace), put(lane, "l", b"1", namespace=namespace)]
        )
    await one.deliver(store)
    await other.deliver(store)
    assert await problems(store) == []
    other.append_encoded(SPACE.lane(spaces[0]), [clear(SPACE.lane(spaces[0]), spaces[0])])
    other.append_encoded(LANE, [clear(LANE, CP), put(LANE, "after", b"1"), clear(LANE, erase=True)])
    other.append_encoded(LANE, [put(LANE, "last", LARGE, tags={"none": None})])
    await other.deliver(store)
    assert await problems(store) == []


async def test_deliveries_beside_the_check_are_no_problem(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = await filled(store)
    monkeypatch.setattr("letopis.store.maintenance.integrity.PAGE_ROWS", 2)
    writing, found = True, list[str]()

    async def check() -> None:
        while writing:
            found.extend(await problems(store))

    checking = asyncio.create_task(check())
    for number in range(12):
        outbox.append("chat-1", Message.user("more", id=f"m-{number}"))
        outbox.append_encoded(LANE, [put(LANE, f"{number}", b"1", tags={"n": number}), delete(LANE, f"{number - 3}")])
        await outbox.deliver(store)
    writing = False
    await checking
    assert found == []


async def test_records_that_two_outboxes_remove_at_once_are_counted_once(store: ConversationStore) -> None:
    one, other, lane = Outbox(), Outbox(), Scope.owner("ann").name
    for number in range(8):
        one.append_encoded(lane, [put(lane, f"{number}.{key}", b"1") for key in range(9)])
        await one.deliver(store)
        for outbox in (one, other):
            outbox.append_encoded(lane, [clear(lane)])
        await asyncio.gather(one.deliver(store), other.deliver(store))
    assert await problems(store) == []


async def test_a_deletion_of_the_conversation_by_an_outbox_without_records_is_no_problem(
    store: ConversationStore,
) -> None:
    one, other = await filled(store), Outbox()
    other.append("chat-1", ConversationDeleted(reason="asked"))
    await other.deliver(store)
    assert await problems(store) == []
    one.append_encoded(LANE, [put(LANE, "late", b"1")])
    await one.deliver(store)
    await store.apply(one.origin, [LaneBatch(conversation_id=LANE, deliveries=(), pruned=4)])

    assert await problems(store) == []
    async with store._runtime.callers_engine.connect() as connection:
        assert sorted((await connection.execute(sa.select(lanes.c.records))).scalars()) == [-3, 0, 3]
