"""A store whose tables the database divides: what is written and read touches the partitions that it concerns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import ConversationActivated, ConversationStarted, ConversationStore
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import metadata, owners
from letopis.store.model.identifiers import partition_of
from letopis.store.testing.outbox import Outbox
from tests.support.native_partitions import DIVIDED, PARTITIONS, make_divided_store
from tests.support.sayings import NewStore
from tests.support.statements import OWNER, faults_of, hot_statements, statements_of

DIVIDED_TABLES = {
    "postgresql": "SELECT relname FROM pg_class WHERE relkind = 'p'",
    "mariadb": "SELECT table_name FROM information_schema.tables WHERE create_options LIKE '%partitioned%'"
    " AND table_schema = database()",
}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_store_engine(url)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_every_table_with_partitions_can_be_divided(kind: str, new_store_url: NewStore) -> None:
    url = new_store_url(kind)
    await make_divided_store(url)
    async with connected(url) as connection:
        divided = await connection.execute(sa.text(DIVIDED_TABLES[kind]))

        assert sorted(divided.scalars()) == sorted(DIVIDED)
        assert "letopis_search" in DIVIDED


def test_every_unique_key_of_a_table_with_partitions_holds_them() -> None:
    for table in metadata.tables.values():
        if "partition" in table.columns:
            for key in (table.primary_key, *(index for index in table.indexes if index.unique)):
                assert "partition" in key.columns, f"{table.name}: {key.name}"


def parts_of(plan: object) -> set[str]:
    """The parts of divided tables that a plan has read or locked."""
    found: set[str] = set()
    match plan:
        case dict():
            found = set().union(*map(parts_of, plan.values()))
            if "Relation Name" in plan and plan.get("Actual Loops", 1):
                found.add(plan["Relation Name"])
        case list():
            found = set().union(*map(parts_of, plan))
    return found


async def test_a_hot_statement_touches_one_partition_of_a_table(fresh_postgresql_url: str) -> None:
    await make_divided_store(fresh_postgresql_url)
    async with ConversationStore.open(fresh_postgresql_url) as store:
        statements = {one.text: one for one in await hot_statements(store)}
    seen: set[str] = set()
    async with connected(fresh_postgresql_url) as connection:
        for statement in statements.values():
            if not statement.text.startswith(("SELECT", "UPDATE", "INSERT")):
                continue
            planned = (
                "EXPLAIN (FORMAT JSON, ANALYZE) " if statement.text.startswith("SELECT") else "EXPLAIN (FORMAT JSON) "
            )
            found = await connection.exec_driver_sql(planned + statement.text, statement.parameters)
            parts = {part for part in parts_of(found.scalar_one()) if part[-1].isdigit()}
            tables = [part.rstrip("0123456789").rstrip("_") for part in parts]
            assert len(tables) == len(set(tables)), (statement.text, parts)
            seen.update(tables)
            await connection.rollback()

    assert {"letopis_owners", "letopis_conversations", "letopis_events", "letopis_messages", "letopis_lanes"} <= seen


async def test_a_scatter_is_seen(fresh_postgresql_url: str) -> None:
    """The control: the list of an owner reads each partition."""
    await make_divided_store(fresh_postgresql_url)
    async with ConversationStore.open(fresh_postgresql_url) as store:
        with statements_of(store) as statements:
            await store.conversations(owner=OWNER)
    async with connected(fresh_postgresql_url) as connection:
        (statement,) = [one for one in statements if "letopis_conversations" in one.text]
        found = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement.text}", statement.parameters)

        assert len(parts_of(found.scalar_one())) == PARTITIONS
        assert faults_of(statement) == ["names no partition of letopis_conversations"]


async def test_a_row_of_an_owner_names_two_partitions(empty_database_url: str) -> None:
    outbox = Outbox()
    for number in range(40):
        outbox.append(f"chat-{number}", ConversationStarted(owner_id=f"owner-{number % 4}"), ConversationActivated())
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=PARTITIONS) as store:
        await outbox.deliver(store)
        active = await store.active("owner-3")
        assert active is not None and active.active and active.conversation_id == "chat-39"
        assert [one.active for one in await store.conversations(owner="owner-3")] == [True, *[False] * 9]
        assert {one.conversation_id for one in await store.conversations() if one.active} == {
            f"chat-{number}" for number in range(36, 40)
        }
    async with connected(empty_database_url) as connection:
        rows = (await connection.execute(sa.select(owners))).all()

    assert len(rows) == 4
    for row in rows:
        assert row.partition == partition_of(row.owner_id, PARTITIONS)
        assert row.active_partition == partition_of(row.active_conversation_id, PARTITIONS)
