"""Every event takes effect once, in its lane's order, whatever is delivered, and how often."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import ConversationStore, FaultClass, Message, Projection, RecordedEvent, StoreFault
from letopis.store.database.schema import events as events_table
from letopis.store.database.schema import log_heads
from letopis.store.model.codec import digest_of
from letopis.store.testing.content import ContentConformance
from letopis.store.testing.delivery import ONLY, DeliveryConformance, said
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from tests.support.bench import ask
from tests.support.sayings import change, raises_fault, rows_of, send
from tests.support.store_changes import run_there


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
    rows = await rows_of(store, sa.select(events_table).order_by(events_table.c.version))
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
    assert event.recorded_at == moment != event.occurred_at


class Asking(Projection):
    """Notes in the transaction of each apply whether its commit will wait for the disk."""

    name = "custom.asking"
    version = 1

    def __init__(self) -> None:
        self.answers: list[str] = []

    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        found = await connection.exec_driver_sql("SHOW synchronous_commit")
        self.answers.append(str(found.scalar_one()))


async def test_postgresql_waits_for_the_disk_whatever_its_default_is(fresh_postgresql_url: str) -> None:
    url, asking, outbox = fresh_postgresql_url, Asking(), Outbox()
    await run_there(url, f'ALTER DATABASE "{make_url(url).database}" SET synchronous_commit = off')
    async with ConversationStore.open(url, migrate=True, projections=[asking]) as store:
        for count in (3, 3, 120):  # of an outbox that is new and of one that is known; as arrays, and copied
            await send(store, outbox, ONLY, *said(count))
        assert await ask(url, "SHOW synchronous_commit") == "off"  # or this proves nothing
    assert asking.answers == ["on", "on", "on"]


async def test_a_counter_that_is_gone_stops_everything(empty_database_url: str) -> None:
    outbox, partitions, gone = Outbox(), 3, 2
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=partitions) as store:
        for number in range(20):
            outbox.append(f"chat-{number}", *said(1))
        await outbox.deliver(store)
        before = [await store.head(partition) for partition in range(partitions)]
        await change(store, sa.delete(log_heads).where(log_heads.c.partition == gone))
        for number in range(20):
            outbox.append(f"chat-{number}", *said(1))
        with raises_fault(FaultClass.MISCONFIGURED, "partitions"):
            await outbox.deliver(store)
        heads = sa.select(log_heads.c.position).order_by(log_heads.c.partition)
        assert await rows_of(store, heads) == [(head,) for head in before[:-1]]
        await change(store, sa.insert(log_heads).values(partition=gone, position=before[-1]))
        await outbox.deliver(store)
        await assert_no_gaps(store)
        assert sum([await store.head(partition) for partition in range(partitions)]) == 2 * 20


async def test_outboxes_that_deliver_at_once_share_the_counters(empty_database_url: str) -> None:
    outboxes, partitions = [Outbox() for _ in range(4)], 3
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=partitions) as store:
        for _ in range(3):
            for number, outbox in enumerate(outboxes):
                for chat in range(12):
                    outbox.append(f"chat-{number}-{chat}", *said(2))
            await asyncio.gather(*(outbox.deliver(store) for outbox in outboxes))
        await assert_no_gaps(store)
        assert sum([await store.head(partition) for partition in range(partitions)]) == 4 * 3 * 12 * 2


# --- What an operator's own trigger says of an event that it refuses, on an SQLite store ---


BY_ROW = pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 47), reason="RAISE takes an expression since SQLite 3.47")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("'no such luck'", "no such luck"),
        ("'it''s not to be'", "it's not to be"),
        pytest.param("'refused: ' || NEW.data", None, marks=BY_ROW),
    ],
)
async def test_the_words_of_a_trigger_are_told_and_never_a_value(tmp_path: Path, words: str, told: str | None) -> None:
    path = tmp_path / "history.db"
    async with ConversationStore.open(f"sqlite:///{path}") as store:
        await store.prepare()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "CREATE TRIGGER mine BEFORE INSERT ON letopis_events WHEN NEW.data LIKE '%private%'"
                f" BEGIN SELECT RAISE(ABORT, {words}); END"
            )
        outbox = Outbox()
        outbox.append("c", Message.user("private"))
        with pytest.raises(StoreFault) as refused:
            await outbox.deliver(store)
        outbox.append("d", Message.user("the connection is as it was"))
        await store.apply(outbox.origin, [outbox.batch("d")])

    assert (refused.value.fault_class, refused.value.code) == (FaultClass.POISON, "SQLITE_CONSTRAINT_TRIGGER")
    assert ("trigger: " in refused.value.reason) == (told is not None)
    assert told is None or f"(trigger: {told})" in refused.value.reason
    assert "private" not in str(refused.value)
