"""Record incoming updates, each once, before they are acknowledged to Telegram."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from letopis.adapters.telegram_core.chats import Chats, numbers_of
from letopis.adapters.telegram_core.content import content_of, metadata_of, moment_of, title_from
from letopis.adapters.telegram_core.keys import ChatKey, author_of, message_id, sender_of
from letopis.adapters.telegram_core.local_state import KnownUpdate, LocalState
from letopis.adapters.telegram_core.updates import (
    ChatMoved,
    Command,
    Deleted,
    Edited,
    Meaning,
    Other,
    Reacted,
    Said,
    is_from_account,
    read_update,
)
from letopis.store import (
    Closed,
    IdReused,
    InvalidInput,
    LetopisError,
    Message,
    OutboxFull,
    OutboxUnavailable,
)
from letopis.store.model.event_types import (
    Body,
    ConversationRenamed,
    CustomEvent,
    MessageEdited,
    ReactionAdded,
    ReactionRemoved,
)

logger: Final = logging.getLogger("letopis.adapters.telegram")

NOT_NOW: Final = (OutboxFull, OutboxUnavailable, Closed)
"""Errors after which Telegram must send an update again: nothing can be recorded at present."""
_NO_PLACE: Final = "updates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The outcome of recording an update.

    :ivar key: the place it belongs to, settled after moves; ``None`` if it has none.
    :ivar chat_id: of the chat that it came from.
    :ivar conversation_id: the conversation in which it was recorded; ``None`` if it belongs to no chat.
    :ivar repeated: it was recorded before.
    :ivar handled: it was recorded before, and its handling has finished: it must not be handled again.
    :ivar titles: the conversation that this message gives a title; such a message is not part of the conversation.
    :ivar message_id: the message of the conversation that the update brought or edited, if it did.
    """

    update_id: int
    kind: str
    key: ChatKey | None
    chat_id: int | None
    conversation_id: str | None
    language: str | None
    repeated: bool = False
    handled: bool = False
    titles: str | None = None
    message_id: str | None = None


@dataclass(slots=True)
class _Work:
    """What to append for an update."""

    conversation_id: str | None = None
    owner: str | None = None
    events: list[Message | Body] = field(default_factory=list)
    occurred_at: datetime | None = None
    titles: str | None = None
    message_id: str | None = None


