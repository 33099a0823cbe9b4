"""A bot of aiogram on a Bot API server: nothing that was received or sent is lost, whatever fails or is killed."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiogram", reason="needs aiogram: pip install 'letopis[aiogram]'")

from aiogram import Bot, Dispatcher, F
from aiogram.client.default import DefaultBotProperties
from aiogram.exceptions import TelegramForbiddenError, TelegramNetworkError, TelegramRetryAfter
from aiogram.types import Message
from aiogram.utils.formatting import Bold
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from letopis.adapters.aiogram import ChatHistory, LetopisChats, unrecorded
from letopis.adapters.telegram_core.incoming import IncomingRecorder
from letopis.outbox import History, Rules
from letopis.store import Delivery, InvalidInput
from tests.support.aiogram_bots import bot_at, polling
from tests.support.bot_api import BotApi, until
from tests.support.bots import CHAT, shown_by
from tests.support.peers import refused_port
from tests.support.sayings import present

LONG = "\n\n".join(f"Paragraph {number}. " + "Words of tea. " * 20 for number in range(30))


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


def connected(api: BotApi, folder: Path, *, attach: Any = None, parse_mode: str | None = None, **options: Any) -> Bench:
    """A dispatcher that has not started, and its bot."""
    chats = LetopisChats(folder / "bot.outbox.db", **{"relay": False, **options})
    dispatcher = Dispatcher(storage=chats.storage())
    chats.attach(dispatcher, **attach or {})
    return Bench(api, chats, dispatcher, bot_at(api.url, default=DefaultBotProperties(parse_mode=parse_mode)))


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
    async with started(connected(api, tmp_path, attach={"drain_seconds": 1}, parse_mode="HTML")) as made:
        yield made


def echo(bench: Bench) -> list[str]:
    """Let the bot answer what it was asked; return what it was asked."""
    asked: list[str] = []

    @bench.dispatcher.message()
    async def answer(message: Message, history: ChatHistory) -> None:
        context = await history.context(turns=20)
        asked.append(context.messages[-1].text)
        await message.answer(f"answer to {asked[-1]}")

    return asked


@contextlib.asynccontextmanager
async def echoing(api: BotApi, folder: Path, **options: Any) -> AsyncIterator[Bench]:
    """A bot that polls, and answers what it is asked."""
    bench = connected(api, folder, **options)
    echo(bench)
    async with polling(bench.dispatcher, bench.bot):
        yield bench


# Sent again.


async def test_replies_that_a_crash_or_a_failed_call_kept_back_are_sent(api: BotApi, tmp_path: Path) -> None:
    async with started(connected(api, tmp_path, parse_mode="HTML")) as bench:
        api.cut("sendMessage", accepted=False)
        with pytest.raises(TelegramNetworkError):
            await bench.bot.send_message(1001, "<b>Good day</b>")
    async with echoing(api, tmp_path, parse_mode="HTML", sender=True) as bench:
        await until(api, lambda: api.texts() == ["<b>Good day</b>"])
        api.cut("sendMessage", accepted=False)
        await shown_by(api, "What is tea?")
        while await bench.history.unconfirmed():  # noqa: ASYNC110 - nothing rings
            await asyncio.sleep(0.01)
        messages = await bench.history.messages(CHAT)

    assert api.texts()[1] == "answer to What is tea?"
    modes = [call.payload.get("parse_mode") for call in api.calls if call.method == "sendMessage" and call.result]
    assert modes == ["HTML", "HTML"]
    assert [message.delivery for message in messages if message.role == "assistant"] == [Delivery.SENT] * 2


# A turn.


async def test_polling_records_both_sides_and_closes_with_the_bot(api: BotApi, tmp_path: Path) -> None:
    async with echoing(api, tmp_path, attach={"describe": True}, relay=True):
        assert await shown_by(api, "What is tea?") == "answer to What is tea?"
        api.push(edited_message={**api.updates[0]["message"], "text": "What is coffee?", "edit_date": 1_790_000_000})
        await until(api, lambda: api.confirmed == 2)

    async with History(tmp_path / "bot.outbox.db") as history:
        found = await history.messages(CHAT)
    assert [(one.role, one.text, one.edited) for one in found] == [
        ("user", "What is coffee?", True),
        ("assistant", "answer to What is tea?", False),
    ]
    assert found[1].delivery_data["platform_ids"] == {"telegram": api.sent()[0]["message_id"]}
    # Without a handler for edits, aiogram does not ask Telegram for them.
    asked = next(call.payload for call in api.calls if call.method == "getUpdates")
    assert {"message", "edited_message", "deleted_business_messages", "callback_query"} <= set(asked["allowed_updates"])
    described = [call.payload for call in api.calls if call.method == "setMyCommands"]
    assert [one.get("language_code") for one in described] == [None, "ru"]


async def test_an_update_that_comes_again_is_handled_once(bench: Bench) -> None:
    begun, go, count = asyncio.Event(), asyncio.Event(), 0

    @bench.dispatcher.message()
    async def answer(message: Message) -> None:
        nonlocal count
        count += 1
        begun.set()
        await go.wait()

    update = bench.api.say("What is tea?")
    first = asyncio.create_task(bench.feed(update))
    await begun.wait()
    await bench.feed(update)
    go.set()
    await first
    await bench.feed(update)
    assert (count, await bench.texts()) == (1, ["What is tea?"])


async def test_a_handler_that_raises_has_ended(bench: Bench) -> None:
    @bench.dispatcher.message()
    async def answer(message: Message) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await bench.feed(bench.api.say("What is tea?"))
    assert await bench.incoming.unhandled() == []
    assert await bench.texts() == ["What is tea?"]


async def test_groups_topics_and_business_chats_are_conversations_of_their_own(bench: Bench) -> None:
    echo(bench)

    @bench.dispatcher.business_message()
    async def business(message: Message, history: ChatHistory) -> None:
        await message.answer(f"answer for {history.key.business_id}")

    topic = {"message_thread_id": 7, "is_topic_message": True}
    await bench.feed(bench.api.say("In the group", chat=-100))
    await bench.feed(bench.api.say("In the topic", chat=-100, **topic))
    await bench.feed(bench.api.push(business_message=bench.api.message("For sale?", business_connection_id="conn")))
    assert await bench.texts("tg:7000:-100") == ["In the group", "answer to In the group"]
    assert await bench.texts("tg:7000:-100:t7") == ["In the topic", "answer to In the topic"]
    assert await bench.texts("tg:7000:1001:bconn") == ["For sale?", "answer for conn"]
    [in_group, _] = await bench.history.messages("tg:7000:-100")
    assert in_group.message.author == "tg:7000:1001"  # the owner of the person's private chat
    group = present(await bench.history.chat("tg:7000:-100").conversation())
    assert group.title is None  # it would repeat what one of them said
    _, to_topic, for_business = bench.api.sent()
    assert (to_topic["message_thread_id"], for_business["business_connection_id"]) == (7, "conn")


async def test_a_group_that_becomes_a_supergroup_goes_on_and_the_call_is_repeated(bench: Bench) -> None:
    echo(bench)
    bench.api.fail("sendMessage", 400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-1005)
    await bench.feed(bench.api.say("Before", chat=-5))
    await bench.feed(bench.api.say("After", chat=-1005))
    assert await bench.texts("tg:7000:-5") == ["Before", "answer to Before", "After", "answer to After"]
    assert [one["chat"]["id"] for one in bench.api.sent()] == [-1005, -1005]


async def test_a_type_that_aiogram_does_not_know_is_recorded(bench: Bench) -> None:
    await bench.feed(bench.api.say("Hello"))
    with pytest.warns(RuntimeWarning, match="unknown update type"):
        await bench.feed(bench.api.push(telepathy={"chat": {"id": 1001, "type": "private"}, "thought": "tea"}))
    *_, kept = await bench.history.chat(CHAT).events()
    assert (kept.type, kept.data["telepathy"]["thought"]) == ("custom.telegram.telepathy", "tea")


# What is sent.


async def test_calls_that_fail_are_told_from_those_that_nobody_knows(bench: Bench) -> None:
    bench.api.fail("sendMessage", 403, "Forbidden: bot was blocked by the user")
    with pytest.raises(TelegramForbiddenError):
        await bench.bot.send_message(1001, "One")
    bench.api.cut("sendMessage")
    with pytest.raises(TelegramNetworkError):
        await bench.bot.send_message(1001, "Two")
    bench.api.fail("sendMessage", 429, "Too Many Requests", retry_after=1)
    with pytest.raises(TelegramRetryAfter):
        await bench.bot.send_message(1001, "Three")
    await bench.bot.send_message(1001, "Three")
    found = [(one.text, one.delivery) for one in await bench.history.messages(CHAT)]
    assert found == [("One", Delivery.FAILED), ("Two", Delivery.APPENDED), ("Three", Delivery.SENT)]
    assert [one.message.text for one in await bench.history.unconfirmed() if one.message] == ["Two"]


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
    with unrecorded():
        await bench.bot.send_message(1001, "A notice")

    found = await bench.history.messages(CHAT, every=True)
    assert [one.text for one in found] == ["", "An album", "", "A leaf."]
    assert found[0].redacted
    assert [one.delivery_data["sent_as"] for one in found] == ["file", "media_group", "copy", "message"]
    assert len(found[1].delivery_data["platform_ids"]["telegram"]) == 2


async def test_smart_send_is_one_call(bench: Bench, tmp_path: Path) -> None:
    @bench.dispatcher.message()
    async def answer(message: Message) -> None:
        await bench.chats.smart_send(message, Bold("A <leaf>") if message.text == "Short" else LONG, reply=True)

    await bench.feed(bench.api.say("Short"))
    await bench.feed(bench.api.say("Long"))
    short, long = bench.api.calls[-2:]
    assert (short.method, short.payload["text"]) == ("sendMessage", "A <leaf>")
    assert [one["type"] for one in short.payload["entities"]] == ["bold"]
    assert "parse_mode" not in short.payload
    assert short.payload["reply_parameters"]["message_id"] == bench.api.updates[0]["message"]["message_id"]
    assert (long.method, long.payload["document"]["bytes"].decode()) == ("sendDocument", LONG)
    assert long.payload["document"]["file"] == "otvet.txt"
    [_, _, _, message] = await bench.history.messages(CHAT)
    assert (message.text, message.delivery_data["sent_as"]) == (LONG, "file")
    assert Path(message.delivery_data["file_path"]).parent == tmp_path / "bot.outbox.db.files"


async def test_smart_send_splits_when_the_file_fails(bench: Bench) -> None:
    await bench.feed(bench.api.say("Long", chat=-100, message_thread_id=7, is_topic_message=True))
    bench.api.fail("sendDocument", 413, "Request Entity Too Large")
    question = Message.model_validate(bench.api.updates[0]["message"], context={"bot": bench.bot})
    sent = await bench.chats.smart_send(question, LONG)
    assert sent.sent_as == "messages"
    assert [one["message_thread_id"] for one in bench.api.sent()] == [7] * len(sent.numbers)
    assert " ".join(bench.api.texts()).split() == LONG.split()
    [_, message] = await bench.history.messages("tg:7000:-100:t7")
    assert message.delivery_data["platform_ids"]["telegram"] == list(sent.numbers)


# Webhooks.


@contextlib.asynccontextmanager
async def serving(handler: SimpleRequestHandler, bench: Bench) -> AsyncIterator[TestClient[Any, Any]]:
    app = web.Application()
    handler.register(app, path="/hook")
    setup_application(app, bench.dispatcher, bot=bench.bot)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_webhook_answers_after_the_update_is_recorded(api: BotApi, tmp_path: Path) -> None:
    bench = connected(api, tmp_path, attach={"drain_seconds": 0.1})

    @bench.dispatcher.message()
    async def answer(message: Message) -> None:
        await asyncio.Event().wait()

    handler = bench.chats.webhook(bench.dispatcher, bench.bot, secret_token="s")
    async with serving(handler, bench) as client:
        refused = await client.post("/hook", json=api.say("Forged"))
        secret = {"X-Telegram-Bot-Api-Secret-Token": "s"}
        taken = await client.post("/hook", json=api.say("What is tea?"), headers=secret)
        found = await bench.texts()
        await bench.history.close()
        later = await client.post("/hook", json=api.say("And coffee?"), headers=secret)
    assert (refused.status, taken.status, later.status) == (401, 200, 503)
    assert found == ["What is tea?"]


async def test_the_handler_of_aiogram_answers_whatever_becomes_of_the_update(
    api: BotApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what would be lost."""
    bench = connected(api, tmp_path, attach={"drain_seconds": 0.1})

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


