"""Find the conversations of a Telegram chat: the active one, the one that holds a message, the one after a move."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from typing import Any, Final
from weakref import WeakValueDictionary

from letopis.adapters.telegram_core.answer_files import AnswerFiles
from letopis.adapters.telegram_core.keys import ChatKey, message_id
from letopis.outbox import History, Receipt
from letopis.store import Conversation, ConversationGone, InvalidInput, RecordedMessage, StoreUnavailable
from letopis.store.cancellation import run_to_completion

logger: Final = logging.getLogger("letopis.adapters.telegram")

_SPACE: Final = "letopis.telegram"
_PAGE: Final = 50
LOOKED_BACK: Final = 200
"""How many of the newest messages are searched for one that the bot sent."""
_SEARCHED: Final = 20
"""How many of a place's latest conversations are searched for a message that the bot sent."""
_CACHED: Final = 10_000


class Chats:
    """The conversations of all chats of one bot.

    :param bot_id: the bot's id.
    :param files: the folder of files that smart send has sent: they are removed with their messages.
    """

    def __init__(self, history: History, bot_id: int, *, files: str | os.PathLike[str]) -> None:
        self.history = history
        self.bot_id = bot_id
        self.files = AnswerFiles(files)
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._earlier: dict[int, int] = {}
        self._moved = history.records(space=_SPACE)

    async def settled(self, key: ChatKey) -> ChatKey:
        """Return the place whose conversations continue here: for a supergroup, the group that it was before."""
        if key.chat_id >= 0:
            return key
        if key.chat_id not in self._earlier:
            try:
                found = await self._moved.get(("moved", str(self.bot_id)), str(key.chat_id))
            except StoreUnavailable:
                logger.warning(
                    "whether a group had another id before is not known while the history store is unavailable:"
                    " its conversation begins under the id that it has"
                )
                return key
            if len(self._earlier) > _CACHED:
                self._earlier.clear()
            self._earlier[key.chat_id] = key.chat_id if found is None else int(found.value)
        return key.in_chat(self._earlier[key.chat_id])

    async def move(self, old: int, new: int) -> None:
        """Remember that a group has a new id; its conversations continue."""
        first = (await self.settled(ChatKey(bot_id=self.bot_id, chat_id=old))).chat_id
        if self._earlier.get(new) == first or first == new:
            return
        await self._moved.put(("moved", str(self.bot_id)), str(new), first)
        await self._moved.put(("moved_to", str(self.bot_id)), str(first), new)
        self._earlier[new] = first

    async def address(self, owner: str | None) -> ChatKey | None:
        """Return the current place of an owner or a conversation's owner; ``None`` if it is not a chat of this bot."""
        key = ChatKey.parse(owner)
        if key is None or key.bot_id != self.bot_id:
            return None
        if key.chat_id >= 0:
            return key
        try:
            found = await self._moved.get(("moved_to", str(self.bot_id)), str(key.chat_id))
        except StoreUnavailable:
            return key
        return key if found is None else key.in_chat(int(found.value))

    async def active(self, key: ChatKey) -> Conversation:
        """Return the active conversation of a settled place; create one if there is none.

        The first one has the id of the place, so that two processes create the same one.
        """
        found = await self.history.active(key.owner, create=False)
        if found is not None:
            return found
        lock = self._starting.setdefault(key.owner, asyncio.Lock())
        async with lock:
            found = await self.history.active(key.owner, create=False)
            if found is None:
                await self.start(key)
                found = await self.history.active(key.owner)
        return found

    async def start(self, key: ChatKey, *, title: str | None = None, first: bool = True) -> str:
        """Create a conversation, make it active, and return its id.

        :param first: ``False`` if the place has had conversations.
        """
        if first:
            try:
                await self.history.start(key.owner, conversation_id=key.owner, title=title)
            except ConversationGone:
                first = False
            else:
                return key.owner
        return (
            await self.history.start(key.owner, conversation_id=key.later_conversation(), title=title)
        ).conversation_id

    async def owned(self, key: ChatKey, conversation_id: str) -> Conversation | None:
        """Return a conversation if it belongs to a settled place and was not deleted; otherwise ``None``."""
        found = await self.history.chat(conversation_id).conversation()
        return found if found is not None and found.owner_id == key.owner and found.state != "deleted" else None

    async def listed(self, key: ChatKey) -> AsyncIterator[Conversation]:
        """Yield the conversations of a settled place, the active one first, then by last activity."""
        after = None
        while True:
            page = await self.history.conversations(owner=key.owner, after=after, limit=_PAGE)
            for one in page:
                yield one
            after = page.next
            if after is None:
                return

    async def redact(self, conversation_id: str, message_id: str, *, reason: str | None) -> Receipt:
        """Erase the content of a message, with the file as which it was sent.

        :raises Held: an operator holds the conversation or its owner; nothing was erased.
        """
        redact = self.history.chat(conversation_id).redact(message_id, reason=reason)
        return await run_to_completion(self._with_files(redact, [message_id]))

    async def delete(self, conversation_id: str, *, reason: str | None) -> Receipt:
        """Delete a conversation, with the files as which its answers were sent.

        :raises Held: an operator holds the conversation or its owner; nothing was erased.
        """
        messages = await self.history.messages(conversation_id, last=None, every=True)
        delete = self.history.chat(conversation_id).delete(reason=reason)
        return await run_to_completion(self._with_files(delete, [message.id for message in messages]))

    async def _with_files(self, erasure: Awaitable[Receipt], message_ids: Iterable[str]) -> Receipt:
        # The files come last: a hold may refuse the erasure.
        receipt = await erasure
        await self.files.remove(message_ids)
        return receipt

    async def find(self, key: ChatKey, number: int, *, chat_id: int) -> RecordedMessage | None:
        """Return the message of a settled place with a number in Telegram; ``None`` if it is not known.

        :param chat_id: of the chat that gave the number, which is another than that of ``key`` after a move.
        """
        name = message_id(chat_id, number)
        active = await self.history.active(key.owner, create=False)
        if active is not None and (found := await self._find_in(active.conversation_id, name, number)) is not None:
            return found
        try:
            found = await self.history.message(name)
        except (InvalidInput, StoreUnavailable):  # several bots share the store, or it does not answer
            found = None
        if found is not None and await self.owned(key, found.conversation_id) is not None:
            return found
        for one in await self.history.conversations(owner=key.owner, limit=_SEARCHED):
            if active is None or one.conversation_id != active.conversation_id:
                found = await self._find_in(one.conversation_id, name, number)
                if found is not None:
                    return found
        return None

    async def _find_in(self, conversation_id: str, name: str, number: int) -> RecordedMessage | None:
        try:
            found = await self.history.chat(conversation_id).message(name)
        except StoreUnavailable:
            found = None
        if found is not None:
            return found
        # What the bot sent has its own id, assigned before Telegram gave one.
        for one in await self.history.messages(conversation_id, last=LOOKED_BACK):
            if number in numbers_of(one):
                return one
        return None


def question_of(message: RecordedMessage) -> str | None:
    """Return the id of the message that a message of the bot was sent for; ``None`` if there is none."""
    return _about(message).get("answers")


def update_of(message: RecordedMessage) -> int | None:
    """Return the id of the update that a message of the bot was sent for; ``None`` if there is none."""
    return _about(message).get("update_id")


def _about(message: RecordedMessage) -> Mapping[str, Any]:
    about = message.message.metadata.get("telegram")
    return about if message.role == "assistant" and isinstance(about, Mapping) else {}


def numbers_of(message: RecordedMessage) -> tuple[int, ...]:
    """Return the message ids that Telegram gave to a message that the bot sent; usually one."""
    ids = message.delivery_data.get("platform_ids")
    given = ids.get("telegram") if isinstance(ids, dict) else None
    if isinstance(given, int):
        return (given,)
    return tuple(one for one in given if isinstance(one, int)) if isinstance(given, list) else ()
