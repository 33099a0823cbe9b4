"""Bots of aiogram that talk to the Bot API server of the tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from tests.support.bot_api import TOKEN


def bot_at(url: str, **options: Any) -> Bot:
    session = AiohttpSession(api=TelegramAPIServer.from_base(url), timeout=10)
    return Bot(TOKEN, session=session, **options)


@asynccontextmanager
async def polling(dispatcher: Dispatcher, bot: Bot, **options: Any) -> AsyncIterator[None]:
    given = {"polling_timeout": 1, "handle_signals": False, **options}
    task = asyncio.create_task(dispatcher.start_polling(bot, **given))
    try:
        yield
    finally:
        await asyncio.sleep(0)
        if not task.done():
            await dispatcher.stop_polling()
        await task
