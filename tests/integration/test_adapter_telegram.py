"""Bots on python-telegram-bot: the real application against a Bot API server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa

pytest.importorskip("telegram.ext", reason="needs python-telegram-bot: pip install 'letopis[telegram]'")

import httpx
from telegram import MessageEntity, Update
from telegram.error import BadRequest, Forbidden, TelegramError, TimedOut
from telegram.ext import (
    Application,
    BaseRateLimiter,
    CallbackQueryHandler,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    MessageHandler,
    SimpleUpdateProcessor,
    filters,
)

from letopis.adapters.telegram import LetopisChats, LetopisPersistence, unrecorded
from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import OutgoingRecorder
from letopis.outbox import History
from letopis.store import Delivery, InvalidInput, OutboxFull
from tests.support.bot_api import BOT_ID, TOKEN, BotApi, until
from tests.support.bots import CHAT, shown_by
from tests.support.sayings import present
from tests.support.servers.processes import free_port
from tests.support.telegram_bots import on, polling

Context = ContextTypes.DEFAULT_TYPE


@pytest.fixture
def chats(history: History, tmp_path: Path) -> LetopisChats:
    return LetopisChats(history, files=tmp_path / "files")


def handled_by(callback: Any, builder: Any, api: BotApi) -> Any:
    application = on(builder, api).build()
    application.add_handler(MessageHandler(filters.TEXT, callback))
    return application


def answering(chats: LetopisChats, api: BotApi, **options: Any) -> Any:
    async def answer(update: Update, context: Context) -> None:
        message = present(update.message)
        await message.reply_text(f"answer to {message.text}")

    return handled_by(answer, chats.builder(**options), api)


def persistent(history: History, **options: Any) -> LetopisPersistence[Any, Any, Any]:
    persistence = LetopisPersistence(history, **options)
    persistence.set_bot(Application.builder().token(TOKEN).build().bot)
    return persistence


async def said(history: History, conversation: str = CHAT) -> list[tuple[str, str]]:
    return [(one.role, one.text) for one in await history.messages(conversation)]


# Sent again.


async def test_replies_that_a_crash_or_a_failed_call_kept_back_are_sent(api: BotApi, tmp_path: Path) -> None:
    path = tmp_path / "bot.outbox.db"
    async with History(path, relay=False) as before:
        outgoing = OutgoingRecorder(Chats(before, BOT_ID, files=tmp_path / "files"))
        assert await outgoing.begin(ChatKey(bot_id=BOT_ID, chat_id=1001), "<b>Good day</b>", parse_mode="HTML")
    chats = LetopisChats(path, relay=False, sender=True)
    application = answering(chats, api)
    api.cut("sendMessage", accepted=False)  # of the first, which is tried once more
    async with polling(application):
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


# Recording.


async def test_recorded_first(api: BotApi, chats: LetopisChats, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the outbox takes nothing, Telegram keeps the update; then it comes once."""
    refused, application = list[int](), answering(chats, api)
    real = chats.parts.incoming.record

    async def full(update: Any) -> Any:
        if len(refused) < 2:
            refused.append(api.confirmed)
            raise OutboxFull("no space")
        return await real(update)

    monkeypatch.setattr(chats.parts.incoming, "record", full)
    api.say("first")
    api.say("second")
    async with polling(application):
        await until(api, lambda: len(api.texts()) == 2)

    assert refused == [0, 0]
    assert api.texts() == ["answer to first", "answer to second"]
    texts = [text for _, text in await said(chats.history)]  # both updates may come before the first answer
    assert sorted(texts) == ["answer to first", "answer to second", "first", "second"]
    assert all(texts.index(question) < texts.index(f"answer to {question}") for question in ("first", "second"))


async def test_an_update_that_comes_again_is_handled_once(api: BotApi, chats: LetopisChats) -> None:
    update = api.say("once")
    async with polling(answering(chats, api)):
        await until(api, lambda: len(api.texts()) == 1 and api.confirmed >= update["update_id"])
        api.repeat(update)
        await shown_by(api, "twice")
    assert api.texts() == ["answer to once", "answer to twice"]
    assert len(await said(chats.history)) == 4


