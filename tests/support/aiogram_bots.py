"""Bots of aiogram that talk to the Bot API server of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiogram import BaseMiddleware, Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message, Update

from letopis.adapters.aiogram import ChatHistory, LetopisChats
from letopis.adapters.telegram_core.chats import Chats
from letopis.adapters.telegram_core.incoming import IncomingRecorder
from letopis.outbox import History
from tests.support.bot_api import BOT_ID, TOKEN


def bot_at(url: str, **options: Any) -> Bot:
    session = AiohttpSession(api=TelegramAPIServer.from_base(url), timeout=options.pop("timeout", 10))
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


# Bots that are killed. A slow disk makes the moment between the receipt and the record long enough.


@asynccontextmanager
async def recorded_by_the_session(folder: Path, *, hang: bool) -> AsyncIterator[Dispatcher]:
    """A dispatcher with the adapter; it never answers if it is to hang."""
    chats = LetopisChats(folder / "bot.outbox.db", relay=False)
    dispatcher = Dispatcher()
    chats.attach(dispatcher)

    @dispatcher.message()
    async def answer(message: Message, history: ChatHistory) -> None:
        if hang:
            await asyncio.Event().wait()
        context = await history.context(turns=20)
        await message.answer(f"answer to {context.messages[-1].text}")

    yield dispatcher


class DefaultHook(BaseMiddleware):
    """Records where most examples do: in an outer middleware of the dispatcher."""

    def __init__(self, history: History) -> None:
        self._recorder = IncomingRecorder(Chats(history, BOT_ID, files="files"))

    async def __call__(self, handler: Any, event: Any, data: dict[str, Any]) -> Any:
        assert isinstance(event, Update)
        await self._recorder.record(event.model_dump(mode="json", by_alias=True, exclude_none=True))
        return await handler(event, data)


@asynccontextmanager
async def recorded_by_the_default_hook(folder: Path, *, hang: bool) -> AsyncIterator[Dispatcher]:
    async with History(folder / "bot.outbox.db", relay=False) as history:
        dispatcher = Dispatcher()
        dispatcher.update.outer_middleware(DefaultHook(history))

        @dispatcher.message()
        async def answer(message: Message) -> None:
            if hang:
                await asyncio.Event().wait()
            await message.answer(f"answer to {message.text}")

        yield dispatcher


async def hang(hook: str, url: str, folder: str) -> None:
    """Poll until the process is killed, with a disk that is slow, and answer nothing."""
    record = IncomingRecorder.record

    async def slowly(self: IncomingRecorder, update: Any) -> Any:
        await asyncio.sleep(0.3)
        return await record(self, update)

    IncomingRecorder.record = slowly  # type: ignore[method-assign]
    async with globals()[hook](Path(folder), hang=True) as dispatcher:
        await dispatcher.start_polling(bot_at(url), polling_timeout=1)
