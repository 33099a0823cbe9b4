"""Records that are found by their tags are in one order, stored and pending ones together, on pages of any size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.store import ConversationStore, StoreUnavailable
from tests.support.relays import deliver_all

CP = ("cp",)
TAGS = {"run": "r"}


@pytest.fixture
async def bot(tmp_path: Path) -> AsyncIterator[History]:
    async with (
        ConversationStore.open(tmp_path / "history.db") as store,
        History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False) as opened,
    ):
        yield opened


async def found(bot: History, limit: int, **order: Any) -> list[str]:
    """The keys of all pages, in their order."""
    keys, after = list[str](), None
    while True:
        page = await bot.records.find(TAGS, limit=limit, after=after, **order)
        assert len(page.items) <= limit and len(keys) < 20
        keys += [one.key for one in page]
        if (after := page.next) is None:
            return keys


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_find_merges_pending_records_in_either_order(bot: History, limit: int) -> None:
    one, two = bot.records(conversation="one"), bot.records(conversation="two")
    for records, key in ((one, "1"), (one, "4"), (two, "5"), (one, "gone")):
        await records.put(CP, key, 0, tags=TAGS)
    await deliver_all(bot)
    for records, key in ((two, "2"), (one, "3")):
        await records.put(CP, key, 0, tags=TAGS)
    await one.delete(CP, "gone")
    await two.put(CP, "6", 0, tags={"run": "other"})

    assert await found(bot, limit) == ["1", "3", "4", "2", "5"]
    assert await found(bot, limit, reverse=True) == ["5", "4", "3", "2", "1"]
    assert await found(bot, limit, reverse=True, end="4") == ["3", "2", "1"]
    assert await found(bot, limit, end="3") == ["1", "2"]


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_page_that_ends_at_a_record_that_was_put_again_has_it(bot: History, reverse: bool) -> None:
    records = bot.records(conversation="one")
    for key in "123":
        await records.put(CP, key, "old")
    await deliver_all(bot)
    await records.put(CP, "2", "new")

    page = await records.list(CP, limit=2, reverse=reverse)

    assert [(one.key, one.value) for one in page] == [("3" if reverse else "1", "old"), ("2", "new")]


async def test_scopes_need_the_store(tmp_path: Path) -> None:
    nowhere = "postgresql://127.0.0.1:1/none"
    async with History(tmp_path / "b.outbox.db", store=nowhere, relay=False, watch=False) as bot:
        await bot.records(conversation="one").put(CP, "1", 0)
        with pytest.raises(StoreUnavailable):
            await bot.records.scopes()
