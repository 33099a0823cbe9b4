"""Store LlamaIndex's chat memory in a history.

::

    store = LetopisChatStore(history)
    memory = Memory(sql_store=store, session_id="chat-1", token_limit=30_000)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from letopis.adapters._messages import Waits, answered, fitting, items_of, kept, missing
from letopis.outbox import History
from letopis.store import InvalidInput, Message, RecordedMessage, StoreUnavailable
from letopis.store.cancellation import run_to_completion
from letopis.store.model.identifiers import Owner
from letopis.store.model.messages import Role
from letopis.store.rules.tool_calls import repair_tool_calls

try:
    from llama_index.core.base.llms.types import (  # pyright: ignore[reportMissingImports]
        ChatMessage,
        MessageRole,
        TextBlock,
        ToolCallBlock,
    )
    from llama_index.core.storage.chat_store.base_db import (  # pyright: ignore[reportMissingImports]
        AsyncDBChatStore,
        MessageStatus,
    )
except ImportError as error:
    raise missing("llama_index", "llama-index-core", "llama-index") from error

__all__ = ["LetopisChatStore"]

_PROVIDER: Final = "llama_index"
_NAMESPACE: Final = ("llama_index",)
_ARCHIVED_UP_TO: Final = "archived_up_to"
"""The key of the record with the id of the newest message that was archived by age."""
_PAGE: Final = 200
_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "tool": "tool",
    "function": "tool",
}


class LetopisChatStore(AsyncDBChatStore):
    """An ``AsyncDBChatStore``: each key is a conversation of a history.

    Messages come back unchanged. ``add_messages`` is all or nothing. ``set_messages`` is one append. Archived messages
    stay where they are: a record of the conversation says up to which one. Deleted messages leave the path; the log
    keeps them. Those after a deleted one are appended once more, under new ids.

    While the history store is unreachable, the messages that the outbox retains are returned.

    :param history: not closed by the store. For LlamaIndex's synchronous methods, which run an event loop each, open it
        with ``own_thread=True``.
    :param owner: the owner of the conversations; ``get_keys`` returns those of this owner.
    """

    _history: History
    _owner: Owner | None

    def __init__(self, history: History, *, owner: Owner | None = None) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        super().__init__()
        self._history = history
        self._owner = owner

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        """Return the newest ``limit`` messages, oldest first, without the ``offset`` newest; by default all.

        LlamaIndex's own store returns the oldest ones, which are no use to a memory.

        The active ones, which a memory passes to a model, are repaired: a call without a result gets one that says
        ``interrupted``, and a result without a call is left out.

        :param status: ``None`` for all.
        """
        found, whole = await self._read(key, status)
        end = max(0, len(found) - max(0, offset or 0))
        begin = 0 if limit is None else max(0, end - max(0, limit))
        if status is not MessageStatus.ACTIVE:
            return _from_messages(found[begin:end])
        messages = [one.message for one in found[begin:end]]
        # With an offset, the result may be among those that are left out.
        waits: Waits = answered if end == len(found) else lambda message, call: True
        return fitting(messages, _from_messages, last=limit, whole=whole and begin == 0, waits=waits)

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return how many messages there are."""
        return await self._history.chat(key).count() if status is None else len((await self._read(key, status))[0])

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Append a message; see :meth:`add_messages`."""
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Append messages, all or none. A cancelled caller does not interrupt an append that has started.

        :raises InvalidInput: a message holds a value that is not JSON; nothing was written.
        :raises LetopisError: as for ``History.append``.
        """
        if made := _to_messages(messages, status):
            await run_to_completion(self._history.append(key, *made, owner=self._owner))

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Replace the conversation's messages with these, in one append: all of it or nothing.

        Leading messages that already match are not touched, unless some of them are archived.

        :raises InvalidInput: a message holds a value that is not JSON; nothing was written.
        :raises LetopisError: as for ``Chat.replace``.
        """
        made = _to_messages(messages, status)
        there, archived = await self._path(key)
        if not archived and status is MessageStatus.ACTIVE:
            for place, (old, new) in enumerate(zip(there, made, strict=False)):
                if (old.role, old.message.content, old.message.metadata) != (new.role, new.content, new.metadata):
                    break
                made[place] = old.message
        await run_to_completion(self._history.chat(key).replace(made, owner=self._owner))

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Take the message at an index, counted from 0 over all messages, off the path; ``None`` if there is none."""
        there, archived = await self._path(key)
        if not 0 <= idx < len(there):
            return None
        (found,) = await self._drop(key, there, archived, [there[idx]])
        return found

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Take all messages, or those of a status, off the path. To erase them, use ``Chat.delete``."""
        if status is None:
            await run_to_completion(self._history.chat(key).rewind(to=None, reason="clear"))
            return
        there, archived = await self._path(key)
        await self._drop(key, there, archived, [one for one in there if _is(one, status, archived)])

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Take the ``n`` oldest active messages off the path and return them.

        This, and deleting by index or status, reads first: a message that another program appends at that moment leaves
        the path too. It stays in the log.
        """
        there, archived = await self._path(key)
        active = [one for one in there if _is(one, MessageStatus.ACTIVE, archived)]
        return await self._drop(key, there, archived, active[: max(0, n)])

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive the ``n`` oldest active messages, as :meth:`get_messages` returns them, and return these."""
        active, whole = await self._read(key, MessageStatus.ACTIVE)
        shown = repair_tool_calls([one.message for one in active], beginning=whole)[: max(0, n)]
        ids = {one.id for one in shown}
        if oldest := [one.id for one in active if one.id in ids]:
            await self._archive(key, oldest[-1])
        return _from_messages(shown)

    async def get_keys(self) -> list[str]:
        """Return the ids of all conversations that have messages."""
        keys, after = list[str](), None
        while True:
            page = await self._history.conversations(owner=self._owner, after=after, limit=_PAGE)
            keys += [one.conversation_id for one in page if one.message_count]
            if (after := page.next) is None:
                return keys

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class."""
        return "LetopisChatStore"

    async def _read(self, key: str, status: MessageStatus | None) -> tuple[list[RecordedMessage], bool]:
        """Return the messages of a status, oldest first, and True if they begin where the conversation does."""
        if status is not MessageStatus.ACTIVE:
            there, archived = await self._path(key)
            return [one for one in there if status is None or _is(one, status, archived)], False
        # The active ones are the newest: a long conversation is not read to its beginning.
        boundary, found, before = await self._archived_up_to(key), list[RecordedMessage](), None
        while True:
            page = await self._history.messages(key, last=_PAGE, before=before)
            ids = [one.id for one in page]
            begin = len(ids) - ids[::-1].index(boundary) if boundary in ids else 0
            found = [*page[begin:], *found]
            if begin or (before := page.next) is None:
                active = [one for one in found if _is(one, status, frozenset())]
                return active, page.complete and not begin and len(active) == len(found)

    async def _path(self, key: str) -> tuple[list[RecordedMessage], frozenset[str]]:
        """Return all messages, and the ids of those that were archived by age."""
        boundary = await self._archived_up_to(key)
        there = list(await self._history.messages(key, last=None))
        ids = [one.id for one in there]
        return there, frozenset(ids[: ids.index(boundary) + 1] if boundary in ids else ())

    async def _archived_up_to(self, key: str) -> str | None:
        try:
            record = await self._history.records(conversation=key).get(_NAMESPACE, _ARCHIVED_UP_TO)
        except StoreUnavailable:
            return None  # retained messages are recent, and the memory archives any excess again
        return None if record is None else str(record.value)

    async def _archive(self, key: str, message_id: str) -> None:
        records = self._history.records(conversation=key)
        await run_to_completion(records.put(_NAMESPACE, _ARCHIVED_UP_TO, message_id))

    async def _drop(
        self,
        key: str,
        there: Sequence[RecordedMessage],
        archived: frozenset[str],
        dropped: Sequence[RecordedMessage],
    ) -> list[ChatMessage]:
        ids = {one.id for one in dropped}
        if ids:
            begin = next(place for place, one in enumerate(there) if one.id in ids)
            older = [one.id for one in there[:begin] if one.id in archived]
            if older and not archived.issubset(older):
                await self._archive(key, older[-1])  # those after it are marked themselves
            left = [one.message for one in there[:begin]]
            left += [_anew(one, archived) for one in there[begin:] if one.id not in ids]
            await run_to_completion(self._history.chat(key).replace(left))
        return _from_messages(dropped)


