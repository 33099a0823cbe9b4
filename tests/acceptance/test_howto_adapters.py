"""The guides and tutorials to frameworks are right: their code runs with a model of ours, and prints what they show."""

import asyncio
import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from letopis.adapters.voxpersona.__main__ import command
from letopis.store import Delivery, Message
from tests.support import pages
from tests.support.bot_api import TOKEN, bot_api
from tests.support.bots import CHAT, run_example, shown_by
from tests.support.paths import ROOT
from tests.support.relays import until
from tests.support.story import nothing

pytestmark = pytest.mark.slow  # whichever is the first to need a framework imports it
HOWTO, TUTORIALS = ROOT / "docs" / "howto", ROOT / "docs" / "tutorial"
LINES = 25
"""How many lines a bot takes at most to get a history, wrapped for a phone."""
SAID = ["What is tea?", "answer to What is tea?", "And coffee?", "answer to And coffee?"]
"""Of the conversation that each guide is put through."""
SHOWN = [
    ("What is tea?", Delivery.APPENDED),
    ("answer to What is tea?", Delivery.SENT),
    ("Tea is a leaf.", Delivery.SENT),
]
"""By the guides to bots on Telegram."""


async def ask_model(messages: Any) -> str:
    return f"answer to {messages[-1].text}"


def code_of(page: str, place: int = 0) -> str:
    return pages.programs(HOWTO / page)[place]


def names_of(page: str, *more: int) -> dict[str, Any]:
    """Run the first block of a guide, which is short, and others; return what they define."""
    code = code_of(page)
    assert len([line for line in code.splitlines() if line.strip()]) < LINES
    names: dict[str, Any] = {}
    for place in (0, *more):
        go_on(page, place, names)
    return names


def go_on(page: str, place: int, names: dict[str, Any]) -> None:
    exec(compile(code_of(page, place), page, "exec"), names)  # noqa: S102 - our own page


@pytest.fixture
def bot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Be in an empty folder; return a function that returns the module of a framework's bot, if it is installed."""
    monkeypatch.chdir(tmp_path)

    def module_of(needs: str, name: str) -> Any:
        pytest.importorskip(needs, reason=f"needs {needs}: install the group adapters")
        return importlib.import_module(f"tests.support.bots.{name}")

    return module_of


async def texts(history: Any, conversation_id: str = "chat-1") -> list[str]:
    return [one.text for one in await history.messages(conversation_id)]


async def talk(names: dict[str, Any], *given: Any) -> None:
    for question, answer in (SAID[:2], SAID[2:]):
        assert await names["answer"](*given, question) == answer


async def ready(history: Any) -> None:
    """Have the history store created, which takes a slow machine longer than a read waits."""
    await history.append("warm-up", Message.user("hello"))
    assert await history.drained(timeout=60)


async def test_openai_agents(bot: Any) -> None:
    model = bot("agents", "openai_agents").FakeModel(nothing)
    names = names_of("openai-agents.md")
    names["agent"].model = model
    history = names["history"]
    await talk(names, "chat-1", "42")
    go_on("openai-agents.md", 1, names)
    assert len(await names["session"].get_items()) == 4
    assert [chat.conversation_id for chat in await history.conversations(owner="42")] == ["chat-1"]
    await history.close()


async def test_langchain(bot: Any) -> None:
    model = bot("langchain_core", "langchain").FakeModel(thinks=nothing)
    names = names_of("langchain.md")
    with warnings.catch_warnings(action="ignore"):  # deprecated
        chain = names["chain_of"](model)
    asked = {"configurable": {"session_id": "chat-1"}}

    assert (await chain.ainvoke({"question": SAID[0]}, asked)).content == SAID[1]
    await chain.ainvoke({"question": SAID[2]}, asked)

    assert await texts(names["history"]) == SAID
    await names["history"].close()


async def test_llama_index(bot: Any) -> None:
    model = bot("llama_index.core", "llama_index").FakeModel
    names = names_of("llama-index.md")

    await talk(names, model(nothing), "chat-1")
    assert [message.content for message in await names["store"].get_messages("chat-1", limit=2)] == SAID[2:]
    await names["history"].close()


def test_haystack(bot: Any) -> None:
    model = bot("haystack_experimental", "haystack").FakeModel(lambda _: None)
    names = names_of("haystack.md", 1)
    names["pipeline"] = names["pipeline_of"](model)

    assert names["answer"](names["pipeline"], "chat-1", SAID[0]) == SAID[1]
    names["answer"](names["pipeline"], "chat-1", SAID[2])

    assert [message.text for message in names["store"].retrieve_messages("chat-1", 1)] == SAID[2:]
    names["store"].close()


