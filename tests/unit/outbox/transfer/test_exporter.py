"""What an export holds of conversations that are forked, archived, deleted or cut off."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letopis import History, Message
from letopis.outbox.transfer.exporter import Exporter


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db") as opened:
        yield opened


async def lines(history: History) -> list[dict[str, Any]]:
    assert await history.drained(60)
    return [json.loads(line) async for line in Exporter(history).of_all()]


async def test_a_fork_is_whole_without_its_parent(history: History) -> None:
    await history.append("parent", Message.user("one", id="m1"), Message.assistant("two", id="m2"))
    await history.chat("parent").fork("fork", at="m1")
    await history.append("fork", Message.assistant("another two", id="m3"))
    exported = [(one["conversation_id"], one["content"]) for one in await lines(history)]
    assert set(exported) == {("parent", "one"), ("parent", "two"), ("fork", "one"), ("fork", "another two")}


async def test_what_is_archived_is_exported_and_what_is_deleted_is_not(history: History) -> None:
    for name in ("open", "archived", "deleted"):
        await history.append(name, Message.user(f"in {name}"))
    await history.chat("archived").archive()
    await history.chat("deleted").delete()
    assert sorted(one["conversation_id"] for one in await lines(history)) == ["archived", "open"]


async def test_a_reply_that_was_cut_off_stays_one(history: History) -> None:
    await history.append("chat", Message.assistant("as far as", status="interrupted"))
    assert [one["status"] for one in await lines(history)] == ["interrupted"]
