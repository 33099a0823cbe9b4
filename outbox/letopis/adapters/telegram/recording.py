# pyright: reportMissingImports=false
"""Record what passes between python-telegram-bot and Telegram, each way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from telegram import Update
from telegram._utils.defaultvalue import DefaultValue
from telegram.error import ChatMigrated, NetworkError
from telegram.ext import Application, ApplicationBuilder, BaseRateLimiter, BaseUpdateProcessor

from letopis.adapters.telegram.conversion import failure_from, payload_of, raw
from letopis.adapters.telegram_core.bot import BotParts, ResumedTurns
from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.incoming import NOT_NOW, Recorded
from letopis.adapters.telegram_core.outgoing import current_update
from letopis.store import InvalidInput, LetopisError

logger: Final = logging.getLogger("letopis.adapters.telegram")


class Connected(Protocol):
    """What the recorders need from a bot's chats."""

    @property
    def parts(self) -> BotParts:
        """The recorders of the bot."""
        ...

    async def begin(self) -> None:
        """Open the history, and hand in unhandled updates."""
        ...

    async def end(self) -> None:
        """Close the history."""
        ...

    async def handled_here(self, recorded: Recorded, update: Update) -> bool:
        """Handle the menu's updates."""
        ...

    async def handle(self, recorded: Recorded, update: Update, handlers: Awaitable[Any]) -> None:
        """Let the bot's handlers handle an update."""
        ...

    async def failed(self, update: Update, error: Exception) -> None:
        """Pass an error to the bot's error handlers."""
        ...


class RecordingQueue(asyncio.Queue[object]):
    """The queue between updater and application: an update is recorded before the updater continues.

    Only then does the updater confirm an offset or answer a webhook. If nothing can be recorded at present, it raises
    ``NetworkError``, and Telegram sends the update again. An update that is already handled or waiting is not accepted
    twice.
    """

    def __init__(self, chats: Connected) -> None:
        super().__init__()
        self._chats = chats
        self._received: dict[int, Recorded] = {}
        self._waiting: set[int] = set()
        self.turns = ResumedTurns()

    async def put_again(self, update: Update) -> None:
        """Put an update into the queue that was not handled before the last end, before the new ones of its chat."""
        if await self._receive(update):
            self.turns.expect(self._received[update.update_id])
            await super().put(update)

    async def put(self, item: object) -> None:
        """Record an update and put it into the queue."""
        if isinstance(item, Update) and not await self._receive(item):
            return
        await super().put(item)

    async def taken(self, update: Update) -> Recorded | None:
        """Return the outcome of recording an update; ``None`` if it must not be handled.

        An update that arrived another way, as by ``put_nowait`` or ``process_update``, is recorded now.
        """
        found = self._received.pop(update.update_id, None)
        if found is not None:
            return found
        return self._received.pop(update.update_id, None) if await self._receive(update) else None

    def done(self, update: Update) -> None:
        """Forget an update that is handled."""
        self._waiting.discard(update.update_id)

    async def _receive(self, update: Update) -> bool:
        try:
            recorded = await self._chats.parts.incoming.record(raw(update))
        except NOT_NOW as error:
            raise NetworkError(f"an update cannot be recorded at present, and is not taken: {error}") from error
        if recorded.handled or update.update_id in self._waiting:
            return False
        self._received[update.update_id] = recorded
        self._waiting.add(update.update_id)
        return True


class RecordingProcessor(BaseUpdateProcessor):
    """Wraps a bot's update processor: gives handlers their history, and records when they have finished.

    Its ``initialize`` and ``shutdown`` run with those of the application, also with ``async with application``, where
    ``post_init`` and ``post_stop`` do not.
    """

    __slots__ = ("_chats", "_inner", "_queue")

    def __init__(self, chats: Connected, queue: RecordingQueue, inner: BaseUpdateProcessor) -> None:
        super().__init__(inner.max_concurrent_updates)
        self._chats = chats
        self._queue = queue
        self._inner = inner

    async def initialize(self) -> None:
        """Open the history."""
        await self._inner.initialize()
        await self._chats.begin()

    async def shutdown(self) -> None:
        """Close the history."""
        try:
            await self._inner.shutdown()
        finally:
            await self._chats.end()

    async def do_process_update(self, update: object, coroutine: Awaitable[Any]) -> None:
        """Handle an update, unless it was handled before."""
        given = self._handle(update, coroutine) if isinstance(update, Update) else coroutine
        await self._inner.do_process_update(update, given)

    async def _handle(self, update: Update, handlers: Awaitable[Any]) -> None:
        try:
            recorded = await self._queue.taken(update)
        except NetworkError as error:  # it bypassed the queue, so Telegram does not send it again
            logger.error("an update is handled, and not recorded: %s", error)  # noqa: TRY400 - the error says it all
            await handlers
            return
        if recorded is None:
            _close(handlers)
            return
        token = current_update.set(recorded)
        try:
            await self._queue.turns.wait(recorded)
            await self._chats.parts.incoming.begin(recorded)
            await self._handle_once(recorded, update, handlers)
            # Not after a cancellation: the process is ending, and the update is handled after the next start.
            await self._chats.parts.incoming.handled(recorded.update_id)
            await self._chats.parts.outgoing.handler_ended(recorded.update_id)
        except LetopisError as error:
            logger.error("that an update was handled cannot be noted: %s", error)  # noqa: TRY400 - likewise
        finally:
            current_update.reset(token)
            self._queue.done(update)
        self._queue.turns.end(recorded)

    async def _handle_once(self, recorded: Recorded, update: Update, handlers: Awaitable[Any]) -> None:
        try:
            if not await self._chats.handled_here(recorded, update):
                await self._chats.handle(recorded, update, handlers)
        except Exception as error:  # otherwise it would end the task that fetches updates
            await self._chats.failed(update, error)
        finally:
            _close(handlers)


