# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Record the chats of an application both ways, give handlers their history, and offer the menu."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Final, cast

from telegram import Message, MessageEntity, Update
from telegram.ext import Application

from letopis.adapters.telegram import menu_screens
from letopis.adapters.telegram.conversion import PtbTransport, raw, update_from
from letopis.adapters.telegram.persistence import LetopisPersistence
from letopis.adapters.telegram.recording import RecordingBuilder, RecordingQueue
from letopis.adapters.telegram_core.bot import BotParts, TelegramFront, bot_id_of, notice_for
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import unrecorded
from letopis.adapters.telegram_core.smart_send import Sent
from letopis.adapters.telegram_core.texts import COMMANDS
from letopis.outbox import Incident, UnsentReply
from letopis.store import InvalidInput, LetopisError, MessageSent

logger: Final = logging.getLogger("letopis.adapters.telegram")

_WITH_HISTORY: Final = ("message", "business_message", "channel_post", "callback_query", "guest_message")
"""Updates whose handlers get a history even in a chat that has none yet."""


class LetopisChats(TelegramFront):
    """The chats of a python-telegram-bot application, in a history.

    ::

        chats = LetopisChats("bot.outbox.db", store="postgresql://bot@db/history")
        application = chats.builder().token(TOKEN).build()

        async def answer(update: Update, _: CallbackContext) -> None:
            context = await chats.chat(update).context(turns=20)
            await chats.smart_send(update, await ask_model(context.messages))

        application.add_handler(MessageHandler(filters.TEXT, answer))
        application.run_polling()

    Each update is recorded before it is acknowledged to Telegram, so a crash loses none, and unanswered ones are
    handled after the next start. What the bot sends is recorded before and after it is sent. The bot notifies users, in
    their language, when one of their messages has been stuck for minutes, and when it is saved.

    :param history: the outbox by path, opened and closed with the application; or a history, which is not closed and
        keeps its own ``on_stuck``.
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
        self._parts: BotParts | None = None
        self._application: Any = None
        self._queue: RecordingQueue | None = None
        self._persistence: LetopisPersistence | None = None
        self._histories: dict[int, ChatHistory | None] = {}
        self._ended = False

    # Connect.

    def builder(
        self,
        *,
        commands: Sequence[str] = COMMANDS,
        describe: bool = False,
        resume_after_seconds: float = 0.0,
    ) -> RecordingBuilder:
        """Return an ``ApplicationBuilder`` whose application records everything.

        :param commands: the built-in commands to offer, out of ``new``, ``list``, ``switch``, ``rename``, ``delete``,
            ``history``, ``stats``, ``search``; none with an empty tuple.
        :param describe: register the commands with Telegram at startup, replacing those registered before.
        :param resume_after_seconds: after a start, handle unfinished updates only if they are older than this. For bots
            with several processes: longer than any handler takes, because another process may still be handling them.
        :raises InvalidInput: there is no such command.
        """
        self._offer(commands, describe=describe, resume_after_seconds=resume_after_seconds)
        return RecordingBuilder(self, self._connect)

    def persistence(self, **options: Any) -> LetopisPersistence:
        """Return a persistence for the builder, on records of the same history.

        What an update has changed is written before the update counts as handled.

        :param options: as for :class:`LetopisPersistence`.
        """
        self._persistence = LetopisPersistence(self.history, **options)
        self._persistence.on_flush = self._close_at_last
        return self._persistence

    # Use.

    def chat(self, update: Update) -> ChatHistory:
        """Return the history of an update's chat; for the update's handlers, while they run.

        :raises InvalidInput: the update belongs to no chat, or its handling has ended.
        """
        found = self._histories.get(update.update_id)
        if found is None:
            raise InvalidInput("update", "has no history: it is of no chat, or its handling has ended")
        return found

    async def of_chat(self, chat_id: int, *, topic_id: int | None = None) -> ChatHistory:
        """Return the history of a chat to write to without an update, with its active conversation."""
        key = await self.parts.chats.settled(ChatKey(bot_id=self.parts.bot_id, chat_id=chat_id, topic_id=topic_id))
        active = await self.parts.chats.active(key)
        return ChatHistory(chats=self.parts.chats, key=key, conversation_id=active.conversation_id)

    async def smart_send(
        self,
        to: Update | Message | ChatHistory,
        text: str,
        *,
        entities: Sequence[MessageEntity] = (),
        reply: bool = False,
        reply_markup: Any = None,
        language: str | None = None,
        **options: Any,
    ) -> Sent:
        """Send an answer of any length, and record it as one message.

        Up to the threshold it is a message, beyond it a file with a preview; if Telegram refuses that, it is several
        messages.

        :param to: the update or message that is answered, or a history.
        :param text: plain text; only code fences are interpreted.
        :param entities: its formatting, with offsets in UTF-16 units.
        :param reply: quote the message that is answered.
        :param reply_markup: the keyboard, below the last part.
        :param language: of the text beside a file; by default the user's.
        :param options: further parameters of ``send_message``, such as ``disable_notification``, for every part.
        :raises InvalidInput: the update has no message.
        :raises ValueError: the text is empty.
        :raises TelegramError: Telegram refused it, or its outcome is unknown; the history records which.
        """
        message = to.effective_message if isinstance(to, Update) else to if isinstance(to, Message) else None
        reply_to: int | None = None
        if isinstance(to, ChatHistory):
            key, language = to.key, language or to.language
            place = await self.parts.chats.address(key.owner) or key
        elif message is None:
            raise InvalidInput("to", "has no message to answer: give a history, as of_chat() returns it")
        else:
            key = place = ChatKey.of_message(self.parts.bot_id, raw(message))
            user = to.effective_user if isinstance(to, Update) else message.from_user
            language = language or (None if user is None else user.language_code)
            if reply:
                reply_to = cast("int", message.message_id)
        transport = PtbTransport(
            bot=self._application.bot,
            place=place.call(),
            reply_markup=reply_markup,
            reply_to=reply_to,
            options=options,
        )
        given = [raw(one) for one in entities]
        return await self.parts.sender.send(transport, key, text, given, language=language)

    async def tell(self, incident: Incident) -> None:
        """Notify the user of an incident, in their language; for ``on_stuck`` and ``on_recovered`` of a history."""
        notice = await notice_for(incident, self.parts.chats, self.parts.local)
        if notice is not None:
            with unrecorded():
                await self._application.bot.send_message(text=notice.text, parse_mode=None, **notice.key.call())

    async def send_again(self, reply: UnsentReply) -> MessageSent:
        """Send a reply that Telegram never confirmed; for ``sender`` of a history."""
        bot = self._application.bot
        return await self.parts.send_again(
            reply, lambda key, options: PtbTransport(bot=bot, place=key.call(), options=options)
        )

    # For the application.

    @property
    def parts(self) -> BotParts:
        """The recorders, the menu and the smart sender.

        :raises InvalidInput: no application is built yet.
        """
        if self._parts is None:
            raise InvalidInput("application", "is not built yet: call builder().token(...).build()")
        return self._parts

    def _connect(self, application: Application[Any, Any, Any, Any, Any, Any], queue: RecordingQueue) -> None:
        self._application, self._queue = application, queue
        self._parts = BotParts.of(self.history, bot_id_of(application.bot.token), **self._settings)

    async def begin(self) -> None:
        """Open the history, and hand in the updates that were still unhandled when the application last ended."""
        await self.history.prepare()
        if self._commands and self._describe:
            await menu_screens.describe(self._application.bot, self._commands)
        for update in await self._unhandled(self.parts):
            await self._application.update_queue.put_again(update_from(update, self._application.bot))

    async def end(self) -> None:
        """Close the history, unless a persistence still has to write."""
        self._ended = True
        if self._persistence is None or self._application.persistence is not self._persistence:
            await self._close_at_last()

    async def _close_at_last(self) -> None:
        if self._ended:
            await self._close_owned()

    async def handled_here(self, recorded: Recorded, update: Update) -> bool:
        """Handle the menu's updates before the bot's handlers, which often accept every message."""
        return await menu_screens.handle(self._application.bot, self.parts, self._commands, recorded, update)

    async def handle(self, recorded: Recorded, update: Update, handlers: Awaitable[Any]) -> None:
        """Let the bot's handlers handle an update."""
        self._histories[update.update_id] = await self._history_of(recorded)
        try:
            await handlers
            if self._persistence is not None and self._application.persistence is self._persistence:
                await self._application.update_persistence()
        finally:
            self._histories.pop(update.update_id, None)

    async def _history_of(self, recorded: Recorded) -> ChatHistory | None:
        if recorded.conversation_id is None and recorded.kind not in _WITH_HISTORY:
            return None
        try:
            return await self.parts.chat_of(recorded)
        except LetopisError as error:
            logger.error("a handler gets no history: %s", error)  # noqa: TRY400 - the error says it all
            return None

    async def failed(self, update: Update, error: Exception) -> None:
        """Pass an error to the bot's error handlers."""
        await self._application.process_error(update, error)