async def test_edits_topics_and_deletions_are_followed(api: BotApi, chats: LetopisChats) -> None:
    async def remove(update: Update, context: Context) -> None:
        message = present(update.message)
        await (await message.reply_text("draft")).edit_text("final")
        await (await message.reply_text("wrong")).delete()

    application = on(chats.builder(), api).build()
    application.add_handler(MessageHandler(filters.UpdateType.MESSAGE & filters.TEXT, remove))
    message = api.message("What is coffee?", chat=-100123, message_thread_id=7, is_topic_message=True)
    api.push(message=message)
    async with polling(application):
        await until(api, lambda: any(one.method == "deleteMessage" for one in api.calls))
        api.push(edited_message={**message, "text": "What is tea?", "edit_date": message["date"] + 1})
        await until(api, lambda: api.confirmed >= 2)

    found = await chats.history.messages(f"tg:{BOT_ID}:-100123:t7")
    assert [(one.text, one.redacted) for one in found] == [("What is tea?", False), ("final", False), ("", True)]


async def test_what_telegram_refuses_is_recorded_as_failed(api: BotApi, chats: LetopisChats) -> None:
    raised: list[object] = []

    async def on_error(update: object, context: Context) -> None:
        raised.append(context.error)

    application = answering(chats, api)
    application.add_error_handler(on_error)
    api.fail("sendMessage", 403, "Forbidden: bot was blocked by the user")
    api.say("one")
    api.cut("sendMessage", accepted=True)
    api.say("two")
    async with polling(application):
        await until(api, lambda: len(raised) == 2)

    states = {one.text: one.delivery for one in await chats.history.messages(CHAT)}
    assert states["answer to one"] == Delivery.FAILED
    assert states["answer to two"] == Delivery.APPENDED  # nobody knows
    assert [one.conversation_id for one in await chats.history.unconfirmed()] == [CHAT]
    assert isinstance(raised[0], Forbidden) and isinstance(raised[1], TelegramError)
    assert await chats.parts.incoming.unhandled() == []  # a handler that raises has ended


async def test_a_group_that_moves_keeps_its_conversation(api: BotApi, chats: LetopisChats) -> None:
    application = answering(chats, api)
    api.fail("sendMessage", 400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-100999)
    async with polling(application):
        await shown_by(api, "before", chat=-55)
        await shown_by(api, "after", chat=-100999)
    assert [one["chat"]["id"] for one in api.sent()] == [-100999, -100999]
    texts = [text for _, text in await said(chats.history, f"tg:{BOT_ID}:-55")]
    assert texts == ["before", "answer to before", "after", "answer to after"]


async def test_the_bots_own_limiter_and_processor_are_wrapped(api: BotApi, chats: LetopisChats) -> None:
    async def passed_on(callback: Any, args: Any, kwargs: Any, *_: Any) -> Any:
        return await callback(*args, **kwargs)

    limiter, updates = AsyncMock(spec=BaseRateLimiter), list[object]()
    limiter.process_request.side_effect = passed_on

    class Processor(SimpleUpdateProcessor):
        async def do_process_update(self, update: object, coroutine: Any) -> None:
            updates.append(update)
            await coroutine

    async def answer(update: Update, context: Context) -> None:
        await context.bot.send_message(1001, "answer", rate_limit_args=5)

    application = handled_by(answer, chats.builder().rate_limiter(limiter).concurrent_updates(Processor(4)), api)
    async with polling(application):
        await shown_by(api, "question")

    assert application.concurrent_updates == 4
    names = [name for name, *_ in limiter.mock_calls]
    assert (len(updates), names[0], names[-1]) == (1, "initialize", "shutdown")
    limited = [one.args[3::2] for one in limiter.process_request.await_args_list]
    assert {("getMe", None), ("sendMessage", 5)} <= set(limited)
    assert await said(chats.history) == [("user", "question"), ("assistant", "answer")]


