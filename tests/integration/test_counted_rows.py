"""Every statement of an apply is counted: no trigger can swallow rows silently."""

from uuid import UUID

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationDeleted, ConversationStore, Message
from letopis.store.database.dialects import check_row_count, dialect_for
from letopis.store.database.engines import create_store_engine
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.schema import lanes, metadata
from tests.campaigns.invariants import check
from tests.support.relays import drained, lane, relay_on, running, say, until
from tests.support.sayings import NewStore, raises_fault
from tests.support.store_changes import let_through, run_there, swallow
from tests.support.verdicts import assert_whole

_ID = UUID(int=7)
INSERTED = ("origins", "conversations", "messages", "lanes", "events", "owners")
OVERWRITTEN = ("origins", "conversations", "messages", "lanes", "log_heads", "owners", "events")


@pytest.mark.parametrize("table", INSERTED)
@pytest.mark.parametrize("count", [3, 120], ids=["few", "many"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_swallowed_inserts(
    outbox: OutboxFile, new_store_url: NewStore, kind: str, table: str, count: int
) -> None:
    """By a trigger: on PostgreSQL one that returns NULL, also for COPY; on SQLite RAISE(IGNORE)."""
    url = new_store_url(kind)
    async with ConversationStore.open(url, migrate=True) as store:
        await run_there(url, *swallow(kind, table, "INSERT"))
        await say(outbox, "chat", count, owner="ann")
        relay = relay_on(outbox, store)
        async with running(relay):
            await until(lambda: relay.breaker.outage)
            assert relay.breaker.reason == "misconfigured rows"
            assert f"letopis_{table} took" in str(relay.breaker.outage)
            assert (await lane(outbox, "chat")).delivered == 0
            await run_there(url, *let_through(kind, table))
            await drained(outbox)
    await assert_whole(outbox, url, count + 1)


@pytest.mark.parametrize("table", OVERWRITTEN)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_updates_that_are_swallowed_are_noticed(
    outbox: OutboxFile, new_store_url: NewStore, kind: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.store.write.transaction._LAST_SEEN_INTERVAL_US", -1)
    url = new_store_url(kind)
    async with History(outbox.path.with_name("h.outbox.db"), store=url, relay=False) as history:
        first = await history.append("chat", Message.user("one"), owner="ann")
        second = await history.append("chat", Message.user("two"), owner="ann")
        async with ConversationStore.open(url, migrate=True) as store:
            relay = relay_on(history.outbox, store)
            await relay.drain()
            await run_there(url, *swallow(kind, table, "UPDATE"))
            # An edit of a message, a redaction of one, another conversation of the owner: each table is written to.
            await history.chat("chat").edit(first.message_id or "", "one, edited")
            await history.chat("chat").redact(second.message_id or "")
            await history.append("another", Message.user("hi"), owner="ann")
            await relay.drain()
            assert relay.breaker.reason == "misconfigured rows"
            assert f"letopis_{table} took" in str(relay.breaker.outage)
            await run_there(url, *let_through(kind, table))
            await until(lambda: not relay.breaker.remaining())
            await relay.drain()
    verdict = await check([outbox.path.with_name("h.outbox.db")], url, drained=True)

    assert verdict.ok, verdict


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_step_of_a_long_deletion_that_is_swallowed_is_noticed(
    outbox: OutboxFile, new_store_url: NewStore, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.store.write.loading.MAX_ROWS_PER_TRANSACTION", 3)
    url = new_store_url(kind)
    async with ConversationStore.open(url, migrate=True) as store:
        await say(outbox, "chat", 6)
        await relay_on(outbox, store).drain()
        await run_there(url, *swallow(kind, "tasks", "UPDATE"))
        await outbox.append(prepare("chat", [ConversationDeleted()]))
        await relay_on(outbox, store).drain()
        with pytest.raises(StoreFault, match="letopis_tasks took 0 of 1 rows"):
            await store.run_pending_tasks()
        assert (await store.pending_tasks()).tasks == 3  # the reset of its messages, their leaving, and the content
        await run_there(url, *let_through(kind, "tasks"))
        while await store.run_pending_tasks():
            pass
        assert (await store.events("chat"))[0].digest is None


async def test_what_is_not_there_or_unchanged_is_told_apart(store_url: str) -> None:
    """Rows overwritten with what they hold count as written, also on MariaDB; rows that are not there do not."""
    engine = create_store_engine(store_url)
    dialect = dialect_for(engine.dialect.name)
    one, two, three = [(0, name, _ID, 1, 0, 0, 0) for name in ("a", "b", "c")]
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all, tables=[lanes])
            await dialect.insert(connection, lanes, [one, two])
            await dialect.overwrite(connection, lanes, [one, two])
            await dialect.overwrite(connection, lanes, [one, (0, "b", _ID, 7, 0, 0, 0)])
            if engine.dialect.name not in ("mysql", "mariadb"):  # there it would be inserted
                with pytest.raises(StoreFault, match="letopis_lanes took 1 of 2 rows"):
                    await dialect.overwrite(connection, lanes, [one, three])
            assert (await connection.execute(sa.select(sa.func.max(lanes.c.sequence)))).scalar() == 7
    finally:
        await engine.dispose()


def test_a_wrong_count_is_the_fault_of_the_store() -> None:
    """MariaDB counts a row that changed twice."""
    for taken in (0, 2, 4, 7):
        with raises_fault(FaultClass.MISCONFIGURED, "rows", match=f"letopis_lanes took {taken} of 3 rows: .*remove it"):
            check_row_count(lanes, taken, 3)
    for taken in (3, 5, 6):
        check_row_count(lanes, taken, 3, most=6)
