"""The guides to python-telegram-bot and Pyrogram are right, and the example runs, on servers of ours."""

from pathlib import Path

import pytest

pytest.importorskip("telegram.ext", reason="needs python-telegram-bot: pip install 'letopis[telegram]'")

from telegram.ext import CommandHandler, MessageHandler, filters

from tests.acceptance.test_howto_adapters import SHOWN, ask_model, names_of
from tests.support.bot_api import TOKEN, bot_api
from tests.support.bots import CHAT, run_example, shown_by
from tests.support.telegram_bots import on, polling

PAGE = "python-telegram-bot.md"


async def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOT_TOKEN", TOKEN)
    names = names_of(PAGE, 1, 2, 3)
    names["ask_model"] = ask_model
    chats = names["chats"]

    with bot_api() as api:
        application = on(chats.builder(), api).persistence(chats.persistence()).build()
        application.add_handler(CommandHandler("wait", names["wait"]))
        application.add_handler(CommandHandler("show", names["show"]))
        application.add_handler(MessageHandler(filters.TEXT & ~filters.COMMAND, names["answer"]))
        async with polling(application):
            assert await shown_by(api, "What is tea?") == "answer to What is tea?"
            for text in ("/list", "/wait", "/show"):
                await shown_by(api, text)
            await application.update_queue.join()
            found = await chats.history.messages(CHAT)

    assert names["application"].persistence is not None
    assert [(one.text, one.delivery) for one in found] == SHOWN
    assert api.texts()[1].startswith("Ваши чаты")
    assert api.texts()[2:] == ["One moment ...", "Tea is a leaf."]


async def test_the_guide_to_pyrogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyrogram", reason="needs Kurigram: pip install 'letopis[pyrogram]'")
    from tests.support.pyrogram_clients import Offline, dispatching
    from tests.support.relays import until

    monkeypatch.chdir(tmp_path)
    names = names_of("pyrogram.md")
    names["ask_model"] = ask_model
    client = Offline()
    names["bot_of"](client)
    async with dispatching(client):
        client.say(7, "What is tea?")
        await until(lambda: len(client.calls) == 1)
        await until(client.dispatcher.updates_queue.empty)
    async with names["recorder"] as recorder:
        found = [one.text for one in await recorder.history.messages(CHAT)]

    assert found == ["What is tea?", "answer to What is tea?"]


@pytest.mark.slow
async def test_the_example(tmp_path: Path) -> None:
    await run_example("ptb_bot.py", tmp_path)
