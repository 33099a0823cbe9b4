"""How-to pages are right: their code and queries run as they stand, and say what the pages say."""

import contextlib
import io
import re
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from letopis import BlockingHistory, History, Message
from letopis.adapters import formats
from letopis.store import StoreFault, ToolCall
from letopis.testing import FakePlatform, FaultyStore, deliver_all
from tests.support.child import ran
from tests.support.pages import blocks, follow, programs
from tests.support.paths import ROOT
from tests.support.servers.store_pool import migrate

HOWTO = ROOT / "docs" / "howto"
PAGES: dict[str, list[str] | None] = {
    "event-loops-and-threads.md": [
        "['What is tea?']\n",
        "3\n",
        "['first run', 'second run']\n",
        "True\n",
        "1 True\n",
        "1\n",
    ],
    "ids-and-retries.md": None,
    "langgraph.md": None,
    "projections.md": ["chat-1 5\n"],
    "provider-formats.md": None,
    "rebuild.md": [""],
    "which-verb-removes-what.md": None,
    "without-asyncio.md": [
        "user What is tea?\nassistant A leaf.\nin the history store: True\n",
        *("True\n", "Tea is a leaf.\n", "chat-1\n", "True\n"),
    ],
}
"""What each program of a page prints; ``None`` if the page shows it."""


@pytest.mark.parametrize("page", PAGES)
def test_programs_of_a_page_print_what_it_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in one folder and in this process, which is quicker than one of their own."""
    monkeypatch.chdir(tmp_path)
    code, printed = programs(HOWTO / page), []
    with warnings.catch_warnings(action="error"):
        if page == "langgraph.md":
            pytest.importorskip("langgraph.graph", reason="needs langgraph: pip install --group adapters")
            warnings.simplefilter("ignore", DeprecationWarning)  # of an old release, of itself
        for program in code[:1] if page == "ids-and-retries.md" else code:  # whose second block is none
            names: dict[str, Any] = {"__name__": "__main__"}
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(program, page, "exec"), names)  # noqa: S102 - our own page
            printed.append(out.getvalue())
            for left in names.values():
                if isinstance(left, BlockingHistory):  # which its process would have ended with
                    left.close()

    shown = [one.body for one in blocks((HOWTO / page).read_text(encoding="utf-8")) if one.language == "text"]
    assert printed == (PAGES[page] or shown)


def test_the_tests_of_a_bot_pass_as_the_page_shows(tmp_path: Path) -> None:
    (step,) = follow(HOWTO / "testing.md", tmp_path)

    assert step.holds, str(step)


async def test_the_session_for_aiogram_hands_calls_to_the_platform() -> None:
    types = pytest.importorskip("aiogram.types", reason="needs aiogram: pip install --group adapters")
    from aiogram import Bot
    from aiogram.exceptions import TelegramForbiddenError

    (program,) = (body for body in programs(HOWTO / "testing.md") if "BaseSession" in body)
    names: dict[str, Any] = {}
    exec(compile(program, "testing.md", "exec"), names)  # noqa: S102 - our own page
    platform = FakePlatform()
    bot = Bot("7000:a-secret", session=names["FakeSession"](platform))

    sent = await bot.send_message(7, "hi", reply_markup=types.ReplyKeyboardRemove())
    platform.fail("sendMessage", 403, "Forbidden: bot was blocked by the user")
    with pytest.raises(TelegramForbiddenError, match="blocked"):
        await bot.send_message(7, "hi again")

    assert (sent.chat.id, sent.text, platform.texts(chat=7)) == (7, "hi", ["hi"])


async def test_a_store_that_is_away_takes_no_delivery_and_no_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.testing.store.MAX_IDLE_STEPS", 2)
    store = FaultyStore(tmp_path / "bot.history.db")
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False) as bot:
        await bot.append("chat-1", Message.user("hi"))
        store.take_away()

        with pytest.raises(TimeoutError, match="taken nothing"):
            await deliver_all(bot)
        for read in (store.messages("chat-1"), store.ping()):
            with pytest.raises(StoreFault, match="taken away"):
                await read

        store.give_back()
        store.refused = {"chat-1"}
        with pytest.raises(TimeoutError, match="taken nothing"):
            await deliver_all(bot)
        store.refused = ()
        assert not await store.messages("chat-1")
    await store.close()


def test_every_format_is_in_the_guide_and_in_the_reference() -> None:
    (folder,) = formats.__path__
    names = sorted(path.stem for path in Path(folder).glob("[a-z]*.py"))
    guide = (HOWTO / "provider-formats.md").read_text(encoding="utf-8")
    reference = (ROOT / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")

    assert names == ["ag_ui", "anthropic", "gemini", "openai_chat", "openai_responses", "ui_message"]
    assert [name for name in names if f"| `{name}` |" not in guide] == []
    assert [name for name in names if f"letopis.adapters.formats.{name}\n" not in reference] == []


# The published conformance tests, from outside.

FORGETFUL = """
from dataclasses import replace

