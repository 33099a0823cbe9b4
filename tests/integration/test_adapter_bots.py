"""Bots of aiogram and python-telegram-bot on a Bot API server: what both adapters promise, whatever fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.incoming import IncomingRecorder
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import OutgoingRecorder, unrecorded
from letopis.outbox import History, Rules
from letopis.store import Closed, Delivery, InvalidInput, OutboxFull
from tests.support.bot_api import BOT_ID, BotApi, until
from tests.support.bots import CHAT, shown_by
from tests.support.peers import refused_port

LONG = "\n\n".join(f"Paragraph {number}. " + "Words of tea. " * 20 for number in range(30))


@dataclass
class Asked:
    """A message that a handler was given."""

    message: Any
    chat: Any
    answer: Callable[[str], Awaitable[Any]]
    smart_send: Callable[..., Awaitable[Any]]

    @property
    def text(self) -> str:
        return str(self.message.text)


Handler = Callable[[Asked], Awaitable[object]]
Start = Callable[..., AbstractAsyncContextManager[Any]]


async def echo(asked: Asked) -> None:
    await asked.answer(f"answer to {asked.text}")


@asynccontextmanager
async def aiogram(api: BotApi, folder: Path, handler: Handler, attach: Any, **options: Any) -> AsyncIterator[Any]:
    from aiogram import Dispatcher

    from letopis.adapters.aiogram import LetopisChats
    from tests.support.bots.aiogram import bot_at, polling

    chats = LetopisChats(folder / "bot.outbox.db", **options)
    dispatcher = Dispatcher(storage=chats.storage())
    chats.attach(dispatcher, **attach)

    @dispatcher.message()
    async def answer(message: Any, history: Any) -> None:
        await handler(Asked(message, history, message.answer, partial(chats.smart_send, message)))

    async with polling(dispatcher, bot_at(api.url)):
        yield chats


@asynccontextmanager
async def telegram(api: BotApi, folder: Path, handler: Handler, attach: Any, **options: Any) -> AsyncIterator[Any]:
    from telegram.ext import MessageHandler, filters

    from letopis.adapters.telegram import LetopisChats
    from tests.support.bots.telegram import on, polling

    chats = LetopisChats(folder / "bot.outbox.db", **options)

    async def answer(update: Any, _: Any) -> None:
        message = update.message
        await handler(Asked(message, chats.chat(update), message.reply_text, partial(chats.smart_send, update)))

    application = on(chats.builder(**attach).concurrent_updates(16), api).build()
    application.add_handler(MessageHandler(filters.UpdateType.MESSAGE & filters.TEXT, answer))
    async with polling(application):
        yield chats


@pytest.fixture(params=[aiogram, telegram])
def start(request: pytest.FixtureRequest, api: BotApi, tmp_path: Path) -> Start:
    """A function that starts a bot, which polls and answers, and returns its connection with the history."""
    pytest.importorskip(request.param.__name__, reason=f"needs pip install 'letopis[{request.param.__name__}]'")

    def start(handler: Handler = echo, attach: Any = None, **options: Any) -> AbstractAsyncContextManager[Any]:
        bot: Start = request.param
        return bot(api, tmp_path, handler, attach or {}, **{"relay": False, **options})

    return start


@pytest.fixture
async def before(tmp_path: Path) -> AsyncIterator[Chats]:
    """What an earlier process of the bot has left."""
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        yield Chats(history, BOT_ID, files=tmp_path / "files")


async def said(history: History, conversation: str = CHAT) -> list[tuple[str, str]]:
    return [(one.role, one.text) for one in await history.messages(conversation)]


async def test_replies_that_a_crash_or_a_failed_call_kept_back_are_sent(
    api: BotApi, before: Chats, start: Start
) -> None:
    outgoing, key = OutgoingRecorder(before), ChatKey(bot_id=BOT_ID, chat_id=1001)
    assert await outgoing.begin(key, "<b>Good day</b>", parse_mode="HTML")
    await before.history.close()
    async with start(sender=True) as chats:
        await until(api, lambda: api.texts() == ["<b>Good day</b>"])
        api.cut("sendMessage", accepted=False)
        await shown_by(api, "What is tea?")
        while await chats.history.unconfirmed():  # noqa: ASYNC110 - nothing rings
            await asyncio.sleep(0.01)
        messages = await chats.history.messages(CHAT)

    assert api.texts()[1] == "answer to What is tea?"
    modes = [call.payload.get("parse_mode") for call in api.calls if call.method == "sendMessage" and call.result]
    assert modes == ["HTML", None]
    assert [message.delivery for message in messages if message.role == "assistant"] == [Delivery.SENT] * 2


async def test_both_sides_are_recorded_and_the_history_closed_with_the_bot(
    api: BotApi, tmp_path: Path, start: Start
) -> None:
    async def remove(asked: Asked) -> None:
        with unrecorded():
            await asked.answer("one moment")
        await (await asked.answer("draft")).edit_text("final")
        await (await asked.answer("wrong")).delete()

    topic = f"tg:{BOT_ID}:-100123:t7"
    async with start(remove) as chats:
        update = api.say("What is coffee?", chat=-100123, message_thread_id=7, is_topic_message=True)
        await until(api, lambda: any(one.method == "deleteMessage" for one in api.calls))
        await until(api, lambda: api.confirmed >= update["update_id"])
        api.repeat(update)
        message = {**update["message"], "text": "What is tea?", "edit_date": update["message"]["date"] + 1}
        edit = api.push(edited_message=message)
        await until(api, lambda: api.confirmed >= edit["update_id"])
    with pytest.raises(Closed):
        await chats.history.messages(topic)
    assert api.texts() == ["one moment", "draft", "wrong"]
    assert {one["message_thread_id"] for one in api.sent()} == {7}
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        question, answered, wrong = await history.messages(topic)
    assert (question.text, question.edited, question.message.author) == ("What is tea?", True, CHAT)
    assert (answered.text, wrong.redacted) == ("final", True)
    assert answered.delivery_data["platform_ids"] == {"telegram": api.sent()[1]["message_id"]}


async def test_calls_that_fail_are_told_from_those_that_nobody_knows(api: BotApi, start: Start) -> None:
    failed: list[str] = []
    answered = asyncio.Event()

    async def answer(asked: Asked) -> None:
        try:
            await asked.answer(f"answer to {asked.text}")
        except Exception:
            failed.append(asked.text)
            if asked.text != "three":
                raise
            await asked.answer("answer to three")  # after the wait: the same message
            answered.set()

    async with start(answer) as chats:
        for text, trouble in (
            ("one", partial(api.fail, "sendMessage", 403, "Forbidden: bot was blocked by the user")),
            ("two", partial(api.cut, "sendMessage", accepted=True)),
            ("three", partial(api.fail, "sendMessage", 429, "Too Many Requests", retry_after=1)),
        ):
            trouble()
            api.say(text)
            await until(api, lambda text=text: text in failed)
        await answered.wait()
        messages = [one for one in await chats.history.messages(CHAT) if one.role == "assistant"]
        unconfirmed = [one.message.text for one in await chats.history.unconfirmed()]

    expected = {"one": Delivery.FAILED, "two": Delivery.APPENDED, "three": Delivery.SENT}
    assert {one.text.removeprefix("answer to "): one.delivery for one in messages} == expected
    assert (len(messages), unconfirmed) == (3, ["answer to two"])


async def test_a_group_that_becomes_a_supergroup_goes_on_and_the_call_is_repeated(api: BotApi, start: Start) -> None:
    api.fail("sendMessage", 400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-1005)
    async with start() as chats:
        await shown_by(api, "before", chat=-55)
        await shown_by(api, "after", chat=-1005)
        texts = [text for _, text in await said(chats.history, f"tg:{BOT_ID}:-55")]
    assert [one["chat"]["id"] for one in api.sent()] == [-1005, -1005]
    assert texts == ["before", "answer to before", "after", "answer to after"]


async def test_a_full_outbox_leaves_updates_with_telegram(
    api: BotApi, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they were handed out a second time."""
    refused, real = list[int](), IncomingRecorder.record

    async def full(recorder: IncomingRecorder, update: Any) -> Any:
        if sum(call.method == "getUpdates" and bool(call.result) for call in api.calls) < 2:
            refused.append(api.confirmed)
            raise OutboxFull("no space")
        return await real(recorder, update)

    monkeypatch.setattr(IncomingRecorder, "record", full)
    api.say("first")
    api.say("second")
    async with start() as chats:
        await until(api, lambda: len(api.texts()) == 2)
        texts = [text for _, text in await said(chats.history)]  # both updates may come before the first answer

    assert set(refused) == {0}
    assert sorted(texts) == ["answer to first", "answer to second", "first", "second"]
    assert all(texts.index(question) < texts.index(f"answer to {question}") for question in ("first", "second"))


