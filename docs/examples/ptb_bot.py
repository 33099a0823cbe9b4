"""A bot on python-telegram-bot with a history: pip install 'path/to/letopis[telegram]', then BOT_TOKEN=... python ptb_bot.py.

BOT_TOKEN        from @BotFather
LETOPIS_OUTBOX   the outbox file; by default bot.outbox.db
LETOPIS_STORE    the history store, for example postgresql://bot@db/history; by default a file beside the outbox
OPENAI_API_KEY   for a model behind any API that is compatible with OpenAI's; without it, the bot repeats what it hears
OPENAI_BASE_URL  by default https://api.openai.com/v1
OPENAI_MODEL     by default gpt-4o-mini
TELEGRAM_API     by default https://api.telegram.org; your own Bot API server takes files of 2 GB
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import httpx
from telegram import Update
from telegram.constants import ChatAction
from telegram.ext import (
    CommandHandler,
    ContextTypes,
    MessageHandler,
    filters,
)

from letopis import RecordedMessage
from letopis.adapters.formats import openai_chat
from letopis.adapters.telegram import LetopisChats

chats = LetopisChats(
    os.environ.get("LETOPIS_OUTBOX", "bot.outbox.db"),
    store=os.environ.get("LETOPIS_STORE"),
)


async def ask_model(messages: Sequence[RecordedMessage]) -> str:
    """Return the model's answer to the last message."""
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        return f"You said: {messages[-1].text}"
    url = (
        os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
        + "/chat/completions"
    )
    asked = {
        "model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
        "messages": openai_chat.from_messages(messages),
    }
    async with httpx.AsyncClient(timeout=120) as client:
        response = await client.post(
            url, json=asked, headers={"Authorization": f"Bearer {key}"}
        )
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])


async def answer(
    update: Update, context: ContextTypes.DEFAULT_TYPE
) -> None:
    """Answer in the chat's active conversation."""
    history = chats.chat(update)
    await context.bot.send_chat_action(
        history.key.chat_id, ChatAction.TYPING
    )
    found = await history.context(turns=20)
    await chats.smart_send(update, await ask_model(found.messages))


async def hello(
    update: Update, context: ContextTypes.DEFAULT_TYPE
) -> None:
    """Greet who opens the bot."""
    if update.message is not None:
        await update.message.reply_text(
            "Hello! Ask me anything, or see /list."
        )


def main() -> None:
    """Poll until Ctrl+C or SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("httpx").setLevel(
        logging.WARNING
    )  # it would log the token, in URLs
    server = os.environ.get("TELEGRAM_API", "https://api.telegram.org")
    builder = (
        chats.builder(describe=True)
        .token(os.environ["BOT_TOKEN"])
        .base_url(f"{server}/bot")
    )
    application = (
        builder.persistence(chats.persistence())
        .concurrent_updates(8)
        .build()
    )
    application.add_handler(CommandHandler("start", hello))
    application.add_handler(
        MessageHandler(
            (filters.TEXT | filters.CAPTION) & ~filters.COMMAND, answer
        )
    )
    application.run_polling()


if __name__ == "__main__":
    main()
