"""Record what a bot sends: the intent before Telegram is called, and the outcome afterwards."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from letopis.adapters.telegram_core.calls import BotApiCall, Failure, chat_in, content_in, numbers_in, read_call
from letopis.adapters.telegram_core.chats import LOOKED_BACK, Chats, numbers_of, update_of
from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.store import Delivery, LetopisError, Message
from letopis.store.cancellation import run_to_completion
from letopis.store.model.event_types import MessageSent
from letopis.store.model.parts import Content, content_to_json

logger: Final = logging.getLogger("letopis.adapters.telegram")

current_update: ContextVar[Recorded | None] = ContextVar("letopis_telegram_update", default=None)
"""The update being handled: messages sent to its chat meanwhile belong to its conversation."""
_recording: ContextVar[bool] = ContextVar("letopis_telegram_recording", default=True)
_MAX_OPEN: Final = 1_000


@contextmanager
def unrecorded() -> Iterator[None]:
    """Send without recording, for messages that are not part of a conversation: menus, notices, progress.

    ::

        with unrecorded():
            await message.answer("One moment ...")
    """
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


@dataclass(slots=True, kw_only=True)
class Intent:
    """A message that is about to be sent, or whose outcome is unknown.

    :ivar conversation_id: the conversation that it belongs to.
    :ivar message_id: its id in the history.
    :ivar update_id: the update that it was sent for, if any.
    :ivar sent: the message ids that Telegram gave to its parts, by part number.
    :ivar shown: the message ids that Telegram gave to it when an earlier run of the handler sent it.
    """

    conversation_id: str
    message_id: str
    name: str
    update_id: int | None = None
    sent: dict[int, int] = field(default_factory=dict)
    shown: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Change:
    """An edit or deletion, recorded once Telegram has carried it out."""

    call: BotApiCall


class OutgoingRecorder:
    """Records what one bot sends.

    A reply is appended before it is sent, and confirmed or marked as failed afterwards. If its outcome is unknown, as
    after a timeout or a crash, it stays unconfirmed: see ``History.unconfirmed``. Sending the same content to the same
    chat again, for the same update, then confirms that reply instead of creating a second one.

    If an update is handled again after a crash, what its handler sends is recorded as what it sent before: as the reply
    of the same content, otherwise as the one that was not confirmed, which gets the new content. What is still
    unconfirmed when a handler ends is left to the history's ``sender``, if it has one.

    If the outbox refuses an append, an error is logged, and the bot still answers.
    """

    def __init__(self, chats: Chats) -> None:
        self.chats = chats
        self._history = chats.history
        self._bot_id = chats.bot_id
        self._open: OrderedDict[str, Intent] = OrderedDict()
        self._before_crash: dict[int, list[Intent]] = {}

    # A call of the Bot API.

    async def before(self, method: str, payload: Mapping[str, Any]) -> Intent | _Change | None:
        """Record the intent of a call; pass the result to :meth:`after` or :meth:`failed`.

        :param method: its name in the Bot API, for example ``sendMessage``.
        :param payload: its parameters as JSON values.
        """
        if not _recording.get():
            return None
        call = read_call(self._bot_id, method, payload)
        if call is None:
            return None
        if call.does != "send":
            return _Change(call=call)
        assert call.content is not None  # noqa: S101 - what is sent has content
        return await self.begin(call.key, call.content, parse_mode=payload.get("parse_mode"))

    async def after(self, method: str, intent: Intent | _Change | None, result: Any) -> None:
        """Record that a call was carried out.

        :param result: as JSON values.
        """
        if isinstance(intent, Intent):
            await self.sent(intent, numbers_in(result), sent_as=_sent_as(method))
        elif isinstance(intent, _Change):
            with _logged("what was edited or deleted in Telegram"):
                await self._change(intent.call, result)
        elif _recording.get() and (chat_id := chat_in(result)) is not None:
            await self._after_all(method, chat_id, result)

    async def failed(self, intent: Intent | _Change | None, failure: Failure) -> None:
        """Record that a call failed; records nothing if it will be repeated or its outcome is unknown."""
        if not isinstance(intent, Intent):
            return
        if failure.moved_to is not None and (key := ChatKey.parse(intent.conversation_id)) is not None:
            with _logged("the new id of a group"):
                await self.chats.move(key.chat_id, failure.moved_to)
        elif failure.ending == "refused":
            if not intent.shown:
                with _logged("that a reply failed"):
                    await run_to_completion(
                        self._history.chat(intent.conversation_id).failed(intent.message_id, reason=failure.reason)
                    )
            return
        # The same is sent again, to the new id or later, or the outcome stays unknown.
        self._open[intent.name] = intent
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)

    async def handler_ended(self, update_id: int) -> None:
        """Leave to the history's ``sender`` what the handler of an update did not get through."""
        for intent in tuple(self._open.values()):
            if intent.update_id == update_id:
                with _logged("that a reply is to be sent again"):
                    await self._history.chat(intent.conversation_id).send(intent.message_id)

    def sent_parts(self, message_id: str) -> dict[int, int]:
        """Return the parts of a reply that a failed call of this process has sent."""
        return next((intent.sent for intent in self._open.values() if intent.message_id == message_id), {})

    # Parts of one message.

    async def begin(self, key: ChatKey, content: Content, *, parse_mode: str | None = None) -> Intent | None:
        """Append a message that is about to be sent; return ``None`` if the outbox refuses it, which is logged.

        If the same message was begun before and its outcome is unknown, that one is continued.

        :param parse_mode: how Telegram is to read its text, kept for sending it again.
        """
        try:
            place = await self.chats.settled(key)
            conversation_id = await self._conversation(place)
            update = current_update.get()
            name = _digest(conversation_id, update, content)
            found = self._open.pop(name, None) or await self._found_again(conversation_id, update, name, content)
            if found is not None:
                return found
            purpose = {} if update is None else _purpose_of(update)
            if parse_mode is not None:
                purpose["parse_mode"] = parse_mode
            metadata = {"telegram": purpose} if purpose else {}
            async with self._history.reply(conversation_id, owner=place.owner, metadata=metadata, every=None) as reply:
                for part in [content] if isinstance(content, str) else content:
                    await reply.add(part)
        except LetopisError as error:
            logger.error("a reply cannot be recorded, and is sent all the same: %s", error)  # noqa: TRY400
            return None
        return Intent(
            conversation_id=conversation_id,
            message_id=reply.message_id,
            name=name,
            update_id=None if update is None else update.update_id,
        )

    async def sent(
        self, intent: Intent, numbers: tuple[int, ...], *, sent_as: str = "message", file_path: str | None = None
    ) -> None:
        """Confirm a message that was begun.

        :param numbers: the message ids that Telegram gave to its parts.
        """
        numbers = (*intent.shown, *numbers)
        with _logged("that a reply was sent"):
            await run_to_completion(
                self._history.chat(intent.conversation_id).sent(
                    intent.message_id,
                    platform_ids=platform_ids(numbers),
                    sent_as=sent_as,
                    file_path=file_path,
                )
            )

    # What is not known in advance.

    async def _found_again(
        self, conversation_id: str, update: Recorded | None, name: str, content: Content
    ) -> Intent | None:
        """Return the reply that the handler of an update had begun before its process ended; ``None`` for a new one."""
        if update is None or not update.repeated:
            return None
        if update.update_id not in self._before_crash:
            messages = await self._history.messages(conversation_id, last=LOOKED_BACK)
            sent = [one for one in messages if update_of(one) == update.update_id and not one.redacted]
            intents = [
                Intent(
                    conversation_id=conversation_id,
                    message_id=one.id,
                    name=_digest(conversation_id, update, one.content),
                    update_id=update.update_id,
                    shown=numbers_of(one),
                )
                for one in sent
                if one.delivery is not Delivery.FAILED
            ]
            self._before_crash.setdefault(update.update_id, intents)
        earlier = self._before_crash[update.update_id]
        same = next((one for one in earlier if one.name == name), None)
        found = same or next((one for one in earlier if not one.shown), None)
        if found is not None:
            earlier.remove(found)
        if found is not None and found is not same:
            found.name = name
            await self._history.chat(conversation_id).edit(
                found.message_id, content, reason="answered again after a crash"
            )
        return found

    async def _conversation(self, key: ChatKey) -> str:
        update = current_update.get()
        if update is not None and update.key == key and update.conversation_id is not None:
            return update.conversation_id
        return (await self.chats.active(key)).conversation_id

    async def _change(self, call: BotApiCall, result: Any) -> None:
        places = [await self.chats.settled(key) for key in self._places(call, result)]
        for number in call.numbers:
            found = None
            for place in places:
                if found is None:
                    found = await self.chats.find(place, number, chat_id=call.key.chat_id)
            if found is None or found.redacted:
                continue
            if call.does == "edit":
                if call.content is not None and found.content != call.content and len(numbers_of(found)) < 2:
                    await self._history.chat(found.conversation_id).edit(found.id, call.content)
            elif all(one in call.numbers for one in numbers_of(found)):
                await self.chats.redact(found.conversation_id, found.id, reason="deleted in Telegram by the bot")

    def _places(self, call: BotApiCall, result: Any) -> list[ChatKey]:
        """Return the places where a changed message may be: the call names its chat, but not its topic."""
        places = [call.key]
        if chat_in(result) == call.key.chat_id and isinstance(result, Mapping):
            places.append(ChatKey.of_message(self._bot_id, result))
        update = current_update.get()
        if update is not None and update.key is not None and update.chat_id == call.key.chat_id:
            places.append(update.key)
        return list(dict.fromkeys(places))

    async def _after_all(self, method: str, chat_id: int, result: Any) -> None:
        """Record a message sent to a chat that was named by its username."""
        if method.startswith(("edit", "delete", "get")) or (content := content_in(result)) is None:
            return
        with _logged("a message to a channel"):
            place = await self.chats.settled(ChatKey(bot_id=self._bot_id, chat_id=chat_id))
            message = Message.assistant(content)
            sent = MessageSent(
                message_id=message.id, platform_ids={"telegram": numbers_in(result)[0]}, sent_as=_sent_as(method)
            )
            await self._history.append(await self._conversation(place), message, sent, owner=place.owner)


def platform_ids(numbers: tuple[int, ...]) -> dict[str, Any]:
    """Return the message ids of a reply's parts as its confirmation holds them."""
    return {"telegram": numbers[0] if len(numbers) == 1 else list(numbers)}


def _sent_as(method: str) -> str:
    call = read_call(0, method, {"chat_id": 0})
    return "message" if call is None or call.sent_as is None else call.sent_as


def _purpose_of(update: Recorded) -> dict[str, Any]:
    """Return what a message that is sent for an update says of it."""
    named = {} if update.message_id is None else {"answers": update.message_id}
    return {"update_id": update.update_id, **named}


def _digest(conversation_id: str, update: Recorded | None, content: Content | None) -> str:
    told = [None if update is None else update.update_id, None if content is None else content_to_json(content)]
    described = orjson.dumps(told, option=orjson.OPT_SORT_KEYS, default=str)
    return hashlib.sha256(conversation_id.encode() + b"\n" + described).hexdigest()


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Log that something which has happened cannot be recorded."""
    try:
        yield
    except LetopisError as error:
        logger.error("%s cannot be recorded: %s", what, error)  # noqa: TRY400 - the error says it all
