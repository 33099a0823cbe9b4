"""history stats, and the states and the star in history list."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.history.history import History
from letopis.store.model.events import Event
from letopis.store.model.messages import Message

DAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def bot(elsewhere: None, tmp_path: Path) -> None:
    """The outbox of a bot in the folder."""
    asyncio.run(said(tmp_path))


async def said(folder: Path) -> None:
    """Three chats: the last one pending, one archived; the mark went to the one that was there by then."""
    async with History(folder / "bot.outbox.db") as history:
        await history.start("42", conversation_id="a", title="Tea")
        await history.start("42", conversation_id="b")
        for hour, message in enumerate(
            (
                Message.user("q", tokens=1),
                Message.assistant("a", tokens=20, metadata={"model": "small\x1b[31m"}),
                Message.assistant("a", tokens=300, metadata={"model": ""}),
            )
        ):
            event = replace(Event.of(message, conversation_id="a"), occurred_at=DAY + timedelta(hours=hour))
            await history.append("a", event)
        assert await history.drained(20)
    async with History(folder / "bot.outbox.db", relay=False) as history:
        await history.chat("b").archive()
        await history.append("c", Message.user("q"), owner="42")


def test_the_figures_as_a_table(letopis: Any) -> None:
    code, out, err = letopis("history", "stats", "--owner", "42", "--until", "2026-03-02", "--by", "model")

    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["CONVERSATIONS", "MESSAGES", "QUESTIONS", "ANSWERS", "TOKENS"],
        ["1", "3", "1", "2", "321"],
        [],
        ["model", "MESSAGES", "QUESTIONS", "ANSWERS", "TOKENS"],
        ['""', "1", "0", "1", "300"],
        ["small\\x1b[31m", "1", "0", "1", "20"],
        ["-", "1", "1", "0", "1"],
    ]


def test_the_figures_in_json(letopis: Any) -> None:
    period = ("--since", "2026-03-01T04:00:00+03:00", "--until", "2026-03-01T02:00:00Z")
    code, out, _ = letopis("history", "stats", *period, "--by", "model", "--json")

    assert code == 0
    assert json.loads(out) == {
        "messages": 1,
        "questions": 0,
        "answers": 1,
        "tokens": 20,
        "conversations": 1,
        "complete": True,
        "by": [{"value": "small\x1b[31m", "messages": 1, "questions": 0, "answers": 1, "tokens": 20}],
    }
    code, out, _ = letopis("history", "stats", "--json")
    assert list(json.loads(out)) == ["messages", "questions", "answers", "tokens", "conversations", "complete"]
    assert json.loads(out)["messages"] == 4


def test_the_store_is_counted_alone(letopis: Any) -> None:
    code, out, _ = letopis("history", "stats", "--json", "--outbox", "none.db", "--store", "bot.history.db")

    assert code == 0
    assert json.loads(out)["messages"] == 3


def test_the_list_marks_the_active_one_and_shows_other_states(letopis: Any) -> None:
    def listed(*arguments: str) -> list[tuple[str, str, bool]]:
        found = json.loads(letopis("history", "list", "--json", *arguments)[1])["conversations"]
        return [(one["conversation_id"], one["state"], one["active"]) for one in found]

    assert sorted(listed("--owner", "42")) == [("a", "active", True), ("c", "active", False)]
    assert listed("--owner", "42", "--state", "archived") == [("b", "archived", False)]
    assert len(listed("--state", "all")) == 3
    _, out, _ = letopis("history", "list", "--owner", "42", "--state", "all")
    head, *rows = (line.split() for line in out.splitlines())
    assert head[:5] == ["CONVERSATION", "OWNER", "NUMBER", "ACTIVE", "STATE"]
    assert [row[:5] for row in rows if row[0] == "c"] == [["c", "42", "-", "active", "1"]]
    assert [row[:4] for row in rows if row[0] == "a"] == [["a", "42", "1", "*"]]
