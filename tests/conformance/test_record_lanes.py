"""What a store makes of the lanes of records: each change once, in order, whatever is sent again."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from letopis.store import ConversationDeleted, ConversationStarted, ConversationStore, Message, StoreFault
from letopis.store.database.schema import record_ledger, record_parts, record_tags, records
from letopis.store.model.records import MAX_INLINE_BYTES, RecordRange, Scope, encode_namespace
from letopis.store.read.reader import Reader
from letopis.store.read.records import RecordsView
from letopis.store.rules.apply_plan import LaneBatch
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.record_changes import clear, put
from letopis.store.testing.records import RecordConformance
from tests.support.defects import RECORDS_TWICE, planted
from tests.support.sayings import new_outbox, rows_of, send, send_encoded

SCOPE, NOBODY = Scope.conversation("chat-1"), UUID(int=0)


class TestRecords(RecordConformance):
    """The published contract."""


async def test_the_contract_notices_a_store_that_does_not_look_at_its_ledger(store: ConversationStore) -> None:
    with planted(RECORDS_TWICE), pytest.raises((AssertionError, StoreFault)):
        await RecordConformance().test_a_delivery_sent_again_changes_nothing(store)


async def values(store: ConversationStore) -> dict[str, bytes]:
    return {one.place[1].decode(): one.body or b"" for one in (await page(store)).records}


async def page(store: ConversationStore, origin_id: UUID = NOBODY) -> RecordsView:
    return await store.runtime.snapshot(
        lambda lineage, connection: lineage.reader.records.page(
            connection, SCOPE, RecordRange(), limit=100, origin_id=origin_id
        )
    )


async def count(store: ConversationStore, table: sa.Table) -> int:
    [(found,)] = await rows_of(store, sa.select(sa.func.count()).select_from(table))
    return int(found)


async def test_large_values_are_stored_in_parts_and_leave_none_behind(store: ConversationStore) -> None:
    outbox, lane = Outbox(), SCOPE.name
    large = bytes(range(256)) * 6_000  # 1.5 MB
    await send_encoded(store, outbox, lane, put(lane, "a", large), put(lane, "a", large + b"x"))
    assert (await values(store), await count(store, record_parts)) == ({"a": large + b"x"}, 3)
    largest = bytes(MAX_INLINE_BYTES)  # that needs no parts
    await send_encoded(store, outbox, lane, put(lane, "a", largest), put(lane, "b", b"small"))
    assert (await values(store), await count(store, record_parts)) == ({"a": largest, "b": b"small"}, 0)


@pytest.mark.parametrize("held", [("conversation", "chat-1"), ("owner", "42")])
async def test_hold_spares_records_that_an_erasure_would_take(store: ConversationStore, held: tuple[Any, str]) -> None:
    outbox, lane = await new_outbox(store, "chat-1", ConversationStarted(owner_id="42")), SCOPE.name
    await send_encoded(store, outbox, lane, put(lane, "a", b"1"))
    await store.erasures.hold(*held, reason="a court asked")
    await send_encoded(store, outbox, lane, clear(lane, erase=True), put(lane, "b", b"2"))
    assert await values(store) == {"a": b"1", "b": b"2"}


async def test_records_erased_with_their_conversation_leave_no_row(store: ConversationStore) -> None:
    outbox, lane = await new_outbox(store, "chat-1", Message.user("hello")), SCOPE.name
    await send_encoded(store, outbox, lane, put(lane, "a", b"x" * 100_000, tags={"user": "u"}))
    tables = (records, record_parts, record_tags)
    assert [await count(store, table) for table in tables] == [1, 1, 1]
    await send(store, outbox, "chat-1", ConversationDeleted())
    await send_encoded(store, Outbox(), lane, put(lane, "late", b"1", tags={"user": "u"}))
    assert [await count(store, table) for table in tables] == [0, 0, 0]


async def test_more_records_than_a_page_are_cleared_at_once(store: ConversationStore) -> None:
    outbox, lane = Outbox(), SCOPE.name
    for label in ("a", "b", "c"):
        namespace = encode_namespace((label,))
        outbox.append_encoded(lane, [put(lane, f"{number}", b"1", namespace=namespace) for number in range(300)])
    await send_encoded(store, outbox, lane, put(lane, "kept", b"1"))
    await send_encoded(store, outbox, lane, clear(lane, encode_namespace(("b",))))
    assert await count(store, records) == 601
    await send_encoded(store, outbox, lane, clear(lane), put(lane, "anew", b"1"))
    assert (await values(store), await count(store, records)) == ({"anew": b"1"}, 1)
    assert (await page(store, outbox.origin.origin_id)).heads == {lane: 904}


async def test_a_lane_is_trimmed_with_a_delivery_and_without_one(store: ConversationStore) -> None:
    outbox, lane = Outbox(), SCOPE.name
    await send_encoded(store, outbox, lane, *(put(lane, f"{number}", b"1") for number in range(3)))
    outbox.append_encoded(lane, [put(lane, "3", b"1")])
    await store.apply(outbox.origin, [replace(outbox.batch(lane, 4), pruned=2)])
    outbox.delivered[lane] = 4
    assert await count(store, record_ledger) == 2
    pruned = [LaneBatch(conversation_id=lane, deliveries=(), pruned=3)]
    assert (await store.runtime.read(Reader.lanes, outbox.origin.origin_id, [lane]))[lane].floor == 2
    result = await store.apply(outbox.origin, pruned)
    assert [(one.head, one.inserted, one.duplicates) for one in result.applied] == [(4, 0, 0)]
    assert await count(store, record_ledger) == 1
    assert (await store.runtime.read(Reader.lanes, outbox.origin.origin_id, [lane]))[lane].floor == 3
    # What an outbox says of a lane that is not known, or beyond what is applied, trims nothing.
    await store.apply(Outbox().origin, pruned)
    await store.apply(outbox.origin, [LaneBatch(conversation_id=lane, deliveries=(), pruned=9)])
    assert await count(store, record_ledger) == 0
    assert (await outbox.deliver(store)).applied == ()