import pytest

from letopis.store import ConversationStore
from letopis.store.model.identifiers import uuid7
from letopis.store.testing import DeliveryConformance


class ForgetfulStore(ConversationStore):
    async def apply(self, origin, batch):
        def renamed(delivery):
            return replace(delivery, event=replace(delivery.event, event_id=uuid7()))

        fresh = [replace(lane, deliveries=tuple(map(renamed, lane.deliveries))) for lane in batch]
        return await super().apply(replace(origin, origin_id=uuid7()), fresh)


class TestForgetfulStore(DeliveryConformance):
    @pytest.fixture
    async def store(self, tmp_path):
        async with ForgetfulStore.open(tmp_path / "history.db") as opened:
            yield opened
"""
"""Takes every event for a new one: it forgets which ids it has, and how far a lane was delivered."""


def prove(folder: Path, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as its user would: in a folder of its own, with no configuration of ours."""
    (folder / "test_mine.py").write_text(source, encoding="utf-8")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, "test_mine.py")
    return ran(*command, cwd=folder, timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_store_of_the_guide_passes(tmp_path: Path) -> None:
    [block, _] = programs(HOWTO / "prove-a-store.md")

    done = prove(tmp_path, block, "-rs")

    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 140, done.stdout
    assert "does not declare the capability STATISTICS" in done.stdout
    assert "does not declare the capability FORKS" not in done.stdout


@pytest.mark.slow
def test_a_store_that_forgets_duplicates_fails_there_and_nowhere_else(tmp_path: Path) -> None:
    fails = ["whole_lane_delivered_again", "an_event_twice_in_one_delivery", "event_through_two_outboxes", "lane_heads"]

    done = prove(tmp_path, FORGETFUL, "-rA", "-k", " or ".join((*fails, "an_empty_batch")))

    failed = re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)
    assert (done.returncode, "assert" in done.stdout) == (1, True), done.stdout
    assert all(any(part in name for name in failed) for part in fails), done.stdout
    assert not any("an_empty_batch" in name for name in failed), done.stdout


# The queries for reports.

SQL = [block for block in blocks((HOWTO / "sql.md").read_text(encoding="utf-8")) if block.language == "sql"]
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB", "mariadb": "MariaDB"}
FIRST, SECOND = datetime(2026, 1, 30, 23, 59, 59, tzinfo=UTC), datetime(2026, 1, 31, 0, 0, 1, tzinfo=UTC)


def queries(kind: str) -> list[str]:
    """Return the queries of the page for one database, in the page's order."""
    return [one.body for one in SQL if one.body.splitlines()[0].removeprefix("-- ") in (kind, "all three")]


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

    select = "SELECT role, said_at, content FROM chat_messages ORDER BY conversation_id, version"
    *_, found = await run(url, [queries("PostgreSQL")[-1], select])

    assert [row[:2] for row in found] == [("user", FIRST), ("assistant", SECOND), ("assistant", SECOND)]
    assert "A leaf in hot water." in str(found[1][2])


async def test_what_an_outbox_owes(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("chat-1", Message.user("What is tea?"), owner="42")

    (query,) = [one for one in queries("the outbox") if "letopis_outbox_lanes" in one]
    with closing(sqlite3.connect(f"file:{tmp_path / 'bot.outbox.db'}?mode=ro", uri=True)) as connection:
        assert connection.execute(query).fetchall() == [("chat-1", "ready", 2, 0)]


def test_every_query_is_for_a_known_database() -> None:
    """None is left out of the runs above."""
    kinds = {one.body.splitlines()[0].removeprefix("-- ") for one in SQL}

    assert kinds == {"PostgreSQL", "MariaDB", "SQLite", "all three", "the outbox"}
    assert len(SQL) == 17
