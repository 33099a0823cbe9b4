"""Give pytest the fixtures clock, platform, store and history: name this module in ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letopis.outbox import History
from letopis.testing.clock import ManualClock
from letopis.testing.platform import FakePlatform
from letopis.testing.store import FaultyStore


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until the test moves it."""
    return ManualClock()


@pytest.fixture
def platform() -> FakePlatform:
    """A messaging platform in memory."""
    return FakePlatform()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FaultyStore]:
    """A history store in an SQLite file, which the test can take away."""
    store = FaultyStore(tmp_path / "bot.history.db")
    yield store
    await store.close()


@pytest.fixture
async def history(tmp_path: Path, store: FaultyStore, clock: ManualClock) -> AsyncIterator[History]:
    """A history on ``store``, by ``clock``, that delivers when the test calls :func:`~letopis.testing.deliver_all`."""
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False, now=clock.now) as history:
        yield history