async def test_a_backlog_is_answered_in_order_and_what_was_not_handled_goes_first(
    api: BotApi, chats: LetopisChats
) -> None:
    order: list[str] = []

    async def answer(update: Update, context: Context) -> None:
        question = (await chats.chat(update).context(turns=20)).messages[-1].text
        order.append(question)
        if question.startswith("old"):
            await asyncio.sleep(0.1)
        order.append(question)
        await chats.smart_send(update, f"answer to {question}")

    application = handled_by(answer, chats.builder().concurrent_updates(8), api)
    for number in range(3):
        await chats.parts.incoming.record(api.say(f"old {number}"))
    for number in range(3):
        api.say(f"new {number}")
    async with polling(application):
        await until(api, lambda: len(api.texts()) == 6)

    assert order[:6] == [text for number in range(3) for text in [f"old {number}"] * 2]
    asked = [f"old {number}" for number in range(3)] + [f"new {number}" for number in range(3)]
    assert sorted(api.texts()) == sorted(f"answer to {one}" for one in asked)
    assert len(await said(chats.history)) == 12


async def test_a_webhook_answers_after_the_update_is_recorded(
    api: BotApi, chats: LetopisChats, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tornado", reason="needs tornado: pip install 'python-telegram-bot[webhooks]'")
    port = free_port()
    update = {"update_id": 5, "message": api.message("What is tea?")}

    def post() -> int:
        return httpx.post(f"http://127.0.0.1:{port}/hook", json=update, timeout=10).status_code

    application = answering(chats, api)
    async with application:
        await application.start()
        await application.updater.start_webhook("127.0.0.1", port, "hook", webhook_url="https://x/")
        with monkeypatch.context() as patch:
            patch.setattr(chats.parts.incoming, "record", AsyncMock(side_effect=OutboxFull("no space")))
            assert await asyncio.to_thread(post) == 500  # Telegram sends it again
        assert await asyncio.to_thread(post) == 200
        assert ("user", "What is tea?") in await said(chats.history)
        await until(api, lambda: len(api.texts()) == 1)
        assert await asyncio.to_thread(post) == 200
        await application.updater.stop()
        await application.stop()

    assert api.texts() == ["answer to What is tea?"]


async def test_an_own_webhook_puts_updates_into_the_queue(api: BotApi, chats: LetopisChats) -> None:
    """As with Starlette, where there is no updater."""

    async def answer(update: Update, context: Context) -> None:
        await chats.smart_send(update, "answer")

    application = handled_by(answer, chats.builder().updater(None), api)
    async with application:
        await application.start()
        raw = {"update_id": 1, "message": api.message("question")}
        await application.update_queue.put(Update.de_json(raw, application.bot))
        assert await said(chats.history) == [("user", "question")]
        await until(api, lambda: len(api.texts()) == 1)
        raw = {"update_id": 2, "message": api.message("and now")}
        await application.process_update(Update.de_json(raw, application.bot))  # passes no queue: see the guide
        await application.stop()

    assert api.texts() == ["answer", "answer"]


# Use.


async def test_a_long_answer_is_a_file_and_one_message(api: BotApi, chats: LetopisChats) -> None:
    long = "Tea is a leaf. " * 300

    async def answer(update: Update, context: Context) -> None:
        bold = [MessageEntity("bold", 0, 3)]
        sent = await chats.smart_send(update, long, entities=bold, reply=True, disable_notification=True)
        assert sent.sent_as == "file"

    application = handled_by(answer, chats.builder(), api)
    api.say("Tell me all")
    async with polling(application):
        await until(api, lambda: len(api.sent("sendDocument")) == 1)
    _, answered = await chats.history.messages(CHAT)
    assert answered.text == long
    assert answered.delivery_data["sent_as"] == "file"
    assert Path(answered.delivery_data["file_path"]).read_text(encoding="utf-8") == long
    (call,) = (one for one in api.calls if one.method == "sendDocument")
    assert call.payload["caption"].startswith("Tea is a leaf.")
    assert call.payload["caption_entities"][0]["type"] == "bold"


async def test_a_bot_writes_to_a_chat_by_itself(api: BotApi, chats: LetopisChats) -> None:
    application = on(chats.builder(), api).build()
    async with application:
        chat = await chats.of_chat(1001)
        await chats.smart_send(chat, "Good morning")
        with unrecorded():
            await application.bot.send_message(1001, "one moment")
        with pytest.raises(BadRequest):
            await application.bot.send_message(1001, " ")
    assert await said(chats.history) == [("assistant", "Good morning"), ("assistant", " ")]
    assert [one.delivery for one in await chats.history.messages(CHAT)] == [Delivery.SENT, Delivery.FAILED]


async def test_the_menu_comes_before_the_handlers_of_the_bot(api: BotApi, chats: LetopisChats) -> None:
    application = answering(chats, api, describe=True)
    async with polling(application):
        await shown_by(api, "What is tea?")
        await shown_by(api, "/new Coffee")
        await shown_by(api, "/list@fake_bot")
        rows = api.calls[-1].payload["reply_markup"]["inline_keyboard"]
        [data] = [button["callback_data"] for button, *_ in rows if button["text"].endswith("What is tea?")]
        api.press(data, api.sent()[-1])
        await until(api, lambda: any(one.method == "answerCallbackQuery" for one in api.calls))
        await shown_by(api, "/rename")
        prompt = api.sent()[-1]
        while await chats.parts.local.answered(CHAT, prompt["message_id"]) is None:  # noqa: ASYNC110 - nothing rings
            await asyncio.sleep(0.01)
        await shown_by(api, "Кофе", reply_to_message=prompt)
        await shown_by(api, "/list@other_bot")

    assert api.texts()[-1] == "answer to /list@other_bot"
    titles = {one.title for one in await chats.history.conversations(owner=CHAT)}
    assert titles == {"What is tea?", "Кофе"}
    assert [one.method for one in api.calls].count("setMyCommands") == 2
    active = await chats.history.active(CHAT)
    assert await said(chats.history, active.conversation_id) == [("assistant", "answer to /list@other_bot")]


async def test_a_bots_own_buttons_and_commands_pass(api: BotApi, chats: LetopisChats) -> None:
    seen: list[str] = []

    async def note(update: Update, context: Context) -> None:
        seen.append(update.callback_query.data if update.callback_query else update.message.text)  # type: ignore[arg-type,union-attr]

    application = on(chats.builder(commands=("new",)), api).build()
    application.add_handler(CommandHandler("list", note))
    application.add_handler(CallbackQueryHandler(note))
    api.say("/list")
    api.press("mine:1", {**api.message("x"), "from": {"id": BOT_ID, "is_bot": True, "first_name": "Bot"}})
    async with polling(application):
        await until(api, lambda: len(seen) == 2)
    assert seen == ["/list", "mine:1"]


# Lifecycle.


async def test_a_history_that_it_opened_is_closed_with_the_application(api: BotApi, tmp_path: Path) -> None:
    chats = LetopisChats(tmp_path / "bot.outbox.db", relay=False)
    application = answering(chats, api)
    async with polling(application):
        await shown_by(api, "question")
    with pytest.raises(Exception, match="closed"):
        await chats.history.messages(CHAT)
    async with History(tmp_path / "bot.outbox.db", relay=False) as again:
        assert len(await said(again)) == 2


async def test_another_process_keeps_what_it_is_handling(api: BotApi, chats: LetopisChats) -> None:
    """Updates of a bot of several processes are handed in again only when they are old enough."""
    update = {"update_id": 1, "message": api.message("question")}
    application = answering(chats, api, resume_after_seconds=60.0)
    await chats.parts.incoming.record(update)
    async with application:
        assert application.update_queue.empty()
    application = answering(LetopisChats(chats.history), api)
    async with application:
        assert application.update_queue.qsize() == 1


def test_wrong_use_is_named(tmp_path: Path) -> None:
    chats = LetopisChats(tmp_path / "bot.outbox.db")
    with pytest.raises(InvalidInput, match="not built"):
        _ = chats.parts
    assert chats.builder().token(TOKEN).build().bot.token == TOKEN
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("none of", lambda: chats.builder(commands=("news",))),
        ("update_queue", lambda: chats.builder().token(TOKEN).update_queue(asyncio.Queue()).build()),
        ("bot", lambda: chats.builder().bot(Application.builder().token(TOKEN).build().bot).build()),
        ("no history", lambda: chats.chat(Update(1))),
        ("is open already", lambda: LetopisChats(chats.history, store="x.db")),
        ("codec", lambda: LetopisPersistence(chats.history, codec="yaml")),  # type: ignore[arg-type]
    ]
    for why, deed in refused:
        with pytest.raises(InvalidInput, match=why):
            deed()
    assert TimedOut().message  # of a call without an answer


