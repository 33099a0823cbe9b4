"""The guide and the example of aiogram are right: they run on a Bot API server."""

from pathlib import Path

import pytest

pytest.importorskip("aiogram", reason="needs aiogram: pip install 'letopis[aiogram]'")

from aiogram import Dispatcher
from aiogram.types import Message
from aiohttp import web

from tests.acceptance.test_howto_adapters import SHOWN, ask_model, names_of
from tests.support.aiogram_bots import bot_at, polling
from tests.support.bot_api import bot_api
from tests.support.bots import CHAT, run_example, shown_by

PAGE = "aiogram.md"


async def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = names_of(PAGE, 1, 2, 3)
    names["ask_model"] = ask_model
    chats, dispatcher = names["chats"], names["dp"]

    with bot_api() as api:
        bot = bot_at(api.url)
        async with polling(dispatcher, bot, close_bot_session=False):
            assert await shown_by(api, "What is tea?") == "answer to What is tea?"
            await shown_by(api, "/list")
            message = Message.model_validate(api.updates[0]["message"], context={"bot": bot})
            await names["wait"](message)
            await names["show"](chats, message)
            found = await chats.history.messages(CHAT)
        await bot.session.close()
        assert isinstance(names["app_of"](chats, Dispatcher(), bot, "secret"), web.Application)

    assert [(one.text, one.delivery) for one in found] == SHOWN
    assert api.texts()[1].startswith("Ваши чаты")
    assert api.texts()[2:] == ["One moment ...", "Tea is a leaf."]


@pytest.mark.slow
async def test_the_example(tmp_path: Path) -> None:
    await run_example("aiogram_bot.py", tmp_path)
