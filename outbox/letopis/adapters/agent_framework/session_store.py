# pyright: reportMissingImports=false
"""Store the state of Agent Framework's sessions in a history."""

from __future__ import annotations

from typing import Final

from agent_framework import AgentSession, SessionStore

from letopis.adapters._envelope import from_record, to_record
from letopis.outbox import History
from letopis.store import InvalidInput
from letopis.store.cancellation import run_to_completion

_NAMESPACE: Final = ("agent_framework",)
_KEY: Final = "session"


class LetopisSessionStore(SessionStore):
    """A ``SessionStore``, which the framework calls experimental: each session is a record of its conversation.

    A session is durable when it is set, and is erased with its conversation. ``get`` never returns ``None`` for a
    session that may exist, because the bot would then start it over.

    :param history: not closed by the store.
    """

    def __init__(self, history: History) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        super().__init__()
        self._history = history

    async def get(self, session_id: str) -> AgentSession | None:
        """Return a new copy of a session; ``None`` only if it certainly does not exist.

        :raises StoreUnavailable: the history store is unreachable, and the outbox does not know the session.
        :raises ValueError: the id cannot be one.
        """
        self.validate_session_id(session_id)
        record = await self._history.records(conversation=session_id).get(_NAMESPACE, _KEY)
        return None if record is None else AgentSession.from_dict(from_record(record.value))

    async def set(self, session_id: str, session: AgentSession) -> None:
        """Replace the stored session. The last writer wins.

        :raises ValueError: the id cannot be one, or the state holds a value that is not JSON; nothing was written.
        :raises LetopisError: as for ``Records.put``.
        """
        self.validate_session_id(session_id)
        records = self._history.records(conversation=session_id)
        await run_to_completion(records.put(_NAMESPACE, _KEY, to_record(session.to_dict())))

    async def delete(self, session_id: str) -> None:
        """Delete a session, if there is one; the messages of its conversation stay.

        :raises LetopisError: as for ``Records.delete``.
        """
        self.validate_session_id(session_id)
        await run_to_completion(self._history.records(conversation=session_id).delete(_NAMESPACE, _KEY))