async def test_agent_framework(bot: Any) -> None:
    model = bot("agent_framework", "agent_framework").FakeModel(nothing)
    page = "agent-framework.md"
    names = names_of(page)
    history, agent = names["history"], names["agent_of"](model)
    await talk(names, agent, "chat-1")
    assert await texts(history) == SAID
    assert [one.text for one in model.asked[1]][-3:] == SAID[:3]
    with warnings.catch_warnings(action="ignore"):  # experimental
        go_on(page, 1, names)
    assert await names["answer_with_state"](agent, "chat-1", "And milk?") == "answer to And milk?"
    session = await names["sessions"].get("chat-1")
    assert session.session_id == "chat-1" and len(await history.messages("chat-1")) == 6
    go_on(page, 2, names)
    assert await names["storage"].get_latest(workflow_name="flow") is None
    await history.close()


async def test_google_adk(bot: Any) -> None:
    model = bot("google.adk", "google_adk").FakeModel(model="fake", thinks=nothing)
    page = "google-adk.md"
    names = names_of(page)
    history = names["history"]
    await ready(history)

    await talk(names, model, "42", "chat-1")
    assert await texts(history, "adk/shop/42/chat-1") == SAID
    go_on(page, 2, names)
    assert await names["newest_sessions"]("42") == (["chat-1"], None)
    go_on(page, 1, names)
    await names["by_chat"].create_session(
        app_name="shop", user_id="42", session_id="chat-2", state={"user:name": "Ada"}
    )
    assert [chat.conversation_id for chat in await history.conversations(owner="shop:42")] == ["chat-2"]
    space = history.records(space="google_adk.user/shop/42")
    assert len(await space.list()) == 1
    await space.erase()
    assert await names["service"].get_user_state(app_name="shop", user_id="42") == {}
    await history.close()


async def test_pydantic_ai(bot: Any) -> None:
    model = bot("pydantic_ai", "pydantic_ai").fake_model(nothing)
    page = "pydantic-ai.md"
    names = names_of(page)
    history = names["history"]
    await ready(history)

    await talk(names, model, "chat-1", "42")
    assert await texts(history) == SAID
    assert [chat.conversation_id for chat in await history.conversations(owner="42")] == ["chat-1"]
    go_on(page, 1, names)
    branched = await names["regenerate"]("chat-1", 3)
    assert [message.parts[0].content for message in branched.messages][-1] == SAID[2]
    assert len(await history.messages("chat-1")) == 3
    go_on(page, 2, names)
    assert await names["careful"].load("chat-1") == branched
    await history.close()


def test_strands(bot: Any) -> None:
    model = bot("strands", "strands").FakeModel(nothing)
    page = "strands.md"
    names = names_of(page)

    assert names["answer"](model, "chat-1", SAID[0]).strip() == SAID[1]
    names["answer"](model, "chat-1", SAID[2])

    assert asyncio.run(texts(names["history"])) == SAID
    assert [one["content"][0]["text"] for one in model.asked[1]] == SAID[:3]
    if hasattr(importlib.import_module("strands.session"), "SnapshotSessionManager"):
        go_on(page, 1, names)
        names["answer_from_snapshot"](model, "chat-2", SAID[0])
        names["answer_from_snapshot"](model, "chat-2", SAID[2])
        assert [one["content"][0]["text"] for one in model.asked[3]] == SAID[:3]
    asyncio.run(names["history"].close())


# Bots on Telegram, on servers of ours.


async def seen(api: Any, history: Any) -> None:
    """Require what the bots of both guides show and record."""
    assert [(one.text, one.delivery) for one in await history.messages(CHAT)] == SHOWN
    assert api.texts()[1].startswith("Ваши чаты")
    assert api.texts()[2:] == ["One moment ...", "Tea is a leaf."]


async def test_aiogram(bot: Any) -> None:
    types = pytest.importorskip("aiogram.types", reason="needs aiogram: install the group adapters")
    from aiogram import Dispatcher
    from aiohttp import web

    from tests.support.bots.aiogram import bot_at, polling

    names = names_of("aiogram.md", 1, 2, 3)
    names["ask_model"] = ask_model
    chats = names["chats"]
    with bot_api() as api:
        ours = bot_at(api.url)
        async with polling(names["dp"], ours, close_bot_session=False):
            assert await shown_by(api, "What is tea?") == "answer to What is tea?"
            await shown_by(api, "/list")
            message = types.Message.model_validate(api.updates[0]["message"], context={"bot": ours})
            await names["wait"](message)
            await names["show"](chats, message)
            await seen(api, chats.history)
        await ours.session.close()
        assert isinstance(names["app_of"](chats, Dispatcher(), ours, "secret"), web.Application)


