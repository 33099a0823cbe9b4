"""Store the items of OpenAI Agents SDK sessions in a history.

::

    session = LetopisSession("chat-1", history, owner="42")
    result = await Runner.run(agent, "What is tea?", session=session)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from letopis.adapters._messages import newest, of_any_shape
from letopis.adapters.formats import objects, openai_responses
from letopis.outbox import History
from letopis.store import (
    ConversationRewound,
    InvalidInput,
    Message,
    StoreUnavailable,
    ToolCall,
    ToolResult,
    VersionConflict,
)
from letopis.store.cancellation import run_to_completion
from letopis.store.model.identifiers import Owner
from letopis.store.model.parts import Part

if TYPE_CHECKING:
    from agents import RunContextWrapper, TResponseInputItem  # pyright: ignore[reportMissingImports]
    from agents.memory import SessionSettings  # pyright: ignore[reportMissingImports]

__all__ = ["LetopisSession"]

_WAITS: Final = "openai_agents.waits"
"""The metadata key of a call that a run has stored without its output: it waits for an approval."""


class LetopisSession:
    """A ``Session`` of the Agents SDK: one conversation of a history.

    Items come back as they were added, byte for byte and in order, repeated ones included. ``add_items`` is all or
    nothing, and durable when it returns, whether or not the history store can be reached. Popped or cleared items leave
    the path; the log keeps them.

    What is returned is repaired: a call without an output gets one that says ``interrupted``, and an output without a
    call is left out. A call that waits for an approval stays; the SDK itself does not pass it to the model.

    Messages that another program appended to the conversation are items too, as
    :func:`letopis.adapters.formats.openai_responses.from_messages` builds them.

    Items of two concurrent runs of one session are recorded in the order in which they arrive. The SDK leaves it to the
    caller to prevent that.

    :param session_id: the conversation id.
    :param history: not closed by the session.
    :param owner: whose conversation it is, or a function that derives it from the run's context wrapper.
    :param session_settings: the SDK's, or a dictionary of them, with the ``limit`` of items that a run reads.
    :param require_complete: ``True`` to raise ``StoreUnavailable`` while the history store is unreachable and the
        outbox alone cannot return all requested items; by default a run gets those that the outbox retains.
    """

    def __init__(
        self,
        session_id: str,
        history: History,
        *,
        owner: Owner | Callable[[RunContextWrapper[Any]], Owner | None] | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        require_complete: bool = False,
    ) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        self.session_id = session_id
        self.session_settings = _settings(session_settings)
        self._history = history
        self._owner = owner
        self._require_complete = require_complete

    async def get_items(
        self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None
    ) -> list[TResponseInputItem]:
        """Return the newest ``limit`` items, oldest first; by default as many as the settings say, or all.

        A call and its output are both in, or both are out, so there may be fewer.

        :raises StoreUnavailable: only with ``require_complete``.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        del wrapper
        return await newest(
            self._history,
            self.session_id,
            lambda messages: cast("list[TResponseInputItem]", openai_responses.from_messages(messages)),
            last=self._limit(limit),
            require_complete=self._require_complete,
            waits=_waits,
            apart=True,
        )

    async def add_items(
        self, items: list[TResponseInputItem], *, wrapper: RunContextWrapper[Any] | None = None
    ) -> None:
        """Append items, all or none. A cancelled run does not interrupt an append that has started.

        :raises InvalidInput: an item is not a JSON object, or has more than 64 MiB; nothing was written. It is a
            ``TypeError`` too, as with the SDK's own sessions, if a value in it is no JSON.
        :raises OutboxFull: the outbox has reached its limits; nothing was written.
        :raises LetopisError: as for ``History.append``.
        """
        messages = _to_messages(items)
        if wrapper is not None:
            messages = _marked(messages)
        if messages:
            await run_to_completion(self._history.append(self.session_id, *messages, owner=self._owner_of(wrapper)))

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> TResponseInputItem | None:
        """Take the newest item off the path and return it; ``None`` if there is none.

        :raises StoreUnavailable: the history store is unreachable, and the outbox does not hold the item before it.
        """
        del wrapper
        return await run_to_completion(self._pop())

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Take all items off the path. Use ``Chat.delete`` or ``reset`` to erase them."""
        del wrapper
        await run_to_completion(self._history.chat(self.session_id).rewind(to=None, reason="clear"))

    async def _pop(self) -> TResponseInputItem | None:
        while True:
            page = await self._history.messages(self.session_id, last=2)
            if len(page) < 2 and not page.complete:
                raise StoreUnavailable("enough of the session")
            if not page:
                return None
            items = openai_responses.from_messages(page[-1:])
            gone = ConversationRewound.back_to(page[0].id if page[1:] else None, "pop")
            # A message from elsewhere may be several items.
            rest = _to_messages(items[:-1])
            with suppress(VersionConflict):  # read again what came meanwhile
                await self._history.append(self.session_id, gone, *rest, after=page.seen)
                if items:  # or it is nothing that this format can express, such as another provider's reasoning
                    return cast("TResponseInputItem", items[-1])

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        """Replace all items at once, for ``OpenAIResponsesCompactionSession``, which would otherwise clear and add."""
        messages = _to_messages(items)
        await self._history.chat(self.session_id).replace(messages, reason="compaction")
        return True

    def _limit(self, limit: int | None) -> int | None:
        if limit is not None or self.session_settings is None:
            return limit
        return cast("int | None", self.session_settings.limit)

    def _owner_of(self, wrapper: RunContextWrapper[Any] | None) -> Owner | None:
        if not callable(self._owner):
            return self._owner
        return None if wrapper is None else self._owner(wrapper)


def _to_messages(items: Iterable[Any]) -> list[Message]:
    """Convert items; what is no Responses item, such as one that another session has encrypted, is kept as it is."""
    return [_to_message(item) for item in objects(items, "items")]


def _to_message(item: Mapping[str, Any]) -> Message:
    try:
        return openai_responses.to_messages([item])[0]
    except InvalidInput:
        return of_any_shape(item, openai_responses.PROVIDER)


def _settings(given: SessionSettings | dict[str, Any] | None) -> SessionSettings | None:
    if not isinstance(given, dict):
        return given
    from agents.memory import SessionSettings  # pyright: ignore[reportMissingImports]

    try:
        settings = SessionSettings(**given)
    except ValueError as error:  # pydantic's
        raise InvalidInput("session_settings", "holds a value that the SDK's SessionSettings refuse") from error
    if unknown := given.keys() - vars(settings).keys():
        raise InvalidInput("session_settings", f"has no {min(unknown)!r}: give what the SDK's SessionSettings have")
    return settings


def _marked(messages: list[Message]) -> list[Message]:
    """Mark the calls that a run stores without their outputs: it does so only if they wait for an approval."""
    done = {part.call_id for one in messages for part in _parts(one) if isinstance(part, ToolResult)}
    return [
        replace(one, metadata={**one.metadata, _WAITS: True})
        if any(isinstance(part, ToolCall) and part.call_id not in done for part in _parts(one))
        else one
        for one in messages
    ]


def _parts(message: Message) -> tuple[Part, ...]:
    return message.content if isinstance(message.content, tuple) else ()


def _waits(message: Message, call: ToolCall) -> bool:
    del call
    return _WAITS in message.metadata
