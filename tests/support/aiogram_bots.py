"""Bots of aiogram that talk to the Bot API server of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from tests.support.bot_api import TOKEN, BotApi


def bot_on(api: BotApi, **options: Any) -> Bot:
    """Return a bot whose Telegram is the server of the tests."""
    session = AiohttpSession(api=TelegramAPIServer.from_base(api.url), timeout=options.pop("timeout", 10))
    return Bot(TOKEN, session=session, **options)


@asynccontextmanager
async def polling(dispatcher: Dispatcher, bot: Bot, **options: Any) -> AsyncIterator[None]:
    """Poll for the time of a block, with aiogram's own loop."""
    given = {"polling_timeout": 1, "handle_signals": False, **options}
    task = asyncio.create_task(dispatcher.start_polling(bot, **given))
    try:
        yield
    finally:
        await asyncio.sleep(0)
        if not task.done():
            await dispatcher.stop_polling()
        await task


async def until(api: BotApi, condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait, without blocking the loop, until a condition on the server is true."""
    await asyncio.to_thread(api.wait, condition, seconds)
