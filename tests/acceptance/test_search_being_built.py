"""What a reader is told while the search index of a large history is being built."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from letopis.console.access import Gate
from letopis.store.model.messages import Message
from letopis.store.search import finder
from letopis.store.search.indexer import Indexer
from tests.support.console import House

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_search_says_that_the_index_is_being_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letopis: Callable[..., tuple[int, str, str]]
) -> None:
    path = tmp_path / "bot.outbox.db"

    async def busy(*_: Any, **__: Any) -> int:
        return 0

    with House(path, gate=Gate(open_reading=True)) as house:
        receipts = [house.run(house.history.append("c", Message.user(f"green tea {number}"))) for number in range(5)]
        assert all(house.run(receipt.saved(timeout=60)) for receipt in receipts)
        monkeypatch.setattr(Indexer, "catch_up", busy)
        monkeypatch.setattr(finder, "MAX_UNINDEXED_EVENTS", 2)

        page = house.run(house.history.search("tea"))
        with urllib.request.urlopen(house.url("conversations?q=tea"), timeout=60) as answer:  # noqa: S310 - loopback
            shown = answer.read().decode()
    code, out, err = letopis("history", "search", "tea", "--outbox", str(path), "--json")

    assert (len(page), page.complete, page.unindexed) == (1, False, 4)
    assert "The search index is being built: 4 events were not searched." in shown
    assert "does not answer" not in shown
    assert "green tea 0" in shown.replace("<mark>", "").replace("</mark>", "")
    assert code == 0, err
    assert orjson.loads(out)["unindexed"] == 4
    assert "the search index is being built: 4 events were not searched" in err
