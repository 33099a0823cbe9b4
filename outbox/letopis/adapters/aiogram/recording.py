# pyright: reportMissingImports=false
"""Record what passes between aiogram and Telegram, each way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from aiogram import BaseMiddleware, Bot, Dispatcher
from aiogram.client.default import Default
from aiogram.client.session.middlewares.base import BaseRequestMiddleware
from aiogram.exceptions import TelegramMigrateToChat
from aiogram.methods import GetUpdates, TelegramMethod
from aiogram.types import TelegramObject, Update
from aiogram.webhook.aiohttp_server import SimpleRequestHandler
from aiohttp import web

from letopis.adapters.aiogram.conversion import failure_from, payload_of, raw
from letopis.adapters.telegram_core.bot import BotParts, ResumedTurns
from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.incoming import NOT_NOW, Recorded
from letopis.adapters.telegram_core.outgoing import current_update

_WITH_HISTORY: Final = frozenset(
    {
        "message",
        "edited_message",
        "channel_post",
        "business_message",
        "edited_business_message",
        "callback_query",
        "guest_message",
    }
)
"""Updates whose handlers get a history even in a chat that has none yet."""

HandledHere = Callable[[Bot, BotParts, Recorded, Update, dict[str, Any]], Awaitable[bool]]


class Bots(Protocol):
    """What a middleware needs to find the parts of a bot."""

    def parts_of(self, bot: Bot) -> BotParts:
        """Return the recorders of a bot."""
        ...


class RequestRecording(BaseRequestMiddleware):
    """A middleware of the session: records updates before their offset is confirmed, and what the bot sends.

    If nothing can be recorded at present, the updates are not confirmed, and Telegram sends them again.
    """

    def __init__(self, bots: Bots) -> None:
        self._bots = bots
        self._received: dict[tuple[int, int], Recorded] = {}

    async def receive(self, bot: Bot, update: Update | dict[str, Any]) -> Recorded:
        """Record a received update, once; :meth:`taken` returns the outcome."""
        given = update if isinstance(update, dict) else raw(update)
        recorded = await self._bots.parts_of(bot).incoming.record(given)
        self._received[bot.id, recorded.update_id] = recorded
        return recorded

    async def taken(self, bot: Bot, update: Update) -> Recorded:
        """Return the outcome of an update; record it now if it arrived another way."""
        found = self._received.pop((bot.id, update.update_id), None)
        if found is None:
            found = await self.receive(bot, update)
            self._received.pop((bot.id, update.update_id), None)
        return found

    async def __call__(self, make_request: Any, bot: Bot, method: TelegramMethod[Any]) -> Any:
        """Carry out a call."""
        if isinstance(method, GetUpdates):
            return await self._get_updates(make_request, bot, method)
        outgoing, name = self._bots.parts_of(bot).outgoing, method.__api_method__
        payload = payload_of(method)
        if isinstance(getattr(method, "parse_mode", None), Default) and bot.default.parse_mode is not None:
            payload["parse_mode"] = str(bot.default.parse_mode)
        intent = await outgoing.before(name, payload)
        try:
            try:
                result = await make_request(bot, method)
            except TelegramMigrateToChat as error:
                await outgoing.failed(intent, failure_from(error) or Failure(ending="unknown", reason="moved"))
                if getattr(method, "chat_id", None) is None:
                    raise
                result = await make_request(bot, method.model_copy(update={"chat_id": error.migrate_to_chat_id}))
        except BaseException as error:  # cancellations too: Telegram may have carried out the call
            unknown = Failure(ending="unknown", reason=type(error).__name__)
            await outgoing.failed(intent, failure_from(error) or unknown)
            raise
        await outgoing.after(name, intent, raw(result))
        return result

    async def _get_updates(self, make_request: Any, bot: Bot, method: GetUpdates) -> list[Update]:
        updates: list[Update] = await make_request(bot, method)
        for place, update in enumerate(updates):
            try:
                await self.receive(bot, update)
            except NOT_NOW:
                if place == 0:
                    raise  # aiogram waits and polls again
                return updates[:place]
        return updates


class UpdateRecording(BaseMiddleware):
    """An outer middleware for all updates: gives handlers their chat's history, and records when they have finished.

    Updates that were handled before are skipped. Those that are handled again after a start go before the new ones of
    their chat.
    """

    def __init__(self, bots: Bots, requests: RequestRecording, handled_here: HandledHere) -> None:
        self._bots = bots
        self._requests = requests
        self._handled_here = handled_here
        self._turns = ResumedTurns()
        self._handling: set[tuple[int, int]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def expect(self, bot: Bot, recorded: Recorded) -> None:
        """Refuse an update that this process is going to hand in again, and let its chat wait for it."""
        self._turns.expect(recorded)
        self._handling.add((bot.id, recorded.update_id))
        self._idle.clear()

    def forget(self, bot: Bot, recorded: Recorded) -> None:
        """Take back :meth:`expect`."""
        self._turns.end(recorded)
        self._ended((bot.id, recorded.update_id))

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no update is being handled; return ``False`` if some are after ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        """Handle an update."""
        if not isinstance(event, Update):
            return await handler(event, data)
        bot: Bot = data["bot"]
        parts = self._bots.parts_of(bot)
        recorded = await self._requests.taken(bot, event)
        name = (bot.id, event.update_id)
        again = data.pop("letopis_again", False)
        if recorded.handled or (name in self._handling and not again):
            return None
        self._handling.add(name)
        self._idle.clear()
        try:
            await self._turns.wait(recorded)
            await parts.incoming.begin(recorded)
            result = await self._handle(handler, bot, parts, recorded, event, data)
        except asyncio.CancelledError:
            raise  # the process is ending: the update is handled after the next start
        except BaseException:  # aiogram counts the update as done, however the handler ended
            await self._handled(parts, recorded.update_id)
            raise
        else:
            await self._handled(parts, recorded.update_id)
            return result
        finally:
            self._ended(name)

    async def _handled(self, parts: BotParts, update_id: int) -> None:
        await parts.incoming.handled(update_id)
        await parts.outgoing.handler_ended(update_id)

    def _ended(self, name: tuple[int, int]) -> None:
        self._handling.discard(name)
        if not self._handling:
            self._idle.set()

    async def _handle(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        bot: Bot,
        parts: BotParts,
        recorded: Recorded,
        update: Update,
        data: dict[str, Any],
    ) -> Any:
        token = current_update.set(recorded)
        try:
            if await self._handled_here(bot, parts, recorded, update, data):
                return None
            data["history"] = None
            if recorded.conversation_id is not None or recorded.kind in _WITH_HISTORY:
                data["history"] = await parts.chat_of(recorded)
            result = await handler(update, data)
            if isinstance(result, TelegramMethod):
                # In the response to a webhook it would bypass the middleware and never get an id.
                await Dispatcher.silent_call_request(bot, result)
                return None
            return result
        finally:
            current_update.reset(token)


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
