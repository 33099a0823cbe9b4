# pyright: reportMissingImports=false
"""Record what a client of Pyrogram receives and sends."""

from __future__ import annotations

import functools
import inspect
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pyrogram import Client, enums, handlers

from letopis.adapters.pyrogram.conversion import (
    METHODS,
    entities_for,
    failure_from,
    payload_of,
    raw_message,
    result_of,
    update_id,
)
from letopis.adapters.telegram_core.bot import BotParts, TelegramFront, notice_for
from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import current_update, unrecorded
from letopis.adapters.telegram_core.smart_send import Sent
from letopis.adapters.telegram_core.splitting import Entity
from letopis.outbox import Incident, UnsentReply
from letopis.store import InvalidInput, LetopisError, MessageSent

logger: Final = logging.getLogger("letopis.adapters.telegram")

GROUP: Final = -100
"""The group of handlers in which updates are recorded, before those of the bot."""
_REMEMBERED: Final = 10_000


class LetopisRecorder(TelegramFront):
    """Records the chats of one client, and gives handlers access to their history.

    ::

        recorder = LetopisRecorder("bot.outbox.db", store="postgresql://bot@db/history")
        recorder.attach(app)

        @app.on_message(filters.text & filters.private)
        async def answer(client, message):
            context = await (await recorder.chat(message)).context(turns=20)
            await recorder.smart_send(message, await ask_model(context.messages))

    Incoming messages, edits and deletions are recorded in a handler that runs before the bot's own. What the client
    sends, by any method, ``message.reply`` included, is recorded before and after it is sent. The client acknowledges
    an update to Telegram before any handler runs, so a kill at that moment can lose it; the adapters for the Bot API do
    not have this gap.

    :param history: the outbox by path, or a history, which is not closed and keeps its own ``on_stuck``.
    :param store: with a path, the history store, by URL or path.
    :param files: the folder for answers that smart send sends as files; by default ``<outbox>.files``.
    :param threshold: the longest answer that smart send sends as a message, in UTF-16 units.
    :param preview: UTF-16 units of the preview of an answer that is sent as a file.
    :param titles: name the conversation of a private chat after its first question.
    :param commands_are_messages: record commands as part of the conversation, too.
    :param options: with a path, further parameters of :class:`~letopis.outbox.History`; with ``sender=True``, replies
        that a crash or a failed call kept from Telegram are sent again.
    :raises ConfigurationError: the path, the URL or an option is wrong.
    """

    def _set_up(self) -> None:
        self._client: Any = None
        self._parts: BotParts | None = None
        self._recorded: OrderedDict[tuple[int, int], Recorded] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self.history.prepare()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the history if the recorder opened it; it also closes when the event loop ends."""
        await self._close_owned()

    def attach(self, client: Client) -> None:
        """From now on, record what a client receives and sends.

        :raises InvalidInput: it is already connected to a client.
        """
        if self._client is not None:
            raise InvalidInput("client", "is connected already: make a recorder for each client")
        self._client = client
        client.add_handler(handlers.MessageHandler(self._on_message), GROUP)
        client.add_handler(handlers.EditedMessageHandler(self._on_edited), GROUP)
        client.add_handler(handlers.DeletedMessagesHandler(self._on_deleted), GROUP)
        for name, method in METHODS.items():
            # On the instance, so that the methods of messages call it, too.
            setattr(client, name, self._recording(method, getattr(client, name)))

    # Use.

    @property
    def parts(self) -> BotParts:
        """The recorders and the smart sender.

        :raises InvalidInput: the client has not started yet.
        """
        if self._parts is None:
            me = None if self._client is None else self._client.me
            if me is None:
                raise InvalidInput("client", "has not started yet")
            self._parts = BotParts.of(self.history, me.id, **self._settings)
        return self._parts

    async def chat(self, message: Any) -> ChatHistory:
        """Return the chat history for a message, with the conversation that the message is in.

        :raises InvalidInput: the message has no chat, or the client has not started.
        """
        recorded = self._recorded.get((message.chat.id, message.id)) if message.chat is not None else None
        found = None if recorded is None else await self.parts.chat_of(recorded)
        if found is not None:
            return found
        key = await self.parts.chats.settled(ChatKey.of_message(self.parts.bot_id, raw_message(message)))
        active = await self.parts.chats.active(key)
        return ChatHistory(chats=self.parts.chats, key=key, conversation_id=active.conversation_id)

    async def smart_send(
        self, to: Any, text: str, *, entities: Sequence[Entity] = (), reply: bool = False, reply_markup: Any = None
    ) -> Sent:
        """Send an answer of any length, and record it as one message.

        Up to the threshold it is a message, beyond it a file with a preview; if Telegram refuses that, it is several
        messages.

        :param to: the message that is answered.
        :param entities: the formatting in the form of the Bot API, with offsets in UTF-16 units.
        :param reply: quote the message.
        :param reply_markup: the keyboard, below the last part.
        :raises ValueError: the text is empty.
        :raises RPCError: Telegram refused it; the history says so.
        """
        key = ChatKey.of_message(self.parts.bot_id, raw_message(to))
        transport = self._transport_to(key, reply_markup=reply_markup, reply_to=to.id if reply else None)
        token = current_update.set(self._recorded.get((to.chat.id, to.id)))
        try:
            language = None if to.from_user is None else getattr(to.from_user, "language_code", None)
            return await self.parts.sender.send(transport, key, text, entities, language=language)
        finally:
            current_update.reset(token)

    async def tell(self, incident: Incident) -> None:
        """Notify the user of an incident, in their language; for ``on_stuck`` and ``on_recovered`` of a history."""
        notice = await notice_for(incident, self.parts.chats, self.parts.local)
        if notice is not None:
            with unrecorded():
                await self._client.send_message(notice.key.chat_id, notice.text, parse_mode=enums.ParseMode.DISABLED)

    async def send_again(self, reply: UnsentReply) -> MessageSent:
        """Send a reply that Telegram never confirmed; for ``sender`` of a history."""
        return await self.parts.send_again(reply, lambda key, options: self._transport_to(key, **options))

    def _transport_to(self, key: ChatKey, *, parse_mode: str = "DISABLED", **options: Any) -> _Transport:
        known = _parameters(self._client.send_message)
        place = {name: value for name, value in key.call().items() if name in known}
        return _Transport(client=self._client, place=place, parse_mode=enums.ParseMode[parse_mode], **options)

    # Incoming.

    async def _on_message(self, _: Client, message: Any) -> None:
        # What the account itself sends comes back as an update, but is already recorded on sending.
        if not getattr(message, "outgoing", False) and message.chat is not None:
            given = raw_message(message)
            await self._record("message", message, given, update_id("message", message.chat.id, message.id))

    async def _on_edited(self, _: Client, message: Any) -> None:
        if not getattr(message, "outgoing", False) and message.chat is not None:
            given = raw_message(message)
            number = update_id("edit", message.chat.id, message.id, given.get("edit_date"), given.get("text"))
            await self._record("edited_message", message, given, number)

    async def _on_deleted(self, _: Client, messages: Sequence[Any]) -> None:
        # Telegram does not say in which private chat a message was deleted.
        for message in messages:
            if message.chat is not None:
                chat = {"id": message.chat.id, "type": "supergroup"}
                number = update_id("deleted", message.chat.id, message.id)
                given = {"chat": chat, "message_ids": [message.id]}
                await self._record("deleted_business_messages", message, given, number)

    async def _record(self, kind: str, message: Any, given: Mapping[str, Any], number: int) -> None:
        try:
            recorded = await self.parts.incoming.record({"update_id": number, kind: dict(given)})
            await self.parts.incoming.handled(number)  # the client fetches missed updates on its own
        except LetopisError as error:
            logger.error("a message is handled, and not recorded: %s", error)  # noqa: TRY400 - the error says it all
            return
        self._recorded[message.chat.id, message.id] = recorded
        if len(self._recorded) > _REMEMBERED:
            self._recorded.popitem(last=False)

    # Outgoing.

    def _recording(self, method: str, send: Any) -> Any:
        """Wrap a method of the client so that what it sends, edits or deletes is recorded."""
        signature = inspect.signature(send)

        @functools.wraps(send)
        async def call(*args: Any, **kwargs: Any) -> Any:
            outgoing = self.parts.outgoing
            given = signature.bind(*args, **kwargs).arguments
            payload = payload_of(given)
            if "parse_mode" in signature.parameters:
                payload["parse_mode"] = (given.get("parse_mode") or self._client.parse_mode).name
            intent = await outgoing.before(method, payload)
            try:
                result = await send(*args, **kwargs)
            except BaseException as error:  # cancellations too: Telegram may have carried out the call
                unknown = Failure(ending="unknown", reason=type(error).__name__)
                await outgoing.failed(intent, failure_from(error) or unknown)
                raise
            await outgoing.after(method, intent, result_of(result))
            return result

        return call


@dataclass(slots=True, kw_only=True)
class _Transport:
    """Sends the parts of an answer to one place; implements the ``Transport`` of smart send."""

    client: Any
    place: Mapping[str, Any]
    reply_markup: Any = None
    reply_to: int | None = None
    parse_mode: enums.ParseMode

    async def send_text(self, text: str, entities: Sequence[Entity], *, last: bool) -> int:
        """Send a message."""
        markup = self.reply_markup if last else None
        sent = await self.client.send_message(
            text=text, entities=entities_for(list(entities)), reply_markup=markup, **self._common()
        )
        return int(sent.id)

    async def send_file(self, path: Path, name: str, caption: str, entities: Sequence[Entity]) -> int:
        """Send a document."""
        sent = await self.client.send_document(
            document=str(path),
            file_name=name,
            caption=caption,
            caption_entities=entities_for(list(entities)),
            reply_markup=self.reply_markup,
            **self._common(),
        )
        return int(sent.id)

    async def send_media(self, kind: str, reference: str, caption: str, entities: Sequence[Entity]) -> int:
        """Send a file by its id or URL."""
        send = getattr(self.client, f"send_{kind}")
        given = {kind: reference, "caption": caption, **self._common()}
        sent = await send(**{name: value for name, value in given.items() if name in _parameters(send)})
        return int(sent.id)

    def failure_of(self, error: Exception) -> Failure | None:
        """Return what an exception means."""
        return failure_from(error)

    def _common(self) -> dict[str, Any]:
        common: dict[str, Any] = {**self.place, "parse_mode": self.parse_mode}
        if self.reply_to is not None:
            common["reply_to_message_id"] = self.reply_to
        return common


def _parameters(method: Any) -> frozenset[str]:
    return frozenset(inspect.signature(method).parameters)