class RecordingLimiter(BaseRateLimiter[Any]):
    """Wraps the rate limiter of a bot, if it has one: records what is sent, before and after."""

    __slots__ = ("_chats", "_inner")

    def __init__(self, chats: Connected, inner: BaseRateLimiter[Any] | None) -> None:
        self._chats = chats
        self._inner = inner

    async def initialize(self) -> None:
        """Initialize the bot's own rate limiter."""
        if self._inner is not None:
            await self._inner.initialize()

    async def shutdown(self) -> None:
        """Shut down the bot's own rate limiter."""
        if self._inner is not None:
            await self._inner.shutdown()

    async def process_request(
        self,
        callback: Callable[..., Coroutine[Any, Any, Any]],
        args: Any,
        kwargs: dict[str, Any],
        endpoint: str,
        data: dict[str, Any],
        rate_limit_args: Any,
    ) -> Any:
        """Carry out a call."""
        if self._inner is None and rate_limit_args is not None:
            raise ValueError("rate_limit_args can only be used with a rate limiter")

        async def call() -> Any:
            if self._inner is None:
                return await callback(*args, **kwargs)
            return await self._inner.process_request(callback, args, kwargs, endpoint, data, rate_limit_args)

        outgoing = self._chats.parts.outgoing
        intent = await outgoing.before(endpoint, payload_of(data))
        try:
            try:
                result = await call()
            except ChatMigrated as error:
                await outgoing.failed(intent, failure_from(error) or Failure(ending="unknown", reason="moved"))
                if "chat_id" not in data:
                    raise
                data["chat_id"] = error.new_chat_id
                result = await call()
        except BaseException as error:  # cancellations too: Telegram may have carried out the call
            unknown = Failure(ending="unknown", reason=type(error).__name__)
            await outgoing.failed(intent, failure_from(error) or unknown)
            raise
        await outgoing.after(endpoint, intent, result)
        return result


def _close(handlers: Awaitable[Any]) -> None:
    """Close a coroutine that will not be awaited; no effect on one that has ended."""
    close = getattr(handlers, "close", None)
    if close is not None:
        close()


class RecordingBuilder(ApplicationBuilder[Any, Any, Any, Any, Any, Any]):
    """An ``ApplicationBuilder``, created by ``LetopisChats.builder()``.

    A given rate limiter and update processor are wrapped. The builder creates the queue, the bot and the updater
    itself, so those cannot be given.
    """

    __slots__ = ("_chats", "_connect")

    def __init__(self, chats: Connected, connect: Callable[[Any, RecordingQueue], None]) -> None:
        super().__init__()
        self._chats = chats
        self._connect = connect

    def build(self) -> Application[Any, Any, Any, Any, Any, Any]:
        """Build the application.

        :raises InvalidInput: a bot, an updater or a queue was given.
        """
        for name in ("bot", "update_queue"):
            if not isinstance(getattr(self, f"_{name}"), DefaultValue):
                raise InvalidInput(name, "cannot be given: the builder makes it, so that everything is recorded")
        if not isinstance(self._updater, DefaultValue) and self._updater is not None:
            raise InvalidInput("updater", "cannot be given, except None: the builder makes it")
        inner: BaseUpdateProcessor = DefaultValue.get_value(self._update_processor)
        queue = RecordingQueue(self._chats)
        self.update_queue(queue)
        limiter: Any = DefaultValue.get_value(self._rate_limiter)
        self.rate_limiter(RecordingLimiter(self._chats, limiter))
        self.concurrent_updates(RecordingProcessor(self._chats, queue, inner))
        application = super().build()
        self._connect(application, queue)
        return application
