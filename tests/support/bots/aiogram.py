"""A bot of aiogram that polls a Bot API server of its own, with a model that answers without a network."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiogram
import asyncpg
from aiogram import Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message

from letopis.adapters.aiogram import ChatHistory, LetopisChats
from letopis.outbox import History
from tests.support.bot_api import TOKEN, bot_api, until
from tests.support.bots import CHAT, shown_by
from tests.support.store_changes import run_there
from tests.support.story import Bot, Thinks, answer_to


def bot_at(url: str, **options: Any) -> aiogram.Bot:
    session = AiohttpSession(api=TelegramAPIServer.from_base(url), timeout=10)
    return aiogram.Bot(TOKEN, session=session, **options)


@asynccontextmanager
async def polling(dispatcher: Dispatcher, bot: aiogram.Bot, **options: Any) -> AsyncIterator[None]:
    given = {"polling_timeout": 1, "handle_signals": False, **options}
    task = asyncio.create_task(dispatcher.start_polling(bot, **given))
    try:
        yield
    finally:
        await asyncio.sleep(0)
        if not task.done():
            await dispatcher.stop_polling()
        await task


@asynccontextmanager
async def letopis(history: History, thinks: Thinks) -> AsyncIterator[Bot]:
    with bot_api(int(time.time() * 1000)) as api:  # it ends with the process, and Telegram never gives an id twice
        chats, dispatcher = LetopisChats(history), Dispatcher()
        chats.attach(dispatcher)

        @dispatcher.message()
        async def answer(message: Message, history: ChatHistory) -> None:
            context = await history.context(turns=20)
            question = context.messages[-1].text
            await thinks(question)
            await chats.smart_send(message, answer_to(question))

        async def ask(question: str) -> str:
            # aiogram handles updates side by side: without this, a kill might repeat more answers than the last one.
            assert await chats.idle(60)
            return await shown_by(api, question)

        async def read() -> list[str]:
            return [one.text for one in await history.messages(CHAT, last=None)]

        async def resume() -> list[str]:
            await until(api, lambda: any(call.method == "getUpdates" for call in api.calls))
            assert await chats.idle(60)
            return api.texts()

        async with polling(dispatcher, bot_at(api.url)):
            yield Bot(ask, read, resume)


@asynccontextmanager
async def default(url: str, thinks: Thinks) -> AsyncIterator[Bot]:
    """What tutorials show: the turn goes into a table once it is over."""
    with bot_api() as api:
        dispatcher = Dispatcher()

        @dispatcher.message()
        async def answer(message: Message) -> None:
            question = message.text or ""
            await thinks(question)
            said = answer_to(question)
            await message.answer(said)
            connection = await asyncpg.connect(url, timeout=2)
            try:
                await connection.execute("CREATE TABLE IF NOT EXISTS said (id serial PRIMARY KEY, text text)")
                await connection.executemany("INSERT INTO said (text) VALUES ($1)", [(question,), (said,)])
            finally:
                await connection.close()

        async def read() -> list[str]:
            await asyncio.sleep(0.5)  # the last turn may still be saved
            rows = await run_there(url, "SELECT text FROM said ORDER BY id")
            return [text for (text,) in rows]

        async with polling(dispatcher, bot_at(api.url)):
            yield Bot(lambda question: shown_by(api, question), read)
