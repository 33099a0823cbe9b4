# pyright: reportMissingImports=false
"""Keep the messages of Agent Framework's sessions in a history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from agent_framework import HistoryProvider, Message

from letopis.adapters._messages import newest
from letopis.adapters.agent_framework.messages import from_messages, to_message
from letopis.adapters.agent_framework.replays import most_replayed, without_replayed
from letopis.outbox import History
from letopis.store import InvalidInput
from letopis.store.cancellation import run_to_completion
from letopis.store.model.identifiers import Owner


class LetopisHistoryProvider(HistoryProvider):
    """A ``HistoryProvider``: each session is a conversation of a history.

    ::

        agent = Agent(client, context_providers=[LetopisHistoryProvider(history)])

    A run's messages are durable when the run ends, all or none, whether or not the history store can be reached. They
    come back unchanged, repeated ones included. If a caller passes a whole transcript again, only the new part is
    stored.

    Messages that another program appended to the conversation are passed to the model, too.

    :param history: not closed by the provider.
    :param owner: the owner of the conversations, or a function that derives it from the session id.
    :param last: pass only the newest messages to a run, this many; by default all. The first one is never a tool
        result, so each result has its call.
    :param require_complete: ``True`` to raise ``StoreUnavailable`` while the history store is unreachable and the
        outbox alone cannot return all requested messages; by default a run gets those that the outbox retains.
    :param skip_excluded: leave out messages marked ``_excluded``, as the framework's own providers do.
    :param source_id: the framework's name for this provider; the other parameters are the framework's, too.
    """

    DEFAULT_SOURCE_ID: ClassVar[str] = "letopis"

    def __init__(
        self,
        history: History,
        *,
        owner: Owner | Callable[[str], Owner | None] | None = None,
        last: int | None = None,
        require_complete: bool = False,
        skip_excluded: bool = False,
        source_id: str = DEFAULT_SOURCE_ID,
        load_messages: bool = True,
        store_inputs: bool = True,
        store_context_messages: bool = False,
        store_context_from: set[str] | None = None,
        store_outputs: bool = True,
    ) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        if last is not None and (not isinstance(last, int) or last < 1):
            raise InvalidInput("last", "must be a whole number from 1, or None for all")
        super().__init__(
            source_id,
            load_messages=load_messages,
            store_inputs=store_inputs,
            store_context_messages=store_context_messages,
            store_context_from=store_context_from,
            store_outputs=store_outputs,
        )
        self._history = history
        self._owner = owner
        self._last = last
        self._require_complete = require_complete
        self._skip_excluded = skip_excluded

    async def get_messages(
        self, session_id: str | None, *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Message]:
        """Return the messages of a session, oldest first.

        :raises StoreUnavailable: only with ``require_complete``.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        del state, kwargs
        found = await self._read(_checked(session_id), self._last, require_complete=self._require_complete)
        if self._last is not None:
            while found and found[0].role == "tool":
                found.pop(0)  # its call is not among them, and models refuse a result without its call
        if self._skip_excluded:
            found = [one for one in found if not one.additional_properties.get("_excluded", False)]
        return found

    async def save_messages(
        self,
        session_id: str | None,
        messages: Sequence[Message],
        *,
        state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the new messages among these, all or none. A cancelled run still completes an append that has started.

        :raises InvalidInput: a message holds a value that is not JSON, or is larger than the history's limits; nothing
            was written.
        :raises OutboxFull: the outbox has reached its limits; nothing was written.
        :raises LetopisError: as for ``History.append``.
        """
        del state, kwargs
        conversation = _checked(session_id)
        given = list(messages)
        if reach := most_replayed(given):
            given = without_replayed(await self._read(conversation, reach), given)
        made = [to_message(one, f"messages[{place}]") for place, one in enumerate(given)]
        if made:
            owner = self._owner(conversation) if callable(self._owner) else self._owner
            await run_to_completion(self._history.append(conversation, *made, owner=owner))

    async def _read(self, conversation: str, last: int | None, *, require_complete: bool = False) -> list[Message]:
        return await newest(self._history, conversation, from_messages, last=last, require_complete=require_complete)


def _checked(session_id: str | None) -> str:
    if not session_id:
        raise InvalidInput("session_id", "names the conversation: give the run a session with an id")
    return session_id
