"""Applications of python-telegram-bot that talk to the Bot API server of the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.bot_api import TOKEN, BotApi


def on(builder: Any, api: BotApi) -> Any:
    """Return a builder whose Telegram is the server of the tests."""
    return builder.token(TOKEN).base_url(f"{api.url}/bot").get_updates_read_timeout(5).read_timeout(5)


@asynccontextmanager
async def polling(application: Any) -> AsyncIterator[None]:
    """Poll for the time of a block, with the library's own updater."""
    async with application:
        await application.start()
        await application.updater.start_polling(timeout=1)
        try:
            yield
        finally:
            await application.updater.stop()
            await application.stop()
