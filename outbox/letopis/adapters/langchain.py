"""Store LangChain's messages in a history.

LangChain has deprecated ``BaseChatMessageHistory`` and ``RunnableWithMessageHistory`` in favour of LangGraph's
checkpoints, and will remove them in 2.0. This module is for programs that still use them.

::

    chain = RunnableWithMessageHistory(
        prompt | model, lambda session_id: LetopisChatMessageHistory(session_id, history), ...
    )
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from letopis.adapters._messages import fitting, items_of, kept, missing
from letopis.outbox import BlockingHistory, History
from letopis.store import InvalidInput, Message, Page, RecordedMessage, ToolCall
from letopis.store.cancellation import run_to_completion
from letopis.store.model.identifiers import Owner
from letopis.store.model.messages import Role

try:
    from langchain_core.chat_history import BaseChatMessageHistory  # pyright: ignore[reportMissingImports]
    from langchain_core.messages import (  # pyright: ignore[reportMissingImports]
        BaseMessage,
        convert_to_messages,
        convert_to_openai_messages,
        messages_from_dict,
    )
except ImportError as error:
    raise missing("langchain", "langchain-core", "langchain") from error

__all__ = ["LetopisChatMessageHistory"]

_PROVIDER: Final = "langchain"
_ROLES: Final[dict[str, Role]] = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
_calling: Final[deque[str]] = deque(maxlen=10_000)
"""The messages that this process has added at the end of conversations and that call tools: these may be running."""


class LetopisChatMessageHistory(BaseChatMessageHistory):
    """A ``BaseChatMessageHistory``: one conversation of a history.

    Messages come back unchanged. ``add_messages`` is all or nothing. Messages that another program appended to the
    conversation are built from their content.

    What is returned is repaired: a call without a result gets one that says ``interrupted``, and a result without a
    call is left out. Calls at the end stay if this process has added them, so that their results can follow.

    :param session_id: the conversation id.
    :param history: a ``History`` for the asynchronous methods, or a ``BlockingHistory`` for both. It is not closed.
    :param owner: whose conversation it is.
    """

    def __init__(self, session_id: str, history: History | BlockingHistory, *, owner: Owner | None = None) -> None:
        if not isinstance(history, History | BlockingHistory):
            raise InvalidInput("history", f"must be a History or BlockingHistory, not {type(history).__name__}")
        self._session_id = session_id
        self._history = history
        self._owner = owner

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # as LangChain's guide has it
        """All messages, oldest first; while the history store is unreachable, those that the outbox retains.

        :raises InvalidInput: ``history`` is not a ``BlockingHistory``.
        """
        return self._repaired(self._blocking().messages(self._session_id, last=None))

    async def aget_messages(self) -> list[BaseMessage]:
        """Return all messages, oldest first; while the history store is unreachable, those that the outbox retains."""
        if isinstance(self._history, BlockingHistory):
            return await asyncio.to_thread(lambda: self.messages)
        return self._repaired(await self._history.messages(self._session_id, last=None))

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages, all or none; they are durable when this returns.

        :raises InvalidInput: ``history`` is not a ``BlockingHistory``, or a message holds a value that is not JSON;
            nothing was written.
        :raises LetopisError: as for ``History.append``.
        """
        if made := _to_messages(messages):
            self._blocking().append(self._session_id, *made, owner=self._owner)
            _remember(made[-1])

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages, all or none. A cancelled caller does not interrupt an append that has started.

        :raises InvalidInput: a message holds a value that is not JSON; nothing was written.
        :raises LetopisError: as for ``History.append``.
        """
        if isinstance(self._history, BlockingHistory):
            await asyncio.to_thread(self.add_messages, messages)
        elif made := _to_messages(messages):
            await run_to_completion(self._history.append(self._session_id, *made, owner=self._owner))
            _remember(made[-1])

    def clear(self) -> None:
        """Take all messages off the path; the log keeps them.

        :raises InvalidInput: ``history`` is not a ``BlockingHistory``.
        """
        self._blocking().chat(self._session_id).rewind(to=None, reason="clear")

    async def aclear(self) -> None:
        """Take all messages off the path; the log keeps them."""
        if isinstance(self._history, BlockingHistory):
            await asyncio.to_thread(self.clear)
        else:
            await run_to_completion(self._history.chat(self._session_id).rewind(to=None, reason="clear"))

    def _repaired(self, page: Page[RecordedMessage]) -> list[BaseMessage]:
        messages = [one.message for one in page]

        def waits(message: Message, call: ToolCall) -> bool:
            del call
            return message.id == messages[-1].id and message.id in _calling

        return fitting(messages, _from_messages, last=None, whole=page.complete, waits=waits)

    def _blocking(self) -> BlockingHistory:
        if isinstance(self._history, BlockingHistory):
            return self._history
        raise InvalidInput("history", "is asynchronous: use ainvoke and aget_messages, or give a BlockingHistory")


def _remember(added: Message) -> None:
    if isinstance(added.content, tuple) and any(isinstance(part, ToolCall) for part in added.content):
        _calling.append(added.id)


def _to_messages(messages: Iterable[BaseMessage]) -> list[Message]:
    return [_to_message(one, f"messages[{place}]") for place, one in enumerate(messages)]


def _to_message(message: BaseMessage, field: str) -> Message:
    if not isinstance(message, BaseMessage):
        raise InvalidInput(field, f"must be a message of LangChain, not {type(message).__name__}")
    try:
        # A function's result has no call by id, so it cannot lack one.
        chat: dict[str, Any] | None = None if message.type == "function" else convert_to_openai_messages(message)
    except (ValueError, TypeError, KeyError):
        chat = None
    role, text = _ROLES.get(message.type, "assistant"), _text_of(message.content)
    with suppress(InvalidInput):  # not JSON as it is: Pydantic makes text of dates, for example, but also null of NaN
        item = {"type": message.type, "data": dict(message)}
        return kept(item, provider=_PROVIDER, chat=chat, role=role, text=text)
    try:
        item = {"type": message.type, "data": message.model_dump(mode="json")}
    except ValueError as error:  # pydantic's message, which quotes no value
        raise InvalidInput(field, "holds a value that is not JSON, such as a tool's artifact") from error
    return kept(item, provider=_PROVIDER, chat=chat, role=role, text=text)


def _text_of(content: str | list[str | dict[str, Any]]) -> str:
    # ``BaseMessage.text`` is absent, a method or a property, by release.
    if isinstance(content, str):
        return content
    texts = (one if isinstance(one, str) else one.get("text") for one in content)
    return "".join(one for one in texts if isinstance(one, str))


def _from_messages(messages: Iterable[Message | RecordedMessage]) -> list[BaseMessage]:
    found: list[BaseMessage] = []
    for own, chat in items_of(messages, _PROVIDER):
        found += messages_from_dict([own]) if own is not None else convert_to_messages(chat)
    return found