# Crashes.


async def test_an_end_before_telegram_was_told_handles_the_update_once(api: BotApi, tmp_path: Path) -> None:
    """It is handled because it was not, and comes from Telegram again at the same time."""
    update = api.say("What is tea?")
    async with started(connected(api, tmp_path)) as bench:
        await bench.incoming.record(update)
    async with echoing(api, tmp_path):
        await until(api, lambda: api.texts() == ["answer to What is tea?"] and api.confirmed == 1)
        await shown_by(api, "And coffee?")
    assert api.texts() == ["answer to What is tea?", "answer to And coffee?"]


async def test_a_backlog_of_nine_is_answered_nine_times_each_once(api: BotApi, tmp_path: Path) -> None:
    for number in range(9):
        api.say(f"question {number}")
    async with echoing(api, tmp_path):
        await until(api, lambda: len(api.texts()) == 9)
    assert sorted(api.texts()) == [f"answer to question {number}" for number in range(9)]


async def test_resumed_updates_of_a_chat_go_one_at_a_time_and_before_its_new_ones(api: BotApi, tmp_path: Path) -> None:
    async with started(connected(api, tmp_path)) as bench:
        for number in range(3):
            await bench.incoming.record(api.say(f"old {number}"))
    api.confirmed = 3  # Telegram was told
    order: list[str] = []
    elsewhere, done = asyncio.Event(), asyncio.Event()
    bench = connected(api, tmp_path)

    @bench.dispatcher.message()
    async def answer(message: Message) -> None:
        if message.chat.id != 1001:  # another chat does not wait
            elsewhere.set()
            return
        order.append(f"{message.text} begins")
        await elsewhere.wait()  # it came after the new one
        await asyncio.sleep(0)
        order.append(f"{message.text} ends")
        if message.text == "new":
            done.set()

    api.say("new")
    api.say("elsewhere", chat=1002)
    async with polling(bench.dispatcher, bench.bot):
        await asyncio.wait_for(done.wait(), 60)

    assert order == [f"{text} {moment}" for text in ("old 0", "old 1", "old 2", "new") for moment in ("begins", "ends")]


