"""A bot on python-telegram-bot that polls a Bot API server of its own, with a model that answers without a network."""

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

from sqlalchemy.engine import make_url
from telegram import Update
from telegram.ext import Application, ContextTypes, MessageHandler, PicklePersistence, filters

from letopis.adapters.telegram import LetopisChats
from letopis.adapters.telegram_core.outgoing import OutgoingRecorder
from letopis.outbox import History
from tests.support.bot_api import TOKEN, BotApi, bot_api
from tests.support.bots import CHAT, shown_by
from tests.support.story import Bot, Thinks, answer_to

Context = ContextTypes.DEFAULT_TYPE


@asynccontextmanager
async def letopis(history: History, thinks: Thinks) -> AsyncIterator[Bot]:
    with bot_api(first_id=time.time_ns() // 1_000_000) as api:  # a Telegram that goes on where the last one has ended
        chats = LetopisChats(history)

        async def answer(update: Update, context: Context) -> None:
            question = (await chats.chat(update).context(turns=20)).messages[-1].text
            await thinks(question)
            await chats.smart_send(update, answer_to(question))

        application = on(chats.builder(), api).build()
        application.add_handler(MessageHandler(filters.TEXT, answer))

        async def read() -> list[str]:
            return [one.text for one in await history.messages(CHAT, last=None)]

        async def resume() -> list[str]:
            await application.update_queue.join()  # what was not handled is handed in before the bot polls
            return api.texts()

        async with polling(application):
            yield Bot(lambda question: shown_by(api, question), read, resume)


@asynccontextmanager
async def default(url: str, thinks: Thinks) -> AsyncIterator[Bot]:
    """What the library itself offers: data of a chat, written to a file every minute and at an orderly end."""
    path = Path(tempfile.gettempdir()) / f"{make_url(url).database}.pickle"
    with bot_api(first_id=time.time_ns() // 1_000_000) as api:

        async def answer(update: Update, context: Context) -> None:
            assert update.message is not None
            assert context.chat_data is not None
            question = update.message.text or ""
            await thinks(question)
            said = answer_to(question)
            await update.message.reply_text(said)
            context.chat_data.setdefault("said", []).extend([question, said])

        application = on(Application.builder(), api).persistence(PicklePersistence(path)).build()
        application.add_handler(MessageHandler(filters.TEXT, answer))

        async def read() -> list[str]:
            await application.update_queue.join()
            return list(application.chat_data[1001].get("said", []))

        async with polling(application):
            yield Bot(lambda question: shown_by(api, question), read)
    path.unlink(missing_ok=True)


def on(builder: Any, api: BotApi | str) -> Any:
    """Return a builder whose Telegram is the server of the tests."""
    url = api if isinstance(api, str) else api.url
    return builder.token(TOKEN).base_url(f"{url}/bot").get_updates_read_timeout(5).read_timeout(5)


@asynccontextmanager
async def polling(application: Any) -> AsyncIterator[None]:
    async with application:
        await application.start()
        await application.updater.start_polling(timeout=1)
        try:
            yield
        finally:
            await application.updater.stop()
            await application.stop()


def answering(url: str, folder: str, recalls: bool) -> None:
    """Be a bot's process: answer the last message of the context; know again what was sent before a crash, or not."""
    if not recalls:
        OutgoingRecorder._found_again = AsyncMock(return_value=None)  # type: ignore[method-assign]
    chats = LetopisChats(Path(folder) / "bot.outbox.db", relay=False)

    async def answer(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        found = await chats.chat(update).context(turns=50)
        await update.effective_message.reply_text(f"answer to {found.messages[-1].text}")  # type: ignore[union-attr]

    application = on(chats.builder(), url).persistence(chats.persistence()).concurrent_updates(8).build()
    application.add_handler(MessageHandler(filters.TEXT, answer))
    application.run_polling(timeout=1)
