"""Divide the tables of a history store by the database's own hash partitions."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis import ConversationStore
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import metadata

PARTITIONS: Final = 16
DIVIDED: Final = tuple(sorted(table.name for table in metadata.tables.values() if "partition" in table.columns))
"""The tables that the database divides; it refuses one with a unique key that lacks ``partition``."""


async def make_divided_store(url: str, *, partitions: int = PARTITIONS) -> None:
    """Make a store in an empty database on a server, with one table of the database's own for each partition."""
    async with ConversationStore.open(url, migrate=True, partitions=partitions):
        pass
    engine = create_store_engine(url)
    try:
        async with engine.begin() as connection:
            for table in DIVIDED:
                await _divide(connection, table, partitions)
    finally:
        await engine.dispose()


async def _divide(connection: AsyncConnection, table: str, partitions: int) -> None:
    if connection.dialect.name != "postgresql":
        await connection.exec_driver_sql(f"ALTER TABLE {table} PARTITION BY HASH (`partition`) PARTITIONS {partitions}")
        return
    # PostgreSQL divides no table that is there: the new one gets the keys and indexes of the old one.
    whole = f"{table}_whole"
    await connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {whole}")
    await connection.exec_driver_sql(f"CREATE TABLE {table} (LIKE {whole} INCLUDING ALL) PARTITION BY HASH (partition)")
    for number in range(partitions):
        await connection.exec_driver_sql(
            f"CREATE TABLE {table}_{number} PARTITION OF {table}"
            f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number})"
        )
    await connection.execute(sa.text(f"INSERT INTO {table} SELECT * FROM {whole}"))
    await connection.exec_driver_sql(f"DROP TABLE {whole}")
