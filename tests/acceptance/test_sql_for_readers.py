"""The queries for reports are right: each is run on its database, and answers the same on all three."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import create_async_engine

from letopis.outbox import History
from letopis.store import Message, ToolCall
from tests.support.pages import blocks
from tests.support.paths import ROOT
from tests.support.servers.store_pool import migrate

PAGE = ROOT / "docs" / "howto" / "sql.md"
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB", "mariadb": "MariaDB"}
FIRST, SECOND = datetime(2026, 1, 30, 23, 59, 59, tzinfo=UTC), datetime(2026, 1, 31, 0, 0, 1, tzinfo=UTC)


def queries(kind: str) -> list[str]:
    """Return the queries of the page for one database, in the page's order."""
    found = [block.body for block in blocks(PAGE.read_text(encoding="utf-8")) if block.language == "sql"]
    return [one for one in found if one.splitlines()[0].removeprefix("-- ") in (kind, "all three")]


async def fill(history: History) -> None:
    """Append what the queries are about: two chats, an edit, an undo, a rating, a refused reply."""
    await history.append("chat-1", Message.user("What is tea?"), owner="42", occurred_at=FIRST)
    reply = Message.assistant("A leaf.", tokens=7, metadata={"model": "large"})
    await history.append("chat-1", reply, occurred_at=SECOND)
    await history.chat("chat-1").edit(reply.id, "A leaf in hot water.")
    await history.chat("chat-1").sent(reply.id)
    await history.chat("chat-1").react(reply.id, "rating", value=5, actor="42")
    await history.chat("chat-1").react(reply.id, "rating", value=2, actor="43")
    await history.chat("chat-1").react(reply.id, "👍", actor="42")
    await history.append("chat-1", Message.user("And this?"), Message.assistant("Gone.", tokens=100))
    await history.chat("chat-1").undo()
    await history.chat("chat-1").rename("Tea")
    call = Message.assistant([ToolCall("c1", "weather", {})], tokens=5, metadata={"model": "small"})
    await history.append("chat-2", call, owner="42", occurred_at=SECOND)
    await history.chat("chat-2").failed(call.id, reason="too long")
    assert await history.drained(timeout=30)


async def run(url: str, statements: list[str]) -> list[list[tuple[Any, ...]]]:
    """Run queries on a store, and return their rows."""
    engine = create_async_engine(url)
    answers = []
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.exec_driver_sql(statement.rstrip().rstrip(";"))
                answers.append([tuple(row) for row in result] if result.returns_rows else [])
    finally:
        await engine.dispose()
    return answers


async def test_each_query_answers_what_it_says(store_url: str, tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", store=store_url) as history:
        await fill(history)
        url = history.store.url
    kind = NAMES[url.get_backend_name()]

    chats, talk, days, models, states, ratings, tasks = await run(
        url.render_as_string(hide_password=False), [one for one in queries(kind) if "VIEW" not in one]
    )

    assert sorted(chats, key=str) == [(1, "Tea", "active", 2, 107), (2, None, "active", 1, 5)]
    assert talk == [("user", "What is tea?"), ("assistant", "A leaf in hot water.")]
    assert [(date.fromisoformat(str(day)), int(count), tokens and int(tokens)) for day, count, tokens in days] == [
        (date(2026, 1, 30), 1, None),
        (date(2026, 1, 31), 2, 12),
    ]
    assert [(model, int(tokens)) for model, tokens in models] == [("large", 7), ("small", 5)]
    assert states == [("failed", 1), ("sent", 1)]
    assert [(int(count), float(average)) for count, average in ratings] == [(2, 3.5)]
    assert tasks == []


async def test_the_view_shows_the_current_content(fresh_postgresql_url: str, tmp_path: Path) -> None:
    await migrate(fresh_postgresql_url)
    async with History(tmp_path / "bot.outbox.db", store=fresh_postgresql_url) as history:
        await fill(history)
        url = history.store.url.render_as_string(hide_password=False)

    *_, found = await run(
        url,
        [
            queries("PostgreSQL")[-1],
            "SELECT role, said_at, content FROM chat_messages ORDER BY conversation_id, version",
        ],
    )

    assert [(role, said_at) for role, said_at, _ in found] == [
        ("user", FIRST),
        ("assistant", SECOND),
        ("assistant", SECOND),
    ]
    assert "A leaf in hot water." in str(found[1][2])


async def test_what_an_outbox_owes(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("chat-1", Message.user("What is tea?"), owner="42")

    (query,) = [one for one in queries("the outbox") if "letopis_outbox_lanes" in one]
    with closing(sqlite3.connect(f"file:{tmp_path / 'bot.outbox.db'}?mode=ro", uri=True)) as connection:
        assert connection.execute(query).fetchall() == [("chat-1", "ready", 2, 0)]


def test_every_query_is_for_a_known_database() -> None:
    """None is left out of the runs above."""
    sql = [block.body for block in blocks(PAGE.read_text(encoding="utf-8")) if block.language == "sql"]
    kinds = {one.splitlines()[0].removeprefix("-- ") for one in sql}

    assert kinds == {"PostgreSQL", "MariaDB", "SQLite", "all three", "the outbox"}
    assert len(sql) == 17
