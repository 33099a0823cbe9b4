"""`db verify` finds what was changed by hand, and nothing where all that happened was delivered."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.store import ConversationDeleted, ConversationStore, Message
from letopis.store.database.schema import events, lanes, owners, record_ledger, record_parts, record_tags, records
from letopis.store.model.identifiers import uuid7
from letopis.store.model.records import MAX_INLINE_BYTES, PART_BYTES, Scope
from letopis.store.rules.apply_plan import LaneBatch
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import clear, delete, put
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import deliver
from tests.support.sayings import Bots, change, new_outbox, problems, rows_of, send, send_encoded

LANE = Scope.conversation("chat-1").name
SPACE = Scope.space("app")
LARGE = b"x" * (PART_BYTES + MAX_INLINE_BYTES)

NOT_PUT = "records of conversation chat-1: one is not what was put"
MISSING = "records of conversation chat-1: 3 were put and not removed, 2 are there"
ALL_MISSING = MISSING.replace("2 are", "0 are")
NOT_COUNTED = "records of conversation chat-1: the counter of an outbox does not match its events"
NOT_THE_TAGS = "the rows of letopis_record_tags are not the tags of the records"


async def three_records(store: ConversationStore) -> Outbox:
    """Three records of a conversation: a small one with a tag, another of its size, and one in parts."""
    outbox = Outbox()
    outbox.append("chat-1", Message.user("hello"))
    outbox.append_encoded(
        LANE, [put(LANE, "a", b"one", tags={"user": "u", "run": 1}), put(LANE, "b", b"two"), put(LANE, "large", LARGE)]
    )
    await outbox.deliver(store)
    return outbox


OF_A_PART = sa.update(record_parts).where(record_parts.c.part == 1)
OF_A_TAG = sa.update(record_tags).where(record_tags.c.name == b"user")


def changed(key: bytes, **values: Any) -> sa.Executable:
    return sa.update(records).where(records.c.record_key == key).values(values)


CHANGES: dict[str, tuple[list[sa.Executable], list[str]]] = {
    "a value": ([changed(b"a", body=b"won")], [NOT_PUT]),
    "two values swapped": ([changed(b"a", body=b"two"), changed(b"b", body=b"one")], [NOT_PUT] * 2),
    "a part zeroed": ([OF_A_PART.values(body=bytes(MAX_INLINE_BYTES))], [NOT_PUT]),
    "a tag": ([changed(b"b", tags='{"user":"u"}')], [NOT_PUT, NOT_THE_TAGS]),
    "a row of tags": ([OF_A_TAG.values(value=b"s:other")], [NOT_THE_TAGS]),
    "a revision": ([changed(b"a", revision=uuid7())], [NOT_PUT]),
    "a record removed": ([sa.delete(records).where(records.c.record_key == b"b")], [MISSING]),
    "all records removed": (list(map(sa.delete, (records, record_parts, record_tags))), [ALL_MISSING]),
    "the ledger emptied": ([sa.delete(record_ledger)], [NOT_COUNTED]),
}


@on_sqlite
@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_by_hand_is_found(store: ConversationStore, name: str) -> None:
    statements, found = CHANGES[name]
    await three_records(store)
    assert await problems(store) == []
    await change(store, *statements)
    assert await problems(store) == found


async def test_deliveries_beside_it_are_no_problem(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = await three_records(store)
    monkeypatch.setattr("letopis.store.ops.verify.PAGE_ROWS", 2)
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
        await send_encoded(store, one, lane, *(put(lane, f"{number}.{key}", b"1") for key in range(9)))
        for outbox in (one, other):
            outbox.append_encoded(lane, [clear(lane)])
        await asyncio.gather(one.deliver(store), other.deliver(store))
    assert await problems(store) == []


async def test_deletion_by_an_outbox_without_records_is_no_problem(store: ConversationStore) -> None:
    one, other = await three_records(store), Outbox()
    await send(store, other, "chat-1", ConversationDeleted(reason="asked"))
    assert await problems(store) == []
    await send_encoded(store, one, LANE, put(LANE, "late", b"1"))
    await store.apply(one.origin, [LaneBatch(conversation_id=LANE, deliveries=(), pruned=4)])
    assert await problems(store) == []
    assert sorted(await rows_of(store, sa.select(lanes.c.records))) == [(-3,), (0,), (3,)]


@pytest.fixture
async def owned(bots: Bots) -> Bots:
    """Two owners with two conversations each; of ann's the first is active, bo's active one was archived."""
    one, other = bots
    for owner in ("ann", "bo"):
        for number in (1, 2):
            await one.start(owner, conversation_id=f"{owner}-{number}")
    await deliver(one)
    await other.chat("ann-1").activate(owner="ann")
    await deliver(other)
    await one.chat("bo-2").archive()
    await deliver(one)
    return bots


@on_sqlite
@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"active_conversation_id": "ann-2"}, id="another conversation"),
        pytest.param({"active_conversation_id": None, "active_partition": None}, id="none"),
        pytest.param({"activated_by": uuid7()}, id="another outbox"),
        pytest.param({"activated_order": 900}, id="another order"),
        pytest.param({"activated_by": None, "activated_order": None}, id="no activation"),
    ],
)
@pytest.mark.usefixtures("owned")
async def test_an_active_conversation_that_was_changed_is_found(store: ConversationStore, values: Any) -> None:
    assert await problems(store) == []
    await change(store, sa.update(owners).where(owners.c.owner_id == "ann").values(values))
    assert await problems(store) == ["the active conversation of owner 'ann' is not the one that was activated last"]


async def twice_said(store: ConversationStore) -> Outbox:
    """Two outboxes that have the first and the third message in common; return the second one."""
    one, two = Outbox("one"), Outbox("two")
    await send(store, one, "chat", *(Message.user("the same", id=f"m-{number}") for number in (1, 3)))
    for number in (1, 2, 3):
        await send(store, two, "chat", Message.user("the same", id=f"m-{number}"))
        assert await problems(store) == []
    return two


async def test_a_message_of_two_outboxes_is_no_problem(store: ConversationStore) -> None:
    two = await twice_said(store)
    counted = sa.select(lanes.c.duplicates).where(lanes.c.origin_id == two.origin.origin_id)
    assert await rows_of(store, counted) == [(2,)]
    await send(store, two, "chat", Message.user("alone", id="m-4"))
    await store.apply(two.origin, [two.batch("chat")])  # all of it once more, as after a lost acknowledgement
    assert await problems(store) == []
    assert await rows_of(store, counted) == [(2,)]


@pytest.mark.parametrize("lost", ["m-2", "m-1"])
async def test_a_lost_event_of_such_a_lane_is_found(store: ConversationStore, lost: str) -> None:
    await twice_said(store)
    await change(store, sa.delete(events).where(events.c.data.contains(f'"{lost}"')))
    assert any("the counter of an outbox does not match" in problem for problem in await problems(store))


async def test_a_gap_without_a_duplicate_is_found(store: ConversationStore) -> None:
    await new_outbox(store, "chat", *(Message.user("hello") for _ in range(3)))
    await change(store, sa.delete(events).where(events.c.sequence == 2))
    found = await problems(store)
    assert "conversation 'chat', version 3: sequence 3 of its outbox follows 1" in found
    assert "conversation 'chat': the counter of an outbox does not match its lane" in found
