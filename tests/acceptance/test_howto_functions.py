"""The functions that guides show do what their pages say, pasted into a bot as a reader does."""

import ast
import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import isawaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from letopis import Delivery, File, History, Message, RepeatFilter, RetryPolicy, ToolCall, ToolResult
from letopis.testing import FakePlatform
from letopis.testing.platform import SendFailed
from tests.support.console_story import REFUSED, refuse
from tests.support.pages import programs
from tests.support.paths import ROOT
from tests.support.relays import until
from tests.support.servers.store_pool import migrate

DOCS = ROOT / "docs"


def shown(page: str, block: int = 0, /, **names: Any) -> SimpleNamespace:
    """Run a block of a guide; return what it defines."""
    code = compile(programs(DOCS / "howto" / page)[block], page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    exec(code, names)  # noqa: S102 - our own page
    return SimpleNamespace(**names)


@pytest.fixture
async def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[History]:
    monkeypatch.chdir(tmp_path)
    async with History("history.outbox.db") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def texts(history: History, chat: str = "chat-1") -> list[str]:
    return [message.text for message in await history.messages(chat)]


async def chunks(*pieces: str) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def ask_model(messages: Any) -> str:
    return f"answer to {messages[-1].text}"


async def nothing(_: Any) -> None:
    """Serve nobody."""


# Replies that are sent, and confirmed.


@pytest.mark.parametrize(
    ("page", "block", "name"),
    [("confirm-sending.md", 0, "reply_to"), ("confirm-sending.md", 1, "answer"), ("embed.md", 1, "reply")],
)
async def test_a_reply_that_is_sent_is_confirmed(history: History, page: str, block: int, name: str) -> None:
    platform, reply = FakePlatform(), getattr(shown(page, block), name)
    chat = "telegram:7" if page == "embed.md" else "7"

    await reply(history, platform, 7 if page == "embed.md" else "7", "A leaf.")
    platform.fail("sendMessage", 500)
    with pytest.raises(SendFailed):
        await reply(history, platform, 7 if page == "embed.md" else "7", "A bean.")

    refused = Delivery.APPENDED if name == "answer" else Delivery.FAILED
    states = [(message.text, message.delivery) for message in await history.messages(chat)]
    assert states == [("A leaf.", Delivery.SENT), ("A bean.", refused)]
    assert platform.texts() == ["A leaf."]


@pytest.mark.parametrize(("block", "name"), [(2, "run_bot"), (3, "run_sending_bot")])
async def test_what_a_process_left_unconfirmed_is_sent_by_the_next(folder: Path, block: int, name: str) -> None:
    async with History("bot.outbox.db") as history:
        await history.append("7", Message.assistant("A leaf."), confirm=True)
    platform, run = FakePlatform(), getattr(shown("confirm-sending.md", block), name)

    async def serve(history: History) -> None:
        await until(lambda: platform.texts() == ["A leaf."])
        while await history.unconfirmed():  # noqa: ASYNC110 - the file tells nobody
            await asyncio.sleep(0.01)

    await run(platform, serve, *([nothing] if name == "run_sending_bot" else []))

    async with History("bot.outbox.db") as history:
        assert [message.delivery for message in await history.messages("7")] == [Delivery.SENT]
    assert platform.texts() == ["A leaf."]


async def test_what_waits_is_listed(history: History) -> None:
    await history.append("7", Message.assistant("A leaf."), owner="42", confirm=True)

    assert await shown("confirm-sending.md", 4).waiting(history, "42") == []  # its writer lives
    assert len(await history.unconfirmed(owner="42")) == 1


class Bot(FakePlatform):
    async def language_of(self, _: str) -> str:
        return "en"


@pytest.mark.slow  # the monitor looks every few seconds
async def test_the_user_of_a_conversation_that_is_stuck_is_told(folder: Path) -> None:
    guide, bot, policy = shown("alerts.md"), Bot(), RetryPolicy(base=0.02, cap=0.02, attempts=1)
    guide.run_bot.__globals__["History"] = partial(History, policy=policy)  # so that it is stuck at once

    async def start_polling(history: History) -> None:
        await (await history.append("7", Message.user("hi"))).saved(timeout=30)
        await refuse(history.store.url.render_as_string(hide_password=False))
        await history.append("7", Message.user(REFUSED), owner="42")
        await until(lambda: len(bot.sent(chat="42")) == 1)

    await guide.run_bot(bot, start_polling)

    assert "has not reached the chat history" in bot.texts(chat="42")[0]


@pytest.mark.parametrize(
    ("page", "kind", "address"),
    [
        ("embed.md", "postgresql", "postgresql://bot@db/history"),
        ("postgresql.md", "postgresql", "postgresql://bot@localhost/history"),
        ("mariadb.md", "mariadb", "mariadb://bot@localhost/history"),
    ],
)
async def test_a_bot_has_its_history_on_a_server(
    folder: Path, new_store_url: Callable[[str], str], page: str, kind: str, address: str
) -> None:
    """On a server of ours in the place of the page's."""
    url = new_store_url(kind)
    await migrate(url)
    code = programs(DOCS / "howto" / page)[0].replace("/var/lib/mybot", folder.as_posix())
    assert address in code
    names: dict[str, Any] = {}
    exec(code.replace(address, url), names)  # noqa: S102 - our own page

    async def start_polling(history: History) -> None:
        await (await history.append("7", Message.user("hi"))).saved(timeout=30)
        assert [message.text for message in await history.store.messages("7")] == ["hi"]

    if page == "embed.md":
        await names["run_bot"](start_polling)
    else:
        async with names["history"] as history:
            await start_polling(history)


async def test_a_history_moves_to_a_server(
    folder: Path, new_store_url: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    async with History("bot.outbox.db") as history:
        await (await history.append("7", Message.user("hi"))).saved(timeout=30)
    [code], address = programs(DOCS / "howto" / "move.md"), "postgresql://admin@localhost/history"
    assert address in code
    names: dict[str, Any] = {}
    exec(code.replace(address, new_store_url("postgresql")), names)  # noqa: S102 - our own page

    await names["to_postgresql"]()

    assert capsys.readouterr().out.startswith("2 ")


# Rows of the bot's own.


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)


async def test_rows_of_the_bot_commit_with_what_is_said(history: History) -> None:
    accounts = sa.Table("credits", Base.metadata, sa.Column("owner", sa.Text), sa.Column("left", sa.Integer))
    async with history.transaction() as tx:
        for statement in (
            "CREATE TABLE credits (owner, left, user)",
            "CREATE TABLE orders (number INTEGER PRIMARY KEY)",
        ):
            await tx.execute(sa.text(statement))
        await tx.execute(sa.text("INSERT INTO credits VALUES ('42', 10, '42')"))

    await shown("embed.md", 3).answer_and_pay(history, accounts, "42", "chat-1", "A leaf.", 3)
    await shown("embed.md", 4).take_order(history, Order(number=1), "chat-1")
    async with AsyncSession(history.outbox.engine) as session:
        await shown("embed.md", 5).answer_in(history, session, "chat-1", "In a session.")
    await shown("streaming-replies.md", 3).answer_and_charge(history, "chat-1", "42", chunks("A ", "bean."))

    async with history.transaction() as tx:
        assert (await tx.execute(sa.text("SELECT left FROM credits"))).scalar() == 6
        assert (await tx.execute(sa.text("SELECT number FROM orders"))).scalar() == 1
    assert await texts(history) == ["A leaf.", "Ordered.", "In a session.", "A bean."]


async def test_an_update_is_appended_once(history: History) -> None:
    update = SimpleNamespace(id=17, text="What is tea?", chat_id=7, user_id=42)

    for _ in range(2):
        await shown("embed.md", 2).on_update(history, update)

    assert await texts(history, "telegram:7") == ["What is tea?"]


async def test_what_a_model_is_given(history: History) -> None:
    call, result = Message.assistant([ToolCall("c1", "weather", {})]), Message.tool([ToolResult("c1", "sunny")])
    asked = Message.user("What is tea?")
    await history.append("chat-1", asked, call, result, Message.user("And coffee?"))
    question = {"role": "user", "content": "What is tea?"}

    assert (await shown("embed.md", 6).context(history, "chat-1"))[0] == question
    assert (await shown("context-windows.md", 0).prompt(history, "chat-1"))[0] == question
    fitting = await shown("context-windows.md", 1).fitting(history, "chat-1", str.encode)
    assert len(fitting.messages) == 4
    prompt = shown("context-windows.md", 2, History=History).prompt_for
    assert await prompt(history, "chat-1", asked.id) == ["What is tea?"]
    assert [item["role"] for item in await shown("context-windows.md", 3).request(history, "chat-1")] == [
        *("user", "assistant", "tool", "user"),
    ]
    assert len(shown("context-windows.md", 4).context.messages) == 10


# What is removed, and what is kept.


async def test_what_is_erased_is_gone(history: History) -> None:
    guide, message = shown("erase.md", 0), Message.user("secret")
    for chat in ("redacted", "emptied", "closed", "left"):
        await history.append(chat, Message.user(f"{chat} {message.text}", id=chat), owner="42")
    await history.append("7", Message.user("of another"), owner="7")

    await guide.forget(history, "redacted", "redacted")
    await guide.forget_all(history, "emptied")
    await guide.close_for_good(history, "closed")
    assert await texts(history, "redacted") == [""]
    assert [await texts(history, chat) for chat in ("emptied", "closed", "left")] == [[], [], ["left secret"]]
    await shown("erase.md", 1).close_account(history, "42")

    assert [await texts(history, chat) for chat in ("left", "7")] == [[], ["of another"]]


async def test_a_person_in_a_group_is_given_what_is_theirs_and_erased(history: History, tmp_path: Path) -> None:
    await shown("erase.md", 2).said(history, "group", "Ada was here")
    await history.append("group", Message.user("of another", author="7"))
    assert await history.drained(30)

    await shown("erase.md", 3).hand_over_and_forget(history, "42", tmp_path / "42.jsonl")

    lines = (tmp_path / "42.jsonl").read_text(encoding="utf-8")
    assert ("Ada was here" in lines, "of another" in lines) == (True, False)
    assert await history.drained(30)
    assert await texts(history, "group") == ["", "of another"]


def test_rules_of_retention_are_accepted(folder: Path) -> None:
    assert isinstance(shown("retention.md", 0).history, History)


async def test_tags_are_kept(history: History) -> None:
    await history.append("chat-1", Message.user("hi"))
    await history.chat("chat-1").tag("trial")

    await shown("retention.md", 1).keep(history, "chat-1")

    conversation = await history.chat("chat-1").conversation()
    assert conversation is not None and conversation.tags == ("legal", "pinned")


async def test_records_are_put_with_messages(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    await shown("records.md").remember(history, "chat-1")

    state = history.records(conversation="chat-1")
    values = [await state.get(("form",), key) for key in ("step", "asked")]
    assert [record and record.value for record in values] == [{"at": 4}, True]
    assert (await texts(history), capsys.readouterr().out) == (["Next, please"], "")


async def test_a_picture_comes_back_as_it_was(history: History) -> None:
    await shown("large-content.md").ask_about(history, "chat-1", "aGVsbG8=" * 50_000)

    [message] = await history.messages("chat-1")
    assert isinstance(message.content, tuple) and isinstance(message.content[1], File)


# Reading.


async def test_a_fork_goes_its_own_way(history: History) -> None:
    first = Message.user("What is tea?")
    await history.append("chat-1", first, Message.assistant("A leaf."))

    fork = await shown("forks.md", 0).try_again(history, "chat-1", first.id, "In one word?")

    inherited, _ = await history.messages(fork)
    await shown("forks.md", 1).thumbs_up(history, inherited)
    assert await texts(history, fork) == ["What is tea?", "In one word?"]
    assert [len(message.reactions) for message in await history.messages("chat-1")] == [1, 0]


async def test_words_are_found(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    await history.append("chat-1", Message.user("green tea"), owner="42")

    await shown("search.md").find(history, "tea", "42")

    assert capsys.readouterr().out.splitlines()[-1] == "['tea']"


async def test_a_user_has_several_chats(history: History) -> None:
    await shown("several-chats.md", 0).on_message(history, 42, "What is tea?")
    chat = await history.active("42")
    await history.chat(chat.conversation_id).rename("Tea")

    assert await texts(history, chat.conversation_id) == ["What is tea?"]
    lines, more = await shown("several-chats.md", 1).menu(history, 42)
    assert ([line.split(". ")[1] for line in lines], lines[0][:2], more) == (["Tea"], "* ", None)


async def test_a_month_is_counted(history: History) -> None:
    deep = Message.assistant("A leaf.", tokens=7, metadata={"search_type": "deep"})
    await history.append("chat-1", Message.user("What is tea?"), deep, owner="42")

    assert await shown("statistics.md").month(history, 42) == (
        "chats: 1\nquestions: 1, answers: 1\ntokens: 7\ndeep searches: 1"
    )


async def test_a_reply_is_streamed(history: History) -> None:
    assert await shown("streaming-replies.md", 0).answer(history, "chat-1", "42", chunks("A ", "leaf.")) == "A leaf."
    await shown("streaming-replies.md", 2).with_reasoning(history, "chat-1")
    with pytest.raises(RuntimeError, match="cut"):  # noqa: PT012 - the block of the reply raises
        async with history.reply("chat-1") as reply:
            await reply.add("half")
            raise RuntimeError("cut")

    assert await shown("streaming-replies.md", 1).cut_off(history, "chat-1") == ["half"]
    first, second, _ = await history.messages("chat-1")
    assert (first.text, first.message.tokens, second.text) == ("A leaf.", 42, "One moment.")


async def test_the_past_is_read(history: History) -> None:
    now = datetime.now(UTC)
    for days, text in ((2, "then"), (0, "now")):
        await history.append("chat-1", Message.user(text), occurred_at=now - timedelta(days=days))
    names = {"history": history, "chat": "chat-1", "when": now - timedelta(days=1)}
    code = compile(programs(DOCS / "howto/time-travel.md")[1], "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    done = eval(code, names)  # noqa: S307 - our own page
    assert isawaitable(done)
    await done

    assert await shown("time-travel.md", 0).what_the_user_saw(history, "chat-1", names["when"]) == ["then"]
    assert names["found"].message_count == 1  # type: ignore[attr-defined]


async def test_usage_is_kept_and_a_transcript_is_plain(history: History) -> None:
    await shown("tracing.md").keep(history, "chat-1", SimpleNamespace(text="A leaf."))

    [message] = await history.messages("chat-1")
    assert message.message.usage is not None and message.message.usage["input_tokens"] == 812
    assert "A leaf." in await shown("transcript.md").copy_for(history, "chat-1")


# Turns.


async def test_an_answer_to_what_has_changed_is_asked_for_again(history: History) -> None:
    await history.append("chat-1", Message.user("What is tea?"))
    asked: list[int] = []

    async def ask(page: Any) -> str:
        asked.append(len(page))
        if len(asked) == 1:
            await history.append("chat-1", Message.user("I mean coffee."))
        return "A bean."

    await shown("turn-safety.md", 0).answer(history, "chat-1", ask)

    assert (asked, await texts(history)) == ([1, 2], ["What is tea?", "I mean coffee.", "A bean."])


async def test_a_turn_is_appended_as_one(history: History) -> None:
    await history.append("chat-1", Message.user("What is tea?"))
    seen, context = await shown("turn-safety.md", 1).to_answer(history, "chat-1")
    turn = Message.assistant([ToolCall("c1", "look", {})]), Message.tool([ToolResult("c1", "A leaf.")])
    await shown("turn-safety.md", 2).say(history, "chat-1", seen, *turn, Message.assistant("A leaf."))
    seen = (await history.messages("chat-1")).seen

    assert await shown("turn-safety.md", 3).say_and_look(history, "chat-1", "In hot water.", seen) is True
    assert await shown("turn-safety.md", 4).put_aside(history, "chat-1") == []
    assert (len(context.messages), len(await texts(history))) == (1, 5)
    page = await history.messages("chat-1")
    outcome = await shown("ids-and-retries.md", 1).save(history, "chat-1", Message.assistant("Hot."), page)
    assert outcome == "it is in the history store, and it stands"
    again = await shown("ids-and-retries.md", 1).save(history, "chat-1", Message.assistant("Cold."), page)
    assert again == "the conversation has changed: read again"


async def test_a_question_is_answered_anew(history: History) -> None:
    await history.append("chat-1", Message.user("What is tea?"), Message.assistant("A bean."))

    await shown("undo-and-regenerate.md").on_retry(history, "chat-1", ask_model)

    assert await texts(history) == ["What is tea?", "answer to What is tea?"]


# Around it.


def test_a_web_service_mounts_the_console(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette", reason="needs starlette, of the extra console")
    monkeypatch.setenv("CONSOLE_TOKENS", "ada:reader:" + "t" * 32)

    [mount] = shown("console.md").service.routes

    assert mount.path == "/history"


def test_records_of_the_log_are_limited_for_a_handler_of_the_bot() -> None:
    logger = logging.getLogger("letopis")
    names: dict[str, Any] = {}
    try:
        exec(programs(DOCS / "reference" / "logging.md")[1], names)  # noqa: S102 - our own page
        assert names["handler"] in logger.handlers
        assert isinstance(names["handler"].filters[0], RepeatFilter)
    finally:
        logger.removeHandler(names["handler"])


def test_each_guide_with_a_program_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_howto*.py"))
    pages = [path for path in (DOCS / "howto").glob("*.md") if not path.name.endswith(".ru.md") and programs(path)]

    assert len(pages) > 40
    assert [page.name for page in pages if f'"{page.name}"' not in tests and page.name != "fastapi.md"] == []
