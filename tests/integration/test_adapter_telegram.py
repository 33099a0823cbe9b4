"""Bots on python-telegram-bot: the real application against a Bot API server on loopback."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa

pytest.importorskip("telegram.ext", reason="needs python-telegram-bot: pip install 'letopis[telegram]'")

import httpx
from telegram import MessageEntity, Update
from telegram.error import BadRequest, TimedOut
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

from letopis.adapters.telegram import LetopisChats, LetopisPersistence
from letopis.outbox import History
from letopis.store import Delivery, InvalidInput, OutboxFull
from tests.support.bot_api import BOT_ID, TOKEN, BotApi, until
from tests.support.bots import CHAT, process, shown_by
from tests.support.bots.telegram import answering as answering_process
from tests.support.bots.telegram import on, polling
from tests.support.sayings import present
from tests.support.servers.processes import free_port

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


async def test_a_bot_writes_to_a_chat_by_itself(api: BotApi, chats: LetopisChats) -> None:
    application = on(chats.builder(), api).build()
    async with application:
        chat = await chats.of_chat(1001)
        await chats.smart_send(chat, "Good morning", entities=[MessageEntity("bold", 0, 4)], disable_notification=True)
        with pytest.raises(BadRequest):
            await application.bot.send_message(1001, " ")
    [call] = [one.payload for one in api.calls if one.method == "sendMessage" and one.result]
    assert (call["entities"][0]["type"], call["disable_notification"]) == ("bold", "true")
    assert await said(chats.history) == [("assistant", "Good morning"), ("assistant", " ")]
    assert [one.delivery for one in await chats.history.messages(CHAT)] == [Delivery.SENT, Delivery.FAILED]


async def test_a_bots_own_buttons_pass(api: BotApi, chats: LetopisChats) -> None:
    seen: list[str] = []

    async def note(update: Update, context: Context) -> None:
        seen.append(str(present(update.callback_query).data))

    application = on(chats.builder(), api).build()
    application.add_handler(CallbackQueryHandler(note))
    api.press("mine:1", {**api.message("x"), "from": {"id": BOT_ID, "is_bot": True, "first_name": "Bot"}})
    async with polling(application):
        await until(api, lambda: len(seen) == 1)
    assert seen == ["mine:1"]


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


QUESTIONS = 5
KILLS = 2


async def recorded_answers(api: BotApi, folder: Path, monkeypatch: pytest.MonkeyPatch, *, recalls: bool) -> list[str]:
    """Kill a bot while Telegram takes an answer of its, twice; return the answers that are recorded in the end.

    In each life the bot answers one question, and is killed at the second one: Telegram has shown that answer, or not.
    """
    take, lives = api.take, list[subprocess.Popen[bytes]]()
    sends = 0

    def killing(method: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal sends
        if method != "sendMessage":
            return take(method, payload)
        sends += 1
        if sends != 2 or len(lives) > KILLS:
            return take(method, payload)
        if len(lives) % 2:
            take(method, payload)
        lives[-1].kill()
        return 0, {}

    monkeypatch.setattr(api, "take", killing)
    for number in range(QUESTIONS):
        api.say(f"question {number}")
    for _ in range(KILLS):
        sends = 0
        with process(answering_process, api.url, folder, recalls=recalls) as running:
            lives.append(running)
            assert await asyncio.to_thread(running.wait, 120) == -9
    with process(answering_process, api.url, folder, recalls=recalls) as running:
        lives.append(running)
        await until(api, lambda: len(set(api.texts())) == QUESTIONS)
        running.terminate()
        assert await asyncio.to_thread(running.wait, 60) == 0
    async with History(folder / "bot.outbox.db", relay=False) as history:
        return [one.text for one in await history.messages(CHAT, last=None) if one.role == "assistant"]


@pytest.mark.slow
async def test_no_answer_is_recorded_twice_whenever_the_bot_is_killed(
    api: BotApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = await recorded_answers(api, tmp_path, monkeypatch, recalls=True)
    assert Counter(answers) == Counter(f"answer to question {number}" for number in range(QUESTIONS))


@pytest.mark.slow
async def test_a_bot_that_forgets_what_it_had_sent_records_it_twice(
    api: BotApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same kills."""
    answers = await recorded_answers(api, tmp_path, monkeypatch, recalls=False)
    assert set(answers) == {f"answer to question {number}" for number in range(QUESTIONS)}
    assert len(answers) > QUESTIONS
