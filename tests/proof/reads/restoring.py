"""Put a store back to an earlier state while it is read and delivered to, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import metadata
from letopis.store.database.timeouts import Timeouts

_TRIES: Final = 50


async def restoring(url: str, until: Callable[[], bool], *, every: float) -> int:
    """Keep a copy of all tables, and put it back a little later, repeatedly; return how often."""
    engine = create_store_engine(url, timeouts=Timeouts(), pool_size=1)
    tables = metadata.sorted_tables
    done = 0
    try:
        while not until():
            async with engine.connect() as connection:
                if connection.dialect.name != "sqlite":
                    await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                copy = {table.name: (await connection.execute(sa.select(table))).mappings().all() for table in tables}
            await asyncio.sleep(every)
            for _ in range(_TRIES):
                try:
                    async with engine.begin() as connection:
                        for table in reversed(tables):
                            await connection.execute(sa.delete(table))
                        for table in tables:
                            if rows := copy[table.name]:
                                await connection.execute(sa.insert(table), [dict(row) for row in rows])
                except DBAPIError:  # the relay was in the way
                    await asyncio.sleep(0.02)
                else:
                    done += 1
                    break
            await asyncio.sleep(every)
    finally:
        await engine.dispose()
    return done
