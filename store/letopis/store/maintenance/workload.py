"""Count the work ahead of a long command, for its progress; the store may be in use meanwhile."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database.fault_classification import translated
from letopis.store.database.schema import conversations
from letopis.store.rules.reducer import PROJECTION_RULES
from letopis.store.search.indexer import index_progress


async def conversations_to_rebuild(engine: AsyncEngine, *, every: bool) -> int:
    """Return how many conversations a rebuild goes through, without those whose row is missing.

    :param every: all of them, not only those whose rows older rules made.
    :raises StoreFault: the database failed.
    """
    rules = conversations.c.rules
    chosen = rules <= PROJECTION_RULES if every else rules < PROJECTION_RULES
    with translated():
        async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            count = await connection.execute(sa.select(sa.func.count()).select_from(conversations).where(chosen))
            return int(count.scalar_one())


async def events_to_index(engine: AsyncEngine) -> int:
    """Return how many events the search index is behind the log.

    :raises StoreFault: the database failed.
    """
    with translated():
        async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
            return sum(one.behind for one in await index_progress(connection))
