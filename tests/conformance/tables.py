"""Choose the kind of store, and look into its tables for what its reads do not show."""

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.ops.verify import content_problems
from letopis.outbox import History
from letopis.store.testing import DestinationStore
from tests.support.sayings import problems, rows_of

on_sqlite = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
"""Marks a rule that no SQL of its own carries: one kind of store shows it."""

TABLES = ("letopis_events", "letopis_messages", "letopis_conversations", "letopis_owners", "letopis_search")


async def rows(store: Any, table: str = "letopis_events") -> list[Mapping[str, Any]]:
    return [dict(row._mapping) for row in await rows_of(store, sa.text(f"SELECT * FROM {table}"))]


async def stored_text(store: Any, conversation_id: str | None = None) -> str:
    """Return all that the tables hold, or all that the log holds of one conversation."""
    if conversation_id is None:
        return repr([await rows(store, table) for table in TABLES])
    return repr([row for row in await rows(store) if row["conversation_id"] == conversation_id])


class LooksIntoTables:
    """Have the published tests of redaction search the tables."""

    async def stored_text(self, store: DestinationStore, conversation_id: str | None = None) -> str:
        return await stored_text(store, conversation_id)


async def large_contents(store: Any) -> int:
    """Return how many large strings of messages the store holds."""
    return sum(row["scope"].startswith("\x01m:") for row in await rows(store, "letopis_records"))


async def assert_sound(history: History) -> None:
    """Check what `db verify` finds, and what `outbox verify` finds of large content."""
    assert await problems(history.store) == []
    assert await history.outbox.read(lambda connection: list(content_problems(connection))) == []