async def test_a_full_outbox_leaves_the_update_with_telegram(api: BotApi, tmp_path: Path) -> None:
    bench = connected(api, tmp_path, max_events=1)
    logging.getLogger("aiogram.dispatcher").disabled = True
    async with polling(bench.dispatcher, bench.bot):
        api.say("What is tea?")
        await until(api, lambda: sum(call.method == "getUpdates" and bool(call.result) for call in api.calls) >= 2)
        assert api.confirmed == 0
    logging.getLogger("aiogram.dispatcher").disabled = False


# The menu.


async def test_commands_come_before_handlers_that_take_every_message(bench: Bench) -> None:
    asked = echo(bench)
    await bench.feed(bench.api.say("What is tea?"))
    for text in ("/new Coffee", "/list", "/history", "/stats", "/search tea", "/switch", "/delete"):
        await bench.feed(bench.api.say(text))
    assert asked == ["What is tea?"]
    shown = bench.api.texts()[1:]
    assert [text.split()[0] for text in shown] == ["💬", "Ваши", "Здесь", "📊", "🔎", "Ваши", "🗑"]
    # No menu and no command is part of a conversation.
    assert await bench.texts() == ["What is tea?", "answer to What is tea?"]


async def test_buttons_change_the_message_that_they_are_below(bench: Bench) -> None:
    await bench.feed(bench.api.say("What is tea?"))
    await bench.feed(bench.api.say("/new Coffee"))
    await bench.feed(bench.api.say("/list"))
    listed = bench.api.sent()[-1]

    def button(part: str, payload: dict[str, Any]) -> str:
        rows = payload["reply_markup"]["inline_keyboard"]
        [data] = [one["callback_data"] for row in rows for one in row if part in one["text"]]
        return str(data)

    await bench.feed(bench.api.press(button("tea", bench.api.calls[-1].payload), listed))
    edited, answered = bench.api.calls[-2:]
    assert (edited.method, answered.method) == ("editMessageText", "answerCallbackQuery")
    assert edited.payload["text"].startswith("💬 «What is tea?»")
    switch = button("Перейти", edited.payload)
    await bench.feed(bench.api.press(switch, listed))
    assert (await bench.history.active(CHAT)).conversation_id == CHAT
    bench.api.fail("editMessageText", 400, "Bad Request: message is not modified")
    await bench.feed(bench.api.press(switch, listed))
    bench.api.fail("editMessageText", 400, "Bad Request: message can't be edited")
    await bench.feed(bench.api.press(switch, listed))
    assert bench.api.texts()[-1] == "✅ Вы в чате «What is tea?»."


