# pyright: reportMissingImports=false
"""Receive updates by webhook, and record each before it is acknowledged to Telegram."""

from __future__ import annotations

from typing import Any, Final

from aiogram import Bot, Dispatcher
from aiogram.webhook.aiohttp_server import SimpleRequestHandler
from aiohttp import web

from letopis.adapters.aiogram.recording import RequestRecording
from letopis.adapters.telegram_core.incoming import NOT_NOW

_RETRY_SECONDS: Final = "5"


class RecordingRequestHandler(SimpleRequestHandler):
    """A ``SimpleRequestHandler`` that records before it answers; aiogram's own answers before anything is stored.

    Created by ``LetopisChats.webhook``. If nothing can be recorded at present, it answers 503, and Telegram sends the
    update again.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        bot: Bot,
        requests: RequestRecording,
        *,
        handle_in_background: bool = True,
        secret_token: str | None = None,
        **data: Any,
    ) -> None:
        super().__init__(dispatcher, bot, handle_in_background=handle_in_background, secret_token=secret_token, **data)
        self._requests = requests

    async def handle(self, request: web.Request) -> web.Response:
        """Record an update, then answer and handle it as aiogram does."""
        bot = await self.resolve_bot(request)
        if self.verify_secret(request.headers.get("X-Telegram-Bot-Api-Secret-Token", ""), bot):
            try:
                await self._requests.receive(bot, await request.json(loads=bot.session.json_loads))
            except NOT_NOW:
                return web.Response(status=503, headers={"Retry-After": _RETRY_SECONDS})
        return await super().handle(request)

    __call__ = handle