# Persistence.


def form(chats: LetopisChats, api: BotApi, **options: Any) -> Any:
    """An application with a form of one question, and a count for each user."""

    async def begin(update: Update, context: Context) -> int:
        context.user_data["seen"] = context.user_data.get("seen", 0) + 1  # type: ignore[index,union-attr]
        context.chat_data["asked"] = "Your name"  # type: ignore[index]
        await update.message.reply_text("Your name?")  # type: ignore[union-attr]
        return 0

    async def name(update: Update, context: Context) -> int:
        context.bot_data["last"] = update.message.text  # type: ignore[union-attr]
        await update.message.reply_text(f"{context.chat_data['asked']}: {update.message.text}")  # type: ignore[index,union-attr]
        return ConversationHandler.END

    handler = ConversationHandler(
        entry_points=[CommandHandler("form", begin)],
        states={0: [MessageHandler(filters.TEXT, name)]},
        fallbacks=[],
        name="form",
        persistent=True,
    )
    application = on(chats.builder(), api).persistence(chats.persistence(**options)).build()
    application.add_handler(handler)
    return application


async def test_a_form_goes_on_after_a_restart(api: BotApi, tmp_path: Path) -> None:
    for text in ("/form", "Ada", "/form"):
        chats = LetopisChats(tmp_path / "bot.outbox.db", relay=False)
        application = form(chats, api)
        async with polling(application):
            await shown_by(api, text)
    assert api.texts() == ["Your name?", "Your name: Ada", "Your name?"]
    assert application.user_data[1001] == {"seen": 2}
    assert application.bot_data == {"last": "Ada"}