async def test_rename_takes_the_answer_as_the_title(bench: Bench) -> None:
    echo(bench)
    await bench.feed(bench.api.say("What is tea?"))
    await bench.feed(bench.api.say("/rename"))
    asked = bench.api.calls[-1]
    assert asked.payload["reply_markup"]["force_reply"] == "True" or asked.payload["reply_markup"]["force_reply"]
    prompt = {**asked.result, "chat": {"id": 1001, "type": "private"}}
    await bench.feed(bench.api.say("Oolong", reply_to_message=prompt))
    assert present(await bench.history.chat(CHAT).conversation()).title == "Oolong"
    assert bench.api.texts()[-1] == "✅ Теперь чат называется «Oolong»."
    assert await bench.texts() == ["What is tea?", "answer to What is tea?"]


async def test_a_bot_may_take_some_commands_and_its_own(api: BotApi, tmp_path: Path) -> None:
    bench = connected(api, tmp_path, attach={"commands": ["list"]})

    @bench.dispatcher.message(F.text == "/new")
    async def own(message: Message) -> None:
        await message.answer("my own")

    async with started(bench):
        await bench.feed(api.say("/new"))
        await bench.feed(api.say("/list"))
    assert api.texts()[0] == "my own"
    assert api.texts()[1].startswith("Ваши чаты")
    with pytest.raises(InvalidInput, match="none of new, list"):
        bench.chats.attach(Dispatcher(), commands=["newest"])
    with pytest.raises(InvalidInput, match="attach once"):
        bench.chats.attach(Dispatcher())


# Alerts.


async def test_users_hear_in_their_language_that_something_is_stuck(api: BotApi, tmp_path: Path) -> None:
    away = f"postgresql://nobody@127.0.0.1:{await refused_port()}/nowhere"
    bench = connected(api, tmp_path, relay=True, store=away, rules=Rules(hold=0.1, stuck_after=0.2))
    async with polling(bench.dispatcher, bench.bot):
        api.say("What is tea?")
        await until(api, lambda: any("⚠️" in text for text in api.texts()), 40)
        found = await bench.texts()

    assert api.texts()[-1].startswith("⚠️ Ответ пока не попал в историю чата.")
    assert found == ["What is tea?"]
    with pytest.raises(InvalidInput, match="store and options"):
        LetopisChats(bench.history, store=away)