async def test_a_backlog_of_nine_is_answered_each_once_and_what_was_not_handled_goes_first(
    api: BotApi, before: Chats, start: Start
) -> None:
    for number in range(3):
        await IncomingRecorder(before).record(api.say(f"old {number}"))  # Telegram was not told: they come again
    await before.history.close()
    order: list[str] = []
    elsewhere = asyncio.Event()

    async def answer(asked: Asked) -> None:
        if asked.message.chat.id != 1001:  # another chat does not wait
            elsewhere.set()
            return
        question = (await asked.chat.context(turns=20)).messages[-1].text
        order.append(question)
        if question.startswith("old"):
            await elsewhere.wait()
            await asyncio.sleep(0.02)
        order.append(question)
        await asked.answer(f"answer to {question}")

    for number in range(6):
        api.say(f"new {number}")
    api.say("elsewhere", chat=1002)
    async with start(answer) as chats:
        await until(api, lambda: len(api.texts()) == 9)
        assert len(await said(chats.history)) == 18

    assert order[:6] == [text for number in range(3) for text in [f"old {number}"] * 2]
    asked = [f"old {number}" for number in range(3)] + [f"new {number}" for number in range(6)]
    assert sorted(api.texts()) == sorted(f"answer to {one}" for one in asked)


async def test_a_long_answer_is_a_file_and_one_message_or_split(api: BotApi, start: Start) -> None:
    sent = []

    async def answer(asked: Asked) -> None:
        sent.append(await asked.smart_send(LONG, reply=True))

    topic = {"chat": -100, "message_thread_id": 7, "is_topic_message": True}
    async with start(answer) as chats:
        api.say("Tell me all")
        await until(api, lambda: len(sent) == 1)
        api.fail("sendDocument", 400, "Bad Request: not enough rights to send documents to the chat")
        api.say("And here", **topic)
        await until(api, lambda: len(sent) == 2)
        _, file = await chats.history.messages(CHAT)
        _, split = await chats.history.messages(f"tg:{BOT_ID}:-100:t7")
    assert [one.sent_as for one in sent] == ["file", "messages"]
    assert (file.text, file.delivery_data["sent_as"], split.text) == (LONG, "file", LONG)
    assert Path(file.delivery_data["file_path"]).read_text(encoding="utf-8") == LONG
    document, *parts = api.sent()
    [call, *_] = [one for one in api.calls if one.method == "sendDocument"]
    assert call.payload["document"]["bytes"].decode() == LONG and document["caption"].startswith("Paragraph 0.")
    assert [one["message_thread_id"] for one in parts] == [7] * len(sent[1].numbers)
    assert " ".join(one["text"] for one in parts).split() == LONG.split()
    assert split.delivery_data["platform_ids"]["telegram"] == list(sent[1].numbers)


