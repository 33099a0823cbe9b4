"""A bot of aiogram on a Bot API server: nothing that was received or sent is lost, whatever fails or is killed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiogram", reason="needs aiogram: pip install 'letopis[aiogram]'")

from aiogram import Bot, Dispatcher
from aiogram.client.default import DefaultBotProperties
from aiogram.types import Message
from aiogram.utils.formatting import Bold
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from letopis.adapters.aiogram import ChatHistory, LetopisChats
from letopis.adapters.telegram_core.incoming import IncomingRecorder
from letopis.outbox import History
from tests.support.bot_api import BotApi, until
from tests.support.bots import CHAT
from tests.support.bots.aiogram import bot_at, polling
from tests.support.sayings import present


@dataclass
class Bench:
    api: BotApi
    chats: LetopisChats
    dispatcher: Dispatcher
    bot: Bot

    @property
    def history(self) -> History:
        return self.chats.history

    @property
    def incoming(self) -> IncomingRecorder:
        return self.chats.parts_of(self.bot).incoming

    async def feed(self, update: dict[str, Any]) -> Any:
        return await self.dispatcher.feed_raw_update(self.bot, update)

    async def texts(self, conversation_id: str = CHAT) -> list[str]:
        return [one.text for one in await self.history.messages(conversation_id)]


def connected(api: BotApi, folder: Path, **attach: Any) -> Bench:
    """A dispatcher that has not started, and its bot."""
    chats = LetopisChats(folder / "bot.outbox.db", relay=False)
    dispatcher = Dispatcher(storage=chats.storage())
    chats.attach(dispatcher, **attach)
    return Bench(api, chats, dispatcher, bot_at(api.url, default=DefaultBotProperties(parse_mode="HTML")))


@contextlib.asynccontextmanager
async def started(bench: Bench) -> AsyncIterator[Bench]:
    """A bot that is not polling: updates are fed to it."""
    bot, dispatcher = bench.bot, bench.dispatcher
    await dispatcher.emit_startup(bot=bot, dispatcher=dispatcher, bots=(bot,))
    yield bench
    await dispatcher.emit_shutdown(bot=bot, dispatcher=dispatcher)
    await bot.session.close()


@pytest.fixture
async def bench(api: BotApi, tmp_path: Path) -> AsyncIterator[Bench]:
    async with started(connected(api, tmp_path, drain_seconds=1)) as made:
        yield made


async def test_polling_asks_telegram_for_all_that_is_recorded(api: BotApi, tmp_path: Path) -> None:
    """Without a handler for edits, aiogram itself does not."""
    bench = connected(api, tmp_path)
    bench.dispatcher.message()(Message.delete)
    async with polling(bench.dispatcher, bench.bot):
        await until(api, lambda: any(call.method == "getUpdates" for call in api.calls))
    asked = next(call.payload for call in api.calls if call.method == "getUpdates")
    assert {"message", "edited_message", "deleted_business_messages", "callback_query"} <= set(asked["allowed_updates"])


async def test_groups_and_business_chats_are_conversations_of_their_own(bench: Bench) -> None:
    @bench.dispatcher.business_message()
    async def business(message: Message, history: ChatHistory) -> None:
        await message.answer(f"answer for {history.key.business_id}")

    await bench.feed(bench.api.say("In the group", chat=-100))
    await bench.feed(bench.api.push(business_message=bench.api.message("For sale?", business_connection_id="conn")))
    assert await bench.texts("tg:7000:-100") == ["In the group"]
    assert await bench.texts("tg:7000:1001:bconn") == ["For sale?", "answer for conn"]
    group = present(await bench.history.chat("tg:7000:-100").conversation())
    assert group.title is None  # it would repeat what one of them said
    assert bench.api.sent()[0]["business_connection_id"] == "conn"


async def test_a_type_that_aiogram_does_not_know_is_recorded(bench: Bench) -> None:
    await bench.feed(bench.api.say("Hello"))
    with pytest.warns(RuntimeWarning, match="unknown update type"):
        await bench.feed(bench.api.push(telepathy={"chat": {"id": 1001, "type": "private"}, "thought": "tea"}))
    *_, kept = await bench.history.chat(CHAT).events()
    assert (kept.type, kept.data["telepathy"]["thought"]) == ("custom.telegram.telepathy", "tea")


async def test_files_albums_copies_edits_and_deletions_are_recorded(bench: Bench) -> None:
    from aiogram.types import BufferedInputFile, InputMediaPhoto

    file = BufferedInputFile(b"leaves", filename="tea.txt")
    sent = await bench.bot.send_document(1001, file, caption="The file")
    await bench.bot.send_media_group(1001, [InputMediaPhoto(media="a", caption="An album"), InputMediaPhoto(media="b")])
    await bench.bot.copy_message(1001, 42, 5)
    shown = await bench.bot.send_message(1001, "Thinking ...")
    await bench.bot.edit_message_text("A leaf.", chat_id=1001, message_id=shown.message_id)
    await bench.bot.delete_message(1001, sent.message_id)
    await bench.bot.send_chat_action(1001, "typing")

    found = await bench.history.messages(CHAT, every=True)
    assert [one.text for one in found] == ["", "An album", "", "A leaf."]
    assert found[0].redacted
    assert [one.delivery_data["sent_as"] for one in found] == ["file", "media_group", "copy", "message"]
    assert len(found[1].delivery_data["platform_ids"]["telegram"]) == 2


async def test_smart_send_takes_what_aiogram_formats(bench: Bench) -> None:
    @bench.dispatcher.message()
    async def answer(message: Message) -> None:
        await bench.chats.smart_send(message, Bold("A <leaf>"), reply=True)

    await bench.feed(bench.api.say("What is tea?"))
    sent = bench.api.calls[-1]
    assert (sent.method, sent.payload["text"]) == ("sendMessage", "A <leaf>")
    assert [one["type"] for one in sent.payload["entities"]] == ["bold"]
    assert "parse_mode" not in sent.payload
    assert sent.payload["reply_parameters"]["message_id"] == bench.api.updates[0]["message"]["message_id"]


@contextlib.asynccontextmanager
async def serving(handler: SimpleRequestHandler, bench: Bench) -> AsyncIterator[TestClient[Any, Any]]:
    app = web.Application()
    handler.register(app, path="/hook")
    setup_application(app, bench.dispatcher, bot=bench.bot)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_webhook_answers_after_the_update_is_recorded(api: BotApi, tmp_path: Path) -> None:
    bench = connected(api, tmp_path, drain_seconds=0.1)
    handled = asyncio.Event()

    @bench.dispatcher.message()
    async def answer(message: Message) -> None:
        handled.set()
        await asyncio.Event().wait()

    handler = bench.chats.webhook(bench.dispatcher, bench.bot, secret_token="s")
    async with serving(handler, bench) as client:
        refused = await client.post("/hook", json=api.say("Forged"))
        secret = {"X-Telegram-Bot-Api-Secret-Token": "s"}
        taken = await client.post("/hook", json=api.say("What is tea?"), headers=secret)
        found = await bench.texts()
        await handled.wait()  # aiogram handles it in the background, and reads its state from the history
        await bench.history.close()
        later = await client.post("/hook", json=api.say("And coffee?"), headers=secret)
    assert (refused.status, taken.status, later.status) == (401, 200, 503)
    assert found == ["What is tea?"]


async def test_the_handler_of_aiogram_answers_whatever_becomes_of_the_update(
    api: BotApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what would be lost."""
    bench = connected(api, tmp_path, drain_seconds=0.1)

    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(bench.incoming, "record", never)
    async with serving(SimpleRequestHandler(bench.dispatcher, bench.bot), bench) as client:
        taken = await client.post("/hook", json=api.say("What is tea?"))
        assert (taken.status, await bench.texts()) == (200, [])


async def test_a_method_that_a_handler_returns_is_sent_and_recorded(api: BotApi, tmp_path: Path) -> None:
    """As the answer to a webhook it would have no message id, ever."""
    bench = connected(api, tmp_path)

    @bench.dispatcher.message()
    async def answer(message: Message) -> Any:
        return message.answer("A leaf.")

    handler = bench.chats.webhook(bench.dispatcher, bench.bot, handle_in_background=False)
    async with serving(handler, bench) as client:
        await client.post("/hook", json=api.say("What is tea?"))
        [_, message] = await bench.history.messages(CHAT)
    assert api.texts() == ["A leaf."]
    assert message.delivery_data["platform_ids"] == {"telegram": api.sent()[0]["message_id"]}
