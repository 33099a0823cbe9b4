"""Every event takes effect once, in its lane's order, whatever is delivered, and how often."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from letopis.store import (
    ConversationStore,
    InvalidInput,
    Message,
)
from letopis.store.database.schema import events as events_table
from letopis.store.model.codec import digest_of
from letopis.store.testing.content import ContentConformance
from letopis.store.testing.delivery import ONLY, DeliveryConformance, said, texts
from letopis.store.testing.outbox import Outbox, assert_no_gaps


class TestDelivery(DeliveryConformance):
    """The published contract."""


class TestContent(ContentConformance):
    """The published contract."""


@pytest.mark.parametrize("count", [1, 80])
async def test_every_event_is_stored_byte_for_byte(store: ConversationStore, count: int) -> None:
    outbox = Outbox()
    content = "".join(map(chr, range(1, 0x300))) + "\u2028\ufeff\ufffe\U0001f600\U0010ffff e\u0301 é \\N \\. \t"
    metadata = {"z": 1, "a": {"ключ": [-(2**63), 2**63 - 1, 1e300, None, "\\", "\r\n"]}}
    encoded = outbox.append(ONLY, *(Message.user(content, metadata=metadata) for _ in range(count)))
    await outbox.deliver(store)

    async with store._runtime.callers_engine.connect() as connection:
        rows = (await connection.execute(sa.select(events_table).order_by(events_table.c.version))).all()

    assert [(row.event_id, row.data, row.metadata, row.digest) for row in rows] == [
        (event.event_id, event.data, event.metadata, event.digest) for event in encoded
    ]
    assert all(
        digest_of(ONLY, row.type, row.schema_version, row.data, row.metadata, row.salt) == row.digest for row in rows
    )
    assert {message.text for message in await store.messages(ONLY)} == {content}


async def test_the_store_says_when_it_took_an_event(store_url: str) -> None:
    moment = datetime(2030, 5, 6, 7, 8, 9, 123_456, tzinfo=UTC)
    outbox = Outbox()
    outbox.append(ONLY, *said(1))
    async with ConversationStore.open(store_url, migrate=True, now=lambda: moment) as store:
        await outbox.deliver(store)
        [event] = await store.events(ONLY)

    assert event.recorded_at == moment
    assert event.occurred_at != moment


async def test_partitions_each_count_for_themselves(empty_database_url: str) -> None:
    outbox = Outbox()
    for number in range(40):
        outbox.append(f"chat-{number}", *said(2))
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=4) as store:
        await outbox.deliver(store)
        await assert_no_gaps(store)
        heads = [await store.head(partition) for partition in range(4)]
        assert sum(heads) == 80 and min(heads) > 0
        assert await texts(store, "chat-17") == ["message 1", "message 2"]
        assert len(await store.conversations(limit=100)) == 40
        with pytest.raises(InvalidInput, match="partition"):
            await store.head(4)
    async with ConversationStore.open(empty_database_url) as again:
        assert await again.partitions() == 4
        assert (await again.apply(outbox.origin, outbox.pending() or [outbox.batch("chat-3")])).applied[
            0
        ].duplicates == 2
