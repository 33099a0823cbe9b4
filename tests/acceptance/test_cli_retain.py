"""letopis history retain and tag, on a real outbox and a real store."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.store import Message
from letopis.store.model.events import utc_now
from tests.support.fix_command import talk

pytestmark = pytest.mark.usefixtures("elsewhere")

RULES = """
[retention.content]
max_age_days = 30
[[retention.content.rules]]
owner = "7"
max_messages = 1
"""


def say(name: str, *texts: str, owner: str, days_ago: float) -> None:
    talk(*texts, conversation=name, owner=owner, now=lambda: utc_now() - timedelta(days=days_ago))


def texts(name: str) -> list[str]:
    async def read() -> list[str]:
        async with History("bot.outbox.db", relay=False, watch=False) as history:
            return [message.text for message in await history.messages(name)]

    return asyncio.run(read())


def holds(word: str) -> bool:
    return any(word.encode() in path.read_bytes() for path in Path().glob("bot.*.db*"))


def test_what_is_due_leaves_both_files_and_the_rest_stays(letopis: Any) -> None:
    say("old", "old-t0ken 1", "old-t0ken 2", owner="42", days_ago=40)
    say("pinned", "pin-kept", owner="42", days_ago=40)
    say("old", "young 1", owner="42", days_ago=1)
    say("seven", "first-t0ken", "second-t0ken", "third", owner="7", days_ago=1)
    assert letopis("history", "tag", "pinned", "--add", "pinned")[0] == 0
    Path("letopis.toml").write_text(RULES, encoding="utf-8")
    for _ in range(2):
        code, out, err = letopis("history", "retain", "--dry-run", "--json")
        told = json.loads(out)
        assert code == 0 and told["dry_run"]
        assert told["rules"] == {
            "default": {"conversations": 1, "messages": 2},
            "owner 7": {"conversations": 1, "messages": 2},
        }
        assert {one["conversation_id"]: one["messages"] for one in told["conversations"]} == {"old": 2, "seven": 2}
        assert all(one["oldest_kept"] is not None for one in told["conversations"])
        assert "would leave" in err and holds("old-t0ken") and texts("old")[0] == "old-t0ken 1"
    code, out, _ = letopis("history", "retain", "--yes", "--wait", "--json")

    done = json.loads(out)
    assert code == 0 and not done["dry_run"] and done["pending"] == 0
    assert done["conversations"] == told["conversations"]
    assert texts("old") == ["", "", "young 1"]
    assert texts("seven") == ["", "", "third"]
    assert texts("pinned") == ["pin-kept"]
    assert not holds("old-t0ken") and not holds("first-t0ken") and holds("third")
    assert letopis("history", "retain", "--dry-run")[0] == 3
    assert letopis("db", "verify")[0] == 0


def test_due_checkpoints_are_shown_and_then_deleted(letopis: Any) -> None:
    pytest.importorskip("langgraph.checkpoint.base", reason="needs langgraph: pip install --group adapters")

    async def use(*, fill: bool) -> list[int]:
        from letopis.adapters.langgraph import LetopisSaver
        from tests.support.langgraph_turns import config, put

        async with History("bot.outbox.db", watch=False) as history:
            for thread in ("a", "b") if fill else ():
                at = config(thread)
                for number in range(5):
                    at = await put(LetopisSaver(history), {"big": f"{number} {'w' * 200}"}, at, version=number)
                    await LetopisSaver(history).aput_writes(at, [("big", "w" * 200)], "task")
            if fill:
                await history.append("b", Message.user("hello"), owner="7")
            assert await history.drained(30)
            return [len([one async for one in LetopisSaver(history).alist(config(name))]) for name in ("a", "b")]

    assert asyncio.run(use(fill=True)) == [5, 5]
    rules = "[retention.content]\ncheckpoints_last = 2\n[[retention.content.rules]]\nowner = '7'\nmax_messages = 9"
    Path("letopis.toml").write_text(rules, encoding="utf-8")
    code, out, err = letopis("history", "retain", "--dry-run", "--json")
    shown = json.loads(out)["checkpoints"]
    assert code == 0 and "would delete 3 checkpoints" in err
    assert shown == [
        {"conversation_id": "a", "namespace": ["langgraph", "checkpoints", "="], "rule": "default", "checkpoints": 3}
    ]
    assert "CHECKPOINTS" in letopis("history", "retain", "--dry-run")[1]
    assert asyncio.run(use(fill=False)) == [5, 5]
    code, out, err = letopis("history", "retain", "--yes", "--wait", "--json")
    done = json.loads(out)
    assert code == 0 and done["checkpoints"] == shown and done["pending"] == 0 and "deleted 3 checkpoints" in err
    assert asyncio.run(use(fill=False)) == [2, 5]
    assert letopis("history", "retain", "--dry-run")[0] == 3
    Path("letopis.toml").write_text(rules.replace("last = 2", "last = 1"), encoding="utf-8")
    assert letopis("relay", "--once")[0] == 0
    assert asyncio.run(use(fill=False)) == [1, 5]
    assert "1 checkpoints deleted" in letopis("status")[1]
    assert letopis("db", "verify")[0] == 0