async def test_the_menu_comes_before_the_handlers_of_the_bot(api: BotApi, start: Start) -> None:
    async with start(attach={"describe": True}) as chats:
        await shown_by(api, "What is tea?")
        await shown_by(api, "/new Coffee")
        await shown_by(api, "/list@fake_bot")
        rows = api.calls[-1].payload["reply_markup"]["inline_keyboard"]
        [data] = [button["callback_data"] for button, *_ in rows if button["text"].endswith("What is tea?")]
        listed, texts = api.sent()[-1], len(api.texts())
        api.press(data, listed)
        await until(api, lambda: any(one.method == "answerCallbackQuery" for one in api.calls))
        for trouble in ("message is not modified", "message can't be edited"):
            api.fail("editMessageText", 400, f"Bad Request: {trouble}")
            api.press(data, listed)
        await until(api, lambda: len(api.texts()) == texts + 1)  # what cannot be edited is sent anew
        assert api.texts()[-1].startswith("💬 «What is tea?»")
        await shown_by(api, "/rename")
        prompt = api.sent()[-1]
        local = IncomingRecorder(Chats(chats.history, BOT_ID, files="files")).local
        while await local.answered(CHAT, prompt["message_id"]) is None:  # noqa: ASYNC110 - nothing rings
            await asyncio.sleep(0.01)
        await shown_by(api, "Кофе", reply_to_message=prompt)
        await shown_by(api, "/list@other_bot")
        titles = {one.title for one in await chats.history.conversations(owner=CHAT)}
        active = await chats.history.active(CHAT)
        assert await said(chats.history, active.conversation_id) == [("assistant", "answer to /list@other_bot")]

    assert titles == {"What is tea?", "Кофе"}
    assert [one.method for one in api.calls].count("editMessageText") == 3
    described = [call.payload.get("language_code") for call in api.calls if call.method == "setMyCommands"]
    assert described == [None, "ru"]


async def test_a_bot_may_take_some_commands_and_its_own(api: BotApi, start: Start) -> None:
    async with start(attach={"commands": ["list"]}):
        assert await shown_by(api, "/new") == "answer to /new"
        assert (await shown_by(api, "/list")).startswith("Ваши чаты")
    with pytest.raises(InvalidInput, match="none of new, list"):
        async with start(attach={"commands": ["newest"]}):
            pass


async def test_users_hear_in_their_language_that_something_is_stuck(api: BotApi, start: Start) -> None:
    away = f"postgresql://nobody@127.0.0.1:{await refused_port()}/nowhere"
    async with start(relay=True, store=away, rules=Rules(hold=0.1, stuck_after=0.2)) as chats:
        await shown_by(api, "What is tea?")
        await until(api, lambda: any("⚠️" in text for text in api.texts()), 40)
        assert (await said(chats.history))[0] == ("user", "What is tea?")

    assert api.texts()[-1].startswith("⚠️ Ответ пока не попал в историю чата.")