class IncomingRecorder:
    """Records the updates that one bot receives.

    An update is recorded together with the note that it was received, in one transaction, so that the same update has
    no effect when Telegram sends it again. Call :meth:`handled` when its handling has finished. After a crash,
    :meth:`unhandled` returns updates that were acknowledged but not answered.

    :param titles: name the conversation of a private chat after its first question.
    :param commands_are_messages: record messages that begin with a command as part of the conversation, too.
    """

    def __init__(
        self,
        chats: Chats,
        *,
        local: LocalState | None = None,
        titles: bool = True,
        commands_are_messages: bool = False,
    ) -> None:
        self.chats = chats
        self.local = local or LocalState(chats.history)
        self._history = chats.history
        self._bot_id = chats.bot_id
        self._titles = titles
        self._commands_are_messages = commands_are_messages
        self._one_at_a_time = asyncio.Lock()

    async def record(self, update: Mapping[str, Any]) -> Recorded:
        """Record a raw update durably, once.

        Content that cannot be stored, for example because it exceeds a limit, is logged as an error; the update is
        still accepted.

        :raises InvalidInput: it is not an update.
        :raises OutboxFull: nothing can be recorded at present. Do not confirm the update, so that Telegram sends it
            again.
        :raises OutboxUnavailable: likewise.
        :raises Closed: the history is closed.
        """
        await self.local.prepare()
        meaning = _read(self._bot_id, update)
        # In the order of the updates, even if several are handled at once.
        async with self._one_at_a_time:
            key = None if meaning.key is None else await self.chats.settled(meaning.key)
            try:
                return await self._record(update, meaning, key)
            except NOT_NOW:
                raise
            except Exception as error:  # whatever the error is, one bad update must not block those after it
                logger.error(  # noqa: TRY400 - a traceback may quote the message
                    "an update cannot be recorded, and is handled all the same: %s",
                    error if isinstance(error, LetopisError) else type(error).__name__,
                    extra={"update_id": meaning.update_id},
                )
                return await self._without_content(update, meaning, key)

    async def begin(self, recorded: Recorded) -> None:
        """Count an attempt if an update is handled again; call it before the handler."""
        if recorded.repeated:
            try:
                await self.local.begin_again(self._bot_id, recorded.update_id)
            except LetopisError as error:
                logger.error("that an update is handled again cannot be counted: %s", error)  # noqa: TRY400 - likewise

    async def handled(self, update_id: int) -> None:
        """Record that the handling of an update has ended, however it ended."""
        await self.local.handled(self._bot_id, update_id)

    async def unhandled(self, *, older_than: timedelta = timedelta(0)) -> Sequence[dict[str, Any]]:
        """Return raw updates whose process ended before handling them, oldest first.

        One whose handling has begun again three times is not returned any more, and its content is dropped.

        :param older_than: for bots with several processes: longer than handling an update takes.
        """
        return await self.local.unhandled(self._bot_id, older_than=older_than)

    async def _record(self, update: Mapping[str, Any], meaning: Meaning, key: ChatKey | None) -> Recorded:
        if isinstance(meaning, ChatMoved):
            await self.chats.move(meaning.old, meaning.new)
            key = await self.chats.settled(meaning.key) if meaning.key is not None else None
        work = await self._work(meaning, key)
        async with self._history.transaction() as tx:
            known = await self._receive(tx, update, meaning, key, work.conversation_id)
            if known is None:
                if key is not None:
                    await self.local.learn_language(tx, key.owner, meaning.language)
                if work.conversation_id is not None and work.events:
                    await self._append(tx, work)
        if key is not None and known is None:
            self.local.learned_language(key.owner, meaning.language)
        return _recorded(
            meaning,
            key,
            conversation_id=work.conversation_id if known is None else known.conversation_id,
            repeated=known is not None,
            handled=known is not None and known.handled,
            titles=work.titles,
            message_id=work.message_id,
        )

    async def _receive(
        self, tx: Any, update: Mapping[str, Any], meaning: Meaning, key: ChatKey | None, conversation_id: str | None
    ) -> KnownUpdate | None:
        owner, author = None if key is None else key.owner, sender_of(self._bot_id, meaning.payload)
        return await self.local.receive(tx, self._bot_id, update, conversation_id, owner=owner, author=author)

    async def _append(self, tx: Any, work: _Work) -> None:
        try:
            await tx.append(work.conversation_id, *work.events, owner=work.owner, occurred_at=work.occurred_at)
        except IdReused:
            # The same message arrived under another update id, or another bot in this conversation recorded it.
            logger.info("a message was recorded before", extra={"conversation_id": work.conversation_id})

    async def _without_content(self, update: Mapping[str, Any], meaning: Meaning, key: ChatKey | None) -> Recorded:
        async with self._history.transaction() as tx:
            known = await self._receive(tx, update, meaning, key, None)
        number = meaning.payload.get("message_id") if isinstance(meaning, Said) else None
        return _recorded(
            meaning,
            key,
            conversation_id=None,
            repeated=known is not None,
            handled=known is not None and known.handled,
            # It is not in the history: a context for it is refused, rather than one that ends with another question.
            message_id=message_id(meaning.payload["chat"]["id"], number) if isinstance(number, int) else None,
        )

    async def _work(self, meaning: Meaning, key: ChatKey | None) -> _Work:
        if key is None:
            return _Work(f"tg:{self._bot_id}:{_NO_PLACE}", None, [_raw(meaning)])
        if isinstance(meaning, Said):
            return await self._said(meaning, key)
        if isinstance(meaning, Command) and self._commands_are_messages:
            return await self._said(meaning, key)
        if isinstance(meaning, Edited):
            return await self._edited(meaning, key)
        if isinstance(meaning, Deleted):
            return await self._deleted(meaning, key)
        if isinstance(meaning, Reacted):
            return await self._reacted(meaning, key)
        return await self._other(meaning, key)

    async def _said(self, meaning: Meaning, key: ChatKey) -> _Work:
        message = meaning.payload
        if (titles := await self._titled_by(message, key)) is not None:
            return _Work(
                titles,
                key.owner,
                [CustomEvent(name="telegram.title", data={"text": message.get("text", "")})],
                titles=titles,
            )
        active = await self.chats.active(key)
        made = _message(self._bot_id, message)
        events: list[Message | Body] = [made]
        # In a group the title would repeat words of one person, which an erasure of that person does not find.
        named = self._titles and active.title is None and key.chat_id > 0
        if named and made.role == "user" and made.text.strip():
            events.append(ConversationRenamed(title=title_from(made.text)))
        return _Work(active.conversation_id, key.owner, events, moment_of(message), message_id=made.id)

    async def _titled_by(self, message: Mapping[str, Any], key: ChatKey) -> str | None:
        answered = message.get("reply_to_message")
        if not isinstance(answered, Mapping) or not isinstance(message.get("text"), str):
            return None
        sender = answered.get("from")
        if not isinstance(sender, Mapping) or sender.get("id") != self._bot_id:
            return None
        return await self.local.answered(key.owner, answered.get("message_id", 0))

    async def _edited(self, meaning: Edited, key: ChatKey) -> _Work:
        message = meaning.payload
        content = content_of(message)
        assert content is not None  # noqa: S101 - or it were another meaning
        assert meaning.key is not None  # noqa: S101 - likewise
        found = await self.chats.find(key, message["message_id"], chat_id=meaning.key.chat_id)
        if found is None:  # it was written before recording began, so its current content is all there is
            active, made = await self.chats.active(key), _message(self._bot_id, message)
            return _Work(active.conversation_id, key.owner, [made], moment_of(message), message_id=made.id)
        work = _Work(found.conversation_id, key.owner, [], moment_of(message, "edit_date"), message_id=found.id)
        if not found.redacted and found.content != content:
            work.events.append(MessageEdited(message_id=found.id, content=content))
        return work

    async def _deleted(self, meaning: Deleted, key: ChatKey) -> _Work:
        assert meaning.key is not None  # noqa: S101 - or it were another meaning
        for number in meaning.numbers:
            found = await self.chats.find(key, number, chat_id=meaning.key.chat_id)
            if found is not None and not found.redacted and _last_of(found, meaning.numbers):
                # Idempotent, so it need not be in the transaction that notes the update: a message may be in any
                # conversation.
                await self.chats.redact(found.conversation_id, found.id, reason="deleted in Telegram")
        active = await self.chats.active(key)
        return _Work(active.conversation_id, key.owner, [])

    async def _reacted(self, meaning: Reacted, key: ChatKey) -> _Work:
        assert meaning.key is not None  # noqa: S101 - or it were another meaning
        found = await self.chats.find(key, meaning.number, chat_id=meaning.key.chat_id)
        if found is None:
            return await self._other(meaning, key)
        removed = [ReactionRemoved(message_id=found.id, key=one, actor=meaning.actor) for one in meaning.removed]
        added = [ReactionAdded(message_id=found.id, key=one, actor=meaning.actor) for one in meaning.added]
        return _Work(found.conversation_id, key.owner, [*removed, *added], moment_of(meaning.payload))

    async def _other(self, meaning: Meaning, key: ChatKey) -> _Work:
        # A button press or a join does not start a conversation.
        active = await self._active(key)
        if active is None:
            return _Work(f"tg:{self._bot_id}:{_NO_PLACE}", None, [_raw(meaning)])
        return _Work(active, key.owner, [_raw(meaning)])

    async def _active(self, key: ChatKey) -> str | None:
        """Return the id of the active conversation of a settled place; ``None`` if there is none."""
        found = await self._history.active(key.owner, create=False)
        return None if found is None else found.conversation_id


