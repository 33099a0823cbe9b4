"""A bot of aiogram with a history: pip install 'path/to/letopis[aiogram]', then BOT_TOKEN=... python aiogram_bot.py.

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

from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message
from aiogram.utils.chat_action import ChatActionSender
from aiohttp import ClientSession, ClientTimeout

from letopis import RecordedMessage
from letopis.adapters.aiogram import ChatHistory, LetopisChats
from letopis.adapters.formats import openai_chat

chats = LetopisChats(
    os.environ.get("LETOPIS_OUTBOX", "bot.outbox.db"),
    store=os.environ.get("LETOPIS_STORE"),
)
dispatcher = Dispatcher(storage=chats.storage())
chats.attach(dispatcher, describe=True)


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
    async with (
        ClientSession(
            timeout=ClientTimeout(120), raise_for_status=True
        ) as session,
        session.post(
            url, json=asked, headers={"Authorization": f"Bearer {key}"}
        ) as response,
    ):
        return str(
            (await response.json())["choices"][0]["message"]["content"]
        )


@dispatcher.message(F.text | F.caption)
async def answer(
    message: Message, bot: Bot, history: ChatHistory
) -> None:
    """Answer in the chat's active conversation."""
    async with ChatActionSender.typing(
        bot=bot, chat_id=message.chat.id
    ):
        context = await history.context(turns=20)
        # A command such as /start is no part of the conversation.
        if not context.messages:
            await message.answer(
                "Hello! Ask me anything, or see /list."
            )
            return
        await chats.smart_send(
            message, await ask_model(context.messages)
        )


def main() -> None:
    """Poll until Ctrl+C or SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    server = TelegramAPIServer.from_base(
        os.environ.get("TELEGRAM_API", "https://api.telegram.org")
    )
    dispatcher.run_polling(
        Bot(os.environ["BOT_TOKEN"], session=AiohttpSession(api=server))
    )


if __name__ == "__main__":
    main()