async def test_data_are_written_before_an_update_is_handled(api: BotApi, chats: LetopisChats) -> None:
    application = form(chats, api)
    async with polling(application):
        await shown_by(api, "/form")
        handled = 0
        while handled != 1:
            async with chats.history.transaction() as tx:
                handled = await tx.scalar(sa.text("SELECT count(handled_at) FROM letopis_telegram_updates"))
        records = chats.history.records(space="telegram.persistence")
        user = await records.get((str(BOT_ID), "user"), "1001")
        state = await records.get((str(BOT_ID), "conversation", "form"), "[1001, 1001]")

    assert (present(user).value, present(state).value) == ({"seen": 1}, 0)


async def test_data_that_are_no_json_are_refused_or_pickled(history: History) -> None:
    plain, pickled = persistent(history), persistent(history, codec="pickle")
    await plain.update_user_data(1, {"a": [1, "ü", None]})
    for wrong in ({1: "a"}, {"a": (1, 2)}, {"a": {1}}, {"a": float("nan")}, {"a": object()}):
        with pytest.raises(InvalidInput, match="user_data"):
            await plain.update_user_data(1, wrong)
    assert await plain.get_user_data() == {1: {"a": [1, "ü", None]}}
    await pickled.update_chat_data(-5, {1: (2, {3})})
    assert await pickled.get_chat_data() == {-5: {1: (2, {3})}}
    with pytest.raises(InvalidInput, match="pickle"):
        await plain.get_chat_data()


async def test_every_kind_of_data_comes_back(history: History) -> None:
    first = persistent(history)
    callback = ([("keyboard", 1.5, {"button": {"a": 1}})], {"query": "keyboard"})
    await first.update_callback_data(callback)
    await first.update_conversation("form", (1, -2, "inline"), 3)
    await first.update_conversation("form", (9,), 1)
    await first.update_conversation("form", (9,), None)
    await first.update_conversation("form2", (1,), "state")
    for number in range(3):
        await first.update_user_data(number, {"n": number})
    await first.drop_user_data(1)
    again = persistent(history)
    assert await again.get_callback_data() == callback
    assert await again.get_conversations("form") == {(1, -2, "inline"): 3}
    assert await again.get_conversations("form2") == {(1,): "state"}
    assert await again.get_user_data() == {0: {"n": 0}, 2: {"n": 2}}
    assert await again.get_bot_data() == {}
    await again.flush()


async def test_a_bot_starts_while_the_store_is_away(alone: History) -> None:
    await persistent(alone).update_user_data(1, {"a": 1})
    again = persistent(alone)
    assert await again.get_user_data() == {1: {"a": 1}}
    data: dict[str, Any] = {}
    await again.refresh_user_data(2, data)  # only the store could tell
    assert data == {}
    with pytest.raises(Exception, match="unreachable"):
        await persistent(alone, when_unknown="raise").get_user_data()