def _read(bot_id: int, update: Mapping[str, Any]) -> Meaning:
    """Return what an update means; one whose shape Telegram does not document is kept raw, without a meaning."""
    try:
        return read_update(bot_id, update)
    except InvalidInput:
        raise
    except Exception as error:  # external input may be anything
        logger.warning("an update has an unexpected shape: %s", type(error).__name__)
        return Other(update_id=update["update_id"], kind="unexpected", key=None, payload=dict(update))


def _message(bot_id: int, message: Mapping[str, Any]) -> Message:
    content = content_of(message)
    if content is None:
        raise InvalidInput("message", "says nothing")
    number = message["message_id"]
    return Message(
        role="assistant" if is_from_account(message) else "user",
        content=content,
        id=message_id(message["chat"]["id"], number),
        author=author_of(bot_id, message),
        external_ids={"telegram": number},
        metadata=metadata_of(message),
    )


def _raw(meaning: Meaning) -> CustomEvent:
    name = "telegram.command" if isinstance(meaning, Command) else f"telegram.{meaning.kind}"
    return CustomEvent(name=name, data={"update_id": meaning.update_id, meaning.kind: dict(meaning.payload)})


def _recorded(meaning: Meaning, key: ChatKey | None, *, conversation_id: str | None, **given: Any) -> Recorded:
    of_no_chat = conversation_id is not None and conversation_id.endswith(f":{_NO_PLACE}")
    return Recorded(
        conversation_id=None if of_no_chat else conversation_id,
        update_id=meaning.update_id,
        kind=meaning.kind,
        key=key,
        chat_id=None if meaning.key is None else meaning.key.chat_id,
        language=meaning.language,
        **given,
    )


def _last_of(found: Any, numbers: Sequence[int]) -> bool:
    """Return True if no part of a message remains: a long answer was sent as several messages."""
    return all(one in numbers for one in numbers_of(found))
