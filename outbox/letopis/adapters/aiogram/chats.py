# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Record the chats of an aiogram bot both ways, give handlers their history, and offer the menu."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Literal, cast

from aiogram import Bot, Dispatcher, Router
from aiogram.dispatcher.event.bases import UNHANDLED
from aiogram.methods import TelegramMethod
from aiogram.types import Message, MessageEntity, Update
from aiogram.utils.formatting import Text

from letopis.adapters.aiogram.conversion import AiogramTransport, raw
from letopis.adapters.aiogram.menu_router import describe_commands, menu_router, show_titled
from letopis.adapters.aiogram.recording import RecordingRequestHandler, RequestRecording, UpdateRecording
from letopis.adapters.aiogram.storage import LetopisFsmStorage
from letopis.adapters.telegram_core.bot import BotParts, TelegramFront, notice_for
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import unrecorded
from letopis.adapters.telegram_core.smart_send import Sent
from letopis.adapters.telegram_core.texts import COMMANDS
from letopis.outbox import Incident, UnsentReply
from letopis.store import InvalidInput, MessageSent

logger: Final = logging.getLogger("letopis.adapters.telegram")


class LetopisChats(TelegramFront):
    """The chats of an aiogram bot, in a history.

    ::

        chats = LetopisChats("bot.outbox.db", store="postgresql://bot@db/history")
        dp = Dispatcher(storage=chats.storage())
        chats.attach(dp)

        @dp.message()
        async def answer(message: Message, history: ChatHistory) -> None:
            context = await history.context(turns=20)
            await chats.smart_send(message, await ask_model(context.messages))

    Each update is recorded before it is acknowledged to Telegram, so a crash loses none, and unanswered ones are
    handled after the next start. What the bot sends is recorded before and after it is sent. The bot notifies users, in
    their language, when one of their messages has been stuck for minutes, and when it is saved.

    :param history: the outbox by path, opened and closed with the bot; or a history, which is not closed and keeps its
        own ``on_stuck``.
    :param store: with a path, the history store, by URL or path.
    :param files: the folder for answers that smart send sends as files; by default ``<outbox>.files``, and
        ``letopis.files`` with a history.
    :param threshold: the longest answer that smart send sends as a message, in UTF-16 units.
    :param preview: UTF-16 units of the preview of an answer that is sent as a file.
    :param titles: name the conversation of a private chat after its first question.
    :param commands_are_messages: record commands as part of the conversation, too.
    :param tz: the time zone for times shown in the menu.
    :param options: with a path, further parameters of :class:`~letopis.outbox.History`; with ``sender=True``, replies
        that a crash or a failed call kept from Telegram are sent again.
    :raises ConfigurationError: the path, the URL or an option is wrong.
    """

    def _set_up(self) -> None:
        self._parts: dict[int, BotParts] = {}
        self._bots: dict[int, Bot] = {}
        self._requests = RequestRecording(self)
        self._updates = UpdateRecording(self, self._requests, self._handled_here)
        self._router: Router | None = None
        self._dispatcher: Dispatcher | None = None
        self._again: set[asyncio.Task[None]] = set()
        self._drain_seconds = 10.0

    # Connect.

    def attach(
        self,
        dispatcher: Dispatcher,
        *,
        commands: Sequence[str] = COMMANDS,
        describe: bool = False,
        drain_seconds: float = 10.0,
        resume_after_seconds: float = 0.0,
    ) -> None:
        """Connect with a dispatcher: from its startup to its shutdown, everything is recorded.

        :param commands: the built-in commands to offer, out of ``new``, ``list``, ``switch``, ``rename``, ``delete``,
            ``history``, ``stats``, ``search``; none with an empty tuple.
        :param describe: register the commands with Telegram at startup, replacing those registered before.
        :param drain_seconds: how long the shutdown waits for handlers that are running.
        :param resume_after_seconds: after a start, handle unfinished updates only if they are older than this. For bots
            with several processes: longer than any handler takes, because another process may still be handling them.
        :raises InvalidInput: there is no such command, or it is connected already.
        """
        if self._dispatcher is not None:
            raise InvalidInput("dispatcher", "is connected already: attach once")
        self._offer(commands, describe=describe, resume_after_seconds=resume_after_seconds)
        self._dispatcher = dispatcher
        self._drain_seconds = drain_seconds
        self._router = menu_router(self.parts_of, self._commands)
        dispatcher.include_router(self._router)
        dispatcher.update.outer_middleware(self._updates)
        dispatcher.startup.register(self._startup)
        dispatcher.shutdown.register(self._shutdown)

    def storage(self, *, cache: bool = True, when_unknown: Literal["none", "raise"] = "none") -> LetopisFsmStorage:
        """Return a storage for the dispatcher's FSM, on records of the same history.

        :param cache: as for :class:`LetopisFsmStorage`.
        :param when_unknown: as for :class:`LetopisFsmStorage`.
        """
        return LetopisFsmStorage(self.history, cache=cache, when_unknown=when_unknown)

    def webhook(
        self, dispatcher: Dispatcher, bot: Bot, *, handle_in_background: bool = True, secret_token: str | None = None
    ) -> RecordingRequestHandler:
        """Return a replacement for ``SimpleRequestHandler`` that records each update before it answers."""
        return RecordingRequestHandler(
            dispatcher, bot, self._requests, handle_in_background=handle_in_background, secret_token=secret_token
        )

    def parts_of(self, bot: Bot) -> BotParts:
        """Return the recorders, the menu and the smart sender of a bot, connecting to its session on first use."""
        if bot.id not in self._parts:
            self._parts[bot.id] = BotParts.of(self.history, bot.id, **self._settings)
            self._bots[bot.id] = bot
        if self._requests not in bot.session.middleware:
            bot.session.middleware(self._requests)
        return self._parts[bot.id]

    # Use.

    async def smart_send(
        self,
        to: Message | ChatHistory,
        text: str | Text,
        *,
        entities: Sequence[MessageEntity] = (),
        bot: Bot | None = None,
        reply: bool = False,
        reply_markup: Any = None,
        language: str | None = None,
        **options: Any,
    ) -> Sent:
        """Send an answer of any length, and record it as one message.

        Up to the threshold it is a message, beyond it a file with a preview; if Telegram refuses that, it is several
        messages.

        :param to: the message that is answered, or the history that a handler was given.
        :param text: plain text; only code fences are interpreted, or a ``Text`` of ``aiogram.utils.formatting``.
        :param entities: the formatting of a plain text, with offsets in UTF-16 units.
        :param bot: with a history of several bots: which of them.
        :param reply: quote the message that is answered.
        :param reply_markup: the keyboard, below the last part.
        :param language: of the text beside a file; by default the user's.
        :param options: further parameters of ``send_message``, such as ``disable_notification``, for every part.
        :raises InvalidInput: the bot is not known.
        :raises ValueError: the text is empty.
        :raises TelegramAPIError: Telegram refused it, or its outcome is unknown; the history records which.
        """
        if isinstance(text, Text):
            rendered = text.as_kwargs()
            text, entities = cast("str", rendered["text"]), cast("list[MessageEntity]", rendered["entities"] or [])
        reply_to: int | None = None
        if isinstance(to, Message):
            bot = bot or to.bot
            if bot is None:
                raise InvalidInput("bot", "the message belongs to none: give the bot")
            key = ChatKey.of_message(bot.id, raw(to))
            language = language or (to.from_user.language_code if to.from_user else None)
            place = key
            if reply:
                reply_to = cast("int", to.message_id)
        else:
            bot = bot or self._bots.get(to.key.bot_id)
            if bot is None:
                raise InvalidInput("bot", "is not known yet: give it")
            key, language = to.key, language or to.language
            place = await self.parts_of(bot).chats.address(key.owner) or key
        transport = AiogramTransport(
            bot=bot,
            place=place.call(),
            reply_markup=reply_markup,
            reply_to=reply_to,
            options=options,
        )
        given = [one.model_dump(exclude_none=True) for one in entities]
        return await self.parts_of(bot).sender.send(transport, key, text, given, language=language)

    async def idle(self, seconds: float = 10.0) -> bool:
        """Wait until no update is being handled; return ``False`` if some still are after ``seconds``."""
        return await self._updates.wait_until_idle(seconds)

    async def tell(self, incident: Incident) -> None:
        """Notify the user of an incident, in their language; for ``on_stuck`` and ``on_recovered`` of a history.

        :raises InvalidInput: the chat belongs to a bot that has not started yet.
        """
        key = ChatKey.parse(incident.owner_id or incident.conversation_id)
        if key is None:
            return
        bot = self._bots.get(key.bot_id)
        if bot is None:
            raise InvalidInput("bot", "has not started yet: its user is notified later")
        parts = self.parts_of(bot)
        notice = await notice_for(incident, parts.chats, parts.local)
        if notice is not None:
            with unrecorded():
                await bot.send_message(text=notice.text, parse_mode=None, **notice.key.call())

    async def send_again(self, reply: UnsentReply) -> MessageSent:
        """Send a reply that Telegram never confirmed; for ``sender`` of a history."""
        key = ChatKey.parse(reply.owner_id or reply.conversation_id)
        bot = None if key is None else self._bots.get(key.bot_id)
        if bot is None:
            raise InvalidInput("reply", "is of no bot that has started")
        return await self.parts_of(bot).send_again(
            reply, lambda key, options: AiogramTransport(bot=bot, place=key.call(), options=options)
        )

    # For the dispatcher.

    async def _startup(self, dispatcher: Dispatcher, bot: Bot | None = None, **data: Any) -> None:
        await self.history.prepare()
        bots = tuple(data.get("bots") or (() if bot is None else (bot,)))
        for one in bots:
            parts = self.parts_of(one)
            if self._commands and self._describe:
                await describe_commands(one, self._commands)
            for update in await self._unhandled(parts):
                recorded = await self._requests.receive(one, update)
                self._updates.expect(one, recorded)
                again = self._handle_again(dispatcher, one, update, recorded, data)
                task = asyncio.create_task(again, name="letopis-again")
                self._again.add(task)
                task.add_done_callback(self._again.discard)

    async def _handle_again(
        self, dispatcher: Dispatcher, bot: Bot, update: dict[str, Any], recorded: Recorded, data: dict[str, Any]
    ) -> None:
        given = {name: value for name, value in data.items() if name not in ("dispatcher", "bots", "router")}
        try:
            result = await dispatcher.feed_raw_update(bot, update, **{**given, "letopis_again": True})
            if isinstance(result, TelegramMethod):
                await dispatcher.silent_call_request(bot, result)
        except Exception as error:  # aiogram has logged it; the next update of the chat is handled
            logger.debug("an update failed again: %s", type(error).__name__)
        # Not after a cancellation: the process is ending, and what waits for this update is handled after it.
        self._updates.forget(bot, recorded)

    async def _shutdown(self) -> None:
        if not await self.idle(self._drain_seconds):
            logger.warning("some updates are still being handled: they are handled again after the next start")
        for task in tuple(self._again):
            task.cancel()
        await self._close_owned()

    async def _handled_here(
        self, bot: Bot, parts: BotParts, recorded: Recorded, update: Update, data: dict[str, Any]
    ) -> bool:
        """Handle the menu's updates before the bot's handlers, which often accept every message."""
        if recorded.titles is not None and update.message is not None:
            await show_titled(bot, parts, update.message, recorded.titles)
            return True
        if self._router is None or recorded.kind not in ("message", "callback_query"):
            return False
        event = update.message if recorded.kind == "message" else update.callback_query
        if event is None:
            return False
        given = {**data, "event_update": update}
        result = await self._router.propagate_event(update_type=recorded.kind, event=event, **given)
        return result is not UNHANDLED