async def test_python_telegram_bot(bot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ext = pytest.importorskip("telegram.ext", reason="needs python-telegram-bot: install the group adapters")
    from tests.support.bots.telegram import on, polling

    monkeypatch.setenv("BOT_TOKEN", TOKEN)
    names = names_of("python-telegram-bot.md", 1, 2, 3)
    names["ask_model"] = ask_model
    chats = names["chats"]
    with bot_api() as api:
        application = on(chats.builder(), api).persistence(chats.persistence()).build()
        for verb in ("wait", "show"):
            application.add_handler(ext.CommandHandler(verb, names[verb]))
        application.add_handler(ext.MessageHandler(ext.filters.TEXT & ~ext.filters.COMMAND, names["answer"]))
        async with polling(application):
            assert await shown_by(api, "What is tea?") == "answer to What is tea?"
            for text in ("/list", "/wait", "/show"):
                await shown_by(api, text)
            await application.update_queue.join()
            await seen(api, chats.history)
    assert names["application"].persistence is not None


async def test_pyrogram(bot: Any) -> None:
    pytest.importorskip("pyrogram", reason="needs Kurigram: install the group adapters")
    from tests.support.pyrogram_clients import Offline, dispatching

    names = names_of("pyrogram.md")
    names["ask_model"] = ask_model
    client = Offline()
    names["bot_of"](client)
    async with dispatching(client):
        client.say(7, "What is tea?")
        await until(lambda: len(client.calls) == 1)
        await until(client.dispatcher.updates_queue.empty)
    async with names["recorder"] as recorder:
        assert await texts(recorder.history, CHAT) == SAID[:2]


@pytest.mark.parametrize(("needs", "example"), [("aiogram", "aiogram_bot.py"), ("telegram.ext", "ptb_bot.py")])
async def test_the_example_of_a_bot(needs: str, example: str, tmp_path: Path) -> None:
    pytest.importorskip(needs, reason=f"needs {needs}: install the group adapters")
    await run_example(example, tmp_path)


def test_voxpersona(bot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bot goes on with the chats that the page's commands imported."""
    config = ModuleType("config")
    config.CONVERSATIONS_DIR = "conversations"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "config", config)
    folder, chat = tmp_path / "conversations" / "user_4711", "0" * 36
    folder.mkdir(parents=True)
    about = {"conversation_id": chat, "user_id": 4711, "username": "ada", "title": "Чай", "chat_number": 3}
    about |= {"created_at": "2025-11-01T09:00:00", "is_active": True, "message_count": 1}
    said = {"timestamp": "2025-11-01T10:00:00", "message_id": 7, "type": "user_question", "text": "Что такое чай?"}
    index = {"user_id": 4711, "username": "ada", "last_active_conversation_id": chat, "next_chat_number": 4}
    (folder / f"{chat}.json").write_text(json.dumps({"metadata": about, "messages": [said]}), encoding="utf-8")
    (folder / "index.json").write_text(json.dumps({**index, "conversations": [about]}), encoding="utf-8")

    page = (HOWTO / "voxpersona.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^python -m letopis\.adapters\.voxpersona (.*)$", page, re.MULTILINE)
    tried, done = (CliRunner().invoke(command, line.partition("--store")[0].split()) for line in lines)
    assert (tried.exit_code, done.exit_code) == (0, 0), (tried.output, done.output)
    assert "1 messages can be imported" in tried.output
    assert "1 messages imported, 0 already there" in done.output

    manager = names_of("voxpersona.md")["conversation_manager"]

    assert manager.get_active_conversation_id(4711) == chat
    assert [one.text for one in manager.get_messages(4711, chat)] == ["Что такое чай?"]
    manager.close()


# Tutorials.


def typed(line: str, folder: Path, *, shell: Callable[[str, Path], str]) -> str:
    """Run a program of a page in this process, which has its framework imported; type what is more than that."""
    words = shlex.split(line)
    if words[0] != ".venv/bin/python" or "||" in words:
        return shell(line, folder)
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(action="error"),
    ):
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(sys, "argv", words[1:])
        for module in folder.glob("*.py"):
            sys.modules.pop(module.stem, None)
        runpy.run_path(words[1], run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize(
    ("page", "needs"),
    [
        ("first-bot.md", "letopis"),
        ("agent-openai-agents.md", "agents"),
        ("agent-langgraph.md", "langgraph.graph"),
        ("agent-llama-index.md", "llama_index.core"),
    ],
)
def test_a_tutorial_shows_what_is_seen(page: str, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(needs, reason=f"needs {needs}: pip install --group adapters")
    monkeypatch.setattr(pages, "typed", partial(typed, shell=pages.typed))

    steps = list(pages.follow(TUTORIALS / page, tmp_path))

    assert len(steps) >= 4
    assert [str(step) for step in steps if not step.holds] == []
