# pyright: reportMissingImports=false
"""Store a Strands session: its messages in a conversation, and the state of its agents in records beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage

from letopis.adapters._envelope import from_record, to_record
from letopis.adapters.strands.messages import AGENT, from_recorded, number_of, to_message, updated_content
from letopis.outbox import History
from letopis.store import ABSENT, Filter, RecordConflict, RecordedMessage, StoreUnavailable
from letopis.store.model.identifiers import Owner

_SESSION: Final = ("strands",)
_AGENTS: Final = ("strands", "agents")
_MULTI_AGENTS: Final = ("strands", "multi_agents")
_PAGE: Final = 100
_REMEMBERED: Final = 1024
"""How many agents and multi-agents are known to exist, so that updating one does not ask the history store."""


class Sessions:
    """The sessions in a history; asynchronous.

    :param owner: the owner of the conversations, or a function that derives it from the session id.
    """

    def __init__(
        self, history: History, owner: Owner | Callable[[str], Owner | None] | None, *, new: bool = False
    ) -> None:
        self._history = history
        self._owner = owner
        self._new = new
        self._known: dict[tuple[str, tuple[str, ...], str], str] = {}

    async def create(self, session: Session) -> Session:
        await self._create(session.session_id, _SESSION, "session", session.to_dict(), "Session")
        return session

    async def read(self, session_id: str) -> Session | None:
        value = await self._read(session_id, _SESSION, "session")
        return None if value is None else Session.from_dict(value)

    async def delete(self, session_id: str) -> None:
        if await self._read(session_id, _SESSION, "session") is None:
            raise SessionException(f"Session {session_id} does not exist")
        await self._history.chat(session_id).reset(reason="delete_session")
        for place in [place for place in self._known if place[0] == session_id]:
            del self._known[place]

    async def create_agent(self, session_id: str, agent: SessionAgent) -> None:
        await self._create(session_id, _AGENTS, agent.agent_id, agent.to_dict(), "Agent")

    async def read_agent(self, session_id: str, agent_id: str) -> SessionAgent | None:
        value = await self._read(session_id, _AGENTS, agent_id)
        return None if value is None else SessionAgent.from_dict(value)

    async def update_agent(self, session_id: str, agent: SessionAgent) -> None:
        created_at = await self._there_since(session_id, _AGENTS, agent.agent_id)
        if created_at is None:
            raise SessionException(f"Agent {agent.agent_id} in session {session_id} does not exist")
        agent.created_at = created_at
        await self._history.records(conversation=session_id).put(_AGENTS, agent.agent_id, to_record(agent.to_dict()))

    async def create_message(self, session_id: str, agent_id: str, message: SessionMessage) -> None:
        owner = self._owner(session_id) if callable(self._owner) else self._owner
        await self._history.append(session_id, to_message(agent_id, message), owner=owner)

    async def read_message(self, session_id: str, agent_id: str, number: int) -> SessionMessage | None:
        found = await self._find(session_id, agent_id, number)
        return None if found is None else from_recorded(found)

    async def update_message(self, session_id: str, agent_id: str, message: SessionMessage) -> None:
        found = await self._find(session_id, agent_id, message.message_id)
        if found is None:
            raise SessionException(f"Message {message.message_id} does not exist")
        message.created_at = from_recorded(found).created_at
        await self._history.chat(session_id).edit(found.id, updated_content(message), reason="update_message")

    async def list_messages(
        self, session_id: str, agent_id: str, *, limit: int | None, offset: int
    ) -> list[SessionMessage]:
        there = await self._messages(session_id, agent_id, first=offset)
        found = [from_recorded(one) for one in there if number_of(one) >= offset]
        return found if limit is None else found[: max(0, limit)]

    async def create_multi_agent(self, session_id: str, name: str, state: Mapping[str, Any]) -> None:
        await self._create(session_id, _MULTI_AGENTS, name, dict(state), "MultiAgent state")

    async def read_multi_agent(self, session_id: str, name: str) -> dict[str, Any] | None:
        return await self._read(session_id, _MULTI_AGENTS, name)

    async def update_multi_agent(self, session_id: str, name: str, state: Mapping[str, Any]) -> None:
        if await self._there_since(session_id, _MULTI_AGENTS, name) is None:
            raise SessionException(f"MultiAgent state {name} in session {session_id} does not exist")
        await self._history.records(conversation=session_id).put(_MULTI_AGENTS, name, to_record(dict(state)))

    async def _create(self, session_id: str, namespace: tuple[str, ...], key: str, value: Any, what: str) -> None:
        records = self._history.records(conversation=session_id, new=self._new)
        try:
            await records.put(namespace, key, to_record(value), expected=ABSENT)
        except RecordConflict as error:
            name = session_id if namespace == _SESSION else f"{key} in session {session_id}"
            raise SessionException(f"{what} {name} already exists") from error
        self._remember(session_id, namespace, key, value)

    async def _read(self, session_id: str, namespace: tuple[str, ...], key: str) -> dict[str, Any] | None:
        record = await self._history.records(conversation=session_id, new=self._new).get(namespace, key)
        if record is None:
            return None
        value: dict[str, Any] = from_record(record.value)
        self._remember(session_id, namespace, key, value)
        return value

    async def _there_since(self, session_id: str, namespace: tuple[str, ...], key: str) -> str | None:
        """Return when something was created; ``None`` if it does not exist."""
        if (session_id, namespace, key) not in self._known:
            await self._read(session_id, namespace, key)
        return self._known.get((session_id, namespace, key))

    async def _find(self, session_id: str, agent_id: str, number: int) -> RecordedMessage | None:
        there = await self._messages(session_id, agent_id, first=number)
        return next((one for one in reversed(there) if number_of(one) == number), None)

    async def _messages(self, session_id: str, agent_id: str, *, first: int) -> list[RecordedMessage]:
        """Return the messages of an agent from a number on, and perhaps some earlier ones, oldest first.

        :raises StoreUnavailable: the history store is unreachable, and the outbox retains none; the agent would
            otherwise count from 0 again.
        """
        where, found, before = Filter(metadata={AGENT: agent_id}), list[RecordedMessage](), None
        while True:
            page = await self._history.messages(session_id, last=_PAGE, before=before, where=where)
            found = [*page, *found]
            before = page.next
            # Two processes may have numbered the same session, so numbers need not rise.
            if before is None or (page and max(map(number_of, page)) < first):
                break
        if not found and not page.complete and not self._new:
            raise StoreUnavailable("what the agent has said")
        return found

    def _remember(self, session_id: str, namespace: tuple[str, ...], key: str, value: Mapping[str, Any]) -> None:
        if len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[session_id, namespace, key] = str(value.get("created_at", ""))
