"""The store under test: created by its migrations in a fresh database of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from letopis.store import ConversationStore


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[ConversationStore]:
    async with ConversationStore.open(store_url, migrate=True) as opened:
        yield opened
