"""Two outboxes on each kind of store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis import ConversationStore, History


@pytest.fixture
async def bots(tmp_path: Path, store: ConversationStore) -> AsyncIterator[tuple[History, History]]:
    """Two outboxes that feed one store, and deliver nothing by themselves."""
    async with (
        History(tmp_path / "one.outbox.db", store=store, relay=False, watch=False) as one,
        History(tmp_path / "two.outbox.db", store=store, relay=False, watch=False) as two,
    ):
        yield one, two


@pytest.fixture
def one(bots: tuple[History, History]) -> History:
    return bots[0]


@pytest.fixture
def two(bots: tuple[History, History]) -> History:
    return bots[1]


@pytest.fixture
def engine(store: ConversationStore) -> AsyncEngine:
    """A way to the store's tables, behind its back."""
    return store.runtime.callers_engine
