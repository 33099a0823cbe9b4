"""Records that are found by their tags are in one order, stored and pending ones together, on pages of any size."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from letopis import History, StoreUnavailable
from tests.support.relays import deliver_all
from tests.support.sayings import all_pages

CP = ("cp",)
TAGS = {"run": "r"}


async def found(history: History, limit: int, **order: Any) -> list[str]:
    """The keys of all pages, in their order."""
    pages = await all_pages(partial(history.records.find, TAGS, limit=limit, **order), most=limit)
    return [one.key for one in pages]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_find_merges_pending_records_in_either_order(history: History, limit: int) -> None:
    one, two = history.records(conversation="one"), history.records(conversation="two")
    for records, key in ((one, "1"), (one, "4"), (two, "5"), (one, "gone")):
        await records.put(CP, key, 0, tags=TAGS)
    await deliver_all(history)
    for records, key in ((two, "2"), (one, "3")):
        await records.put(CP, key, 0, tags=TAGS)
    await one.delete(CP, "gone")
    await two.put(CP, "6", 0, tags={"run": "other"})

    assert await found(history, limit) == ["1", "3", "4", "2", "5"]
    assert await found(history, limit, reverse=True) == ["5", "4", "3", "2", "1"]
    assert await found(history, limit, reverse=True, end="4") == ["3", "2", "1"]
    assert await found(history, limit, end="3") == ["1", "2"]


async def test_scopes_need_the_store(alone: History) -> None:
    await alone.records(conversation="one").put(CP, "1", 0)
    with pytest.raises(StoreUnavailable):
        await alone.records.scopes()
