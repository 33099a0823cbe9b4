"""Applications of python-telegram-bot that talk to the Bot API server of the tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

from telegram import Update
from telegram.ext import ContextTypes, MessageHandler, filters

from letopis.adapters.telegram import LetopisChats
from letopis.adapters.telegram_core.outgoing import OutgoingRecorder
from tests.support.bot_api import TOKEN, BotApi


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