def _is(message: RecordedMessage, status: MessageStatus, archived: frozenset[str]) -> bool:
    """Return True if a message has a status, by age or from the time it was added."""
    marked = message.id in archived or message.message.metadata.get(_PROVIDER) == {"status": "archived"}
    return marked == (status is MessageStatus.ARCHIVED)


def _to_messages(messages: Iterable[ChatMessage], status: MessageStatus) -> list[Message]:
    made = [_to_message(one, f"messages[{place}]") for place, one in enumerate(messages)]
    return [_archived(one) for one in made] if status is MessageStatus.ARCHIVED else made


def _anew(message: RecordedMessage, archived: frozenset[str]) -> Message:
    """Return a message to append once more; one that was archived by age is marked."""
    made = replace(message.message, id="")
    return _archived(made) if message.id in archived else made


def _archived(message: Message) -> Message:
    return replace(message, metadata={**message.metadata, _PROVIDER: {"status": "archived"}})


def _to_message(message: ChatMessage, field: str) -> Message:
    if not isinstance(message, ChatMessage):
        raise InvalidInput(field, f"must be a ChatMessage of LlamaIndex, not {type(message).__name__}")
    try:
        item = message.model_dump(mode="json")
    except ValueError as error:  # pydantic's message, which quotes no value
        raise InvalidInput(field, "holds a value that is not JSON") from error
    role = _ROLES.get(message.role.value, "assistant")
    text = message.content or ""
    chat: dict[str, Any] = {"role": role, "content": text}
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if calls:
        chat["tool_calls"] = [
            {"id": one.tool_call_id or one.tool_name, "function": {"name": one.tool_name, "arguments": one.tool_kwargs}}
            for one in calls
        ]
    if role == "tool":
        chat["tool_call_id"] = message.additional_kwargs.get("tool_call_id")
    return kept(item, provider=_PROVIDER, chat=chat, role=role, text=text)


def _from_messages(messages: Iterable[Message | RecordedMessage]) -> list[ChatMessage]:
    found: list[ChatMessage] = []
    for own, chat in items_of(messages, _PROVIDER):
        found += [ChatMessage.model_validate(own)] if own is not None else map(_from_chat, chat)
    return found


def _from_chat(item: dict[str, Any]) -> ChatMessage:
    """Return a message that came from elsewhere: its text and calls."""
    given = item["content"] or ""
    texts = [given] if isinstance(given, str) else [block["text"] for block in given if block["type"] == "text"]
    blocks: list[Any] = [TextBlock(text=text) for text in texts if text]
    for call in item.get("tool_calls", ()):
        function = call["function"]
        blocks.append(
            ToolCallBlock(tool_call_id=call["id"], tool_name=function["name"], tool_kwargs=function["arguments"])
        )
    named = {"tool_call_id": item["tool_call_id"]} if item["role"] == "tool" else {}
    return ChatMessage(role=MessageRole(item["role"]), blocks=blocks, additional_kwargs=named)
