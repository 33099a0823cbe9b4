"""Applications of python-telegram-bot that talk to the Bot API server of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from telegram import Update
from telegram.ext import Application, ContextTypes, MessageHandler, TypeHandler, filters

from letopis.adapters.telegram import LetopisChats
from letopis.adapters.telegram.conversion import raw
from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.incoming import IncomingRecorder
from letopis.adapters.telegram_core.outgoing import OutgoingRecorder
from letopis.outbox import History
from tests.support.bot_api import BOT_ID, TOKEN, BotApi


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


# Bots of their own processes, to be killed.


def recorded_by_the_queue(url: str, folder: str, hang: bool) -> None:
    """Poll with the adapter, as a program does; never answer if it is to hang."""
    chats = LetopisChats(Path(folder) / "bot.outbox.db", relay=False)

    async def answer(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        if hang:
            await asyncio.Event().wait()
        assert await chats.chat(update).messages()
        await update.effective_message.reply_text(f"answer to {update.effective_message.text}")  # type: ignore[union-attr]

    application = on(chats.builder(), url).persistence(chats.persistence()).build()
    application.add_handler(MessageHandler(filters.TEXT, answer))
    application.run_polling(timeout=1)


def answering(url: str, folder: str, recalls: bool) -> None:
    """Answer the last message of the context; without ``recalls``, forget what was sent before a crash."""
    if not recalls:

        async def forget(*_: object) -> None:
            return None

        OutgoingRecorder._found_again = forget  # type: ignore[method-assign,assignment]
    chats = LetopisChats(Path(folder) / "bot.outbox.db", relay=False)

    async def answer(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        found = await chats.chat(update).context(turns=50)
        await update.effective_message.reply_text(f"answer to {found.messages[-1].text}")  # type: ignore[union-attr]

    application = on(chats.builder(), url).concurrent_updates(8).build()
    application.add_handler(MessageHandler(filters.TEXT, answer))
    application.run_polling(timeout=1)


def recorded_by_a_handler(url: str, folder: str, hang: bool) -> None:
    """Poll with a handler of an early group that records, as most examples do."""
    history = History(Path(folder) / "bot.outbox.db", relay=False)
    recorder = IncomingRecorder(Chats(history, BOT_ID, files="files"))

    async def record(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        await recorder.record(raw(update))

    async def answer(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        if hang:
            await asyncio.Event().wait()
        await update.effective_message.reply_text(f"answer to {update.effective_message.text}")  # type: ignore[union-attr]

    application = on(Application.builder(), url).build()
    application.add_handler(TypeHandler(Update, record), group=-100)
    application.add_handler(MessageHandler(filters.TEXT, answer))
    application.run_polling(timeout=1)
