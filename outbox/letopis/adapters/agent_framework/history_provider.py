# pyright: reportMissingImports=false
"""Keep the messages of Agent Framework's sessions in a history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Final

from agent_framework import HistoryProvider, Message

from letopis.adapters._messages import newest
from letopis.adapters.agent_framework.messages import approvals_in, from_messages, to_message
from letopis.outbox import History
from letopis.store import InvalidInput, ToolCall
from letopis.store import Message as StoredMessage
from letopis.store.cancellation import run_to_completion
from letopis.store.model.identifiers import Owner

_given: Final[ContextVar[frozenset[str]]] = ContextVar("letopis_agent_framework_given", default=frozenset())
"""The calls that the input of the current run gives a result or an approval for."""
_new: Final[ContextVar[int]] = ContextVar("letopis_agent_framework_new", default=1)
"""How many of the messages that the current run saves are certainly new."""


class LetopisHistoryProvider(HistoryProvider):
    """A ``HistoryProvider``: each session is a conversation of a history.

    ::

        agent = Agent(client, context_providers=[LetopisHistoryProvider(history)])

    A run's messages are durable when the run ends, all or none, whether or not the history store can be reached. They
    come back unchanged, repeated ones included. If a caller passes a whole transcript again, only the new part is
    stored.

    What a run gets is repaired: a call without a result gets one that says ``interrupted``, and a result without a call
    is left out. A call stays if it waits for an approval, or if the run's input has its result.

    Messages that another program appended to the conversation are passed to the model, too.

    :param history: not closed by the provider.
    :param owner: the owner of the conversations, or a function that derives it from the session id.
    :param last: pass only the newest messages to a run, this many; by default all. A call and its result are
        both passed, or both left out.
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
        found = await newest(
            self._history,
            _checked(session_id),
            from_messages,
            last=self._last,
            require_complete=self._require_complete,
            waits=_waits,
        )
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
        new = _new.get()
        if reach := most_replayed(given, new):
            stored = from_messages(await self._history.messages(conversation, last=reach))
            given = without_replayed(stored, given, new)
        made = [to_message(one, f"messages[{place}]") for place, one in enumerate(given)]
        if made:
            owner = self._owner(conversation) if callable(self._owner) else self._owner
            await run_to_completion(self._history.append(conversation, *made, owner=owner))

    async def before_run(self, *, agent: Any, session: Any, context: Any, state: dict[str, Any]) -> None:
        """Pass the messages of a session to a run."""
        contents = [one for message in context.input_messages for one in message.contents]
        calls = [one.function_call if one.type == "function_approval_response" else one for one in contents]
        token = _given.set(frozenset(one.call_id for one in calls if one is not None and one.call_id))
        try:
            await super().before_run(agent=agent, session=session, context=context, state=state)
        finally:
            _given.reset(token)

    async def after_run(self, *, agent: Any, session: Any, context: Any, state: dict[str, Any]) -> None:
        """Save the messages of a run."""
        answers = context.response.messages if self.store_outputs and context.response else ()
        token = _new.set(len(answers) + 1)
        try:
            await super().after_run(agent=agent, session=session, context=context, state=state)
        finally:
            _new.reset(token)


def _waits(message: StoredMessage, call: ToolCall) -> bool:
    return call.call_id in _given.get() or call.call_id in approvals_in(message)


def _checked(session_id: str | None) -> str:
    if not session_id:
        raise InvalidInput("session_id", "names the conversation: give the run a session with an id")
    return session_id


def most_replayed(given: Sequence[Message], new: int = 1) -> int:
    """Return how many of the first messages may be a replay; 0 if there is nothing to compare.

    The last ones are new, since a run ends with an answer, unless ids show that the whole run is being saved again.
    People repeat themselves, so user messages alone are no replay.

    :param new: how many of the last messages are new: what the run was asked last, and all that it answered.
    """
    most = len(given) if all(one.message_id is not None for one in given) else len(given) - new
    return most if any(_is_telling(one) for one in given[: max(0, most)]) else 0


def without_replayed(stored: Sequence[Message], given: Sequence[Message], new: int = 1) -> list[Message]:
    """Return the messages that follow the replay of the stored ones.

    :param stored: the newest ones, at least as many as :func:`most_replayed` says.
    """
    for overlap in range(min(most_replayed(given, new), len(stored)), 0, -1):
        replayed = given[:overlap]
        if any(map(_is_telling, replayed)) and all(map(_is_same, stored[-overlap:], replayed)):
            return list(given[overlap:])
    return list(given)


def _is_telling(message: Message) -> bool:
    """Return True if matching this message suggests a replay: people repeat themselves, but not ids or answers."""
    return message.message_id is not None or message.role not in ("user", "system")


def _is_same(one: Message, other: Message) -> bool:
    if one.message_id is not None and other.message_id is not None:
        return bool(one.message_id == other.message_id)
    return bool(one.role == other.role and one.contents == other.contents)
