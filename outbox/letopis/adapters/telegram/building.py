# pyright: reportMissingImports=false
"""Build an application whose queue, update processor and rate limiter record updates and messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from telegram._utils.defaultvalue import DefaultValue
from telegram.ext import Application, ApplicationBuilder, BaseUpdateProcessor

from letopis.adapters.telegram.recording import Connected, RecordingLimiter, RecordingProcessor, RecordingQueue
from letopis.store import InvalidInput


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
