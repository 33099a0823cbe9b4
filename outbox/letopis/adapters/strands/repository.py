# pyright: reportMissingImports=false
"""Provide Strands' session managers with a repository in a history; synchronous, as Strands requires."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from strands.session import SessionRepository
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage

from letopis.adapters._blocking import InHomeLoop, wait_for
from letopis.adapters.strands.sessions import Sessions
from letopis.outbox import History
from letopis.store import InvalidInput, LetopisError
from letopis.store.cancellation import run_to_completion
from letopis.store.model.identifiers import Owner

if TYPE_CHECKING:
    from strands.multiagent import MultiAgentBase

T = TypeVar("T")


class LetopisSessionRepository(SessionRepository):
    """A ``SessionRepository``: each session is a conversation of a history.

    ::

        repository = LetopisSessionRepository(History("bot.outbox.db", own_thread=True))
        agent = Agent(session_manager=RepositorySessionManager("chat-1", session_repository=repository))

    Each message is durable before the agent continues, whether or not the history store can be reached. The state of
    agents and multi-agents is kept in records of the conversation, and erased with it. One repository serves any number
    of sessions and threads.

    Messages that another program appended to the conversation are not passed to agents, because agents number their
    messages themselves.

    All methods raise ``SessionException``, with Letopis' error as its cause, if something cannot be stored, if the
    outbox is full, or if the history store is unreachable and the outbox alone does not suffice. Nothing was written
    then.

    :param history: not closed by the repository. In the event loop in which the history is open, the methods raise
        ``InHomeLoop``: open it with ``own_thread=True``.
    :param owner: the owner of the conversations, or a function that derives it from the session id.
    :param new: you say that the sessions are new, so that they begin also while the history store is unavailable. If
        one exists after all, the messages of both are kept in it.
    """

    def __init__(
        self,
        history: History,
        *,
        owner: Owner | Callable[[str], Owner | None] | None = None,
        new: bool = False,
    ) -> None:
        if not isinstance(history, History):
            raise InvalidInput("history", f"must be a History, not {type(history).__name__}")
        self._history = history
        self._sessions = Sessions(history, owner, new=new)

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Create a session.

        :raises SessionException: it already exists.
        """
        return self._run(lambda: self._sessions.create(session))

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return a session; ``None`` only if it certainly does not exist."""
        return self._run(lambda: self._sessions.read(session_id))

    def delete_session(self, session_id: str, **kwargs: Any) -> None:
        """Erase a session with all its messages; the id can be used again.

        :raises SessionException: it does not exist.
        """
        self._run(lambda: self._sessions.delete(session_id))

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Create an agent in a session.

        :raises SessionException: it already exists.
        """
        self._run(lambda: self._sessions.create_agent(session_id, session_agent))

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return an agent; ``None`` only if it certainly does not exist."""
        return self._run(lambda: self._sessions.read_agent(session_id, agent_id))

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Replace the stored agent; ``created_at`` is kept.

        :raises SessionException: it does not exist.
        """
        self._run(lambda: self._sessions.update_agent(session_id, session_agent))

    def create_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Append a message. If two processes use the same number, both messages are kept."""
        self._run(lambda: self._sessions.create_message(session_id, agent_id, session_message))

    def read_message(self, session_id: str, agent_id: str, message_id: int, **kwargs: Any) -> SessionMessage | None:
        """Return the message with a number, the newest one if there are several."""
        return self._run(lambda: self._sessions.read_message(session_id, agent_id, message_id))

    def update_message(self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any) -> None:
        """Replace the message with the same number; ``created_at`` is kept, and the log keeps the old content.

        :raises SessionException: it does not exist.
        """
        self._run(lambda: self._sessions.update_message(session_id, agent_id, session_message))

    def list_messages(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0, **kwargs: Any
    ) -> list[SessionMessage]:
        """Return the messages of an agent from number ``offset`` on, oldest first, at most ``limit``.

        While the history store is unreachable, only those that the outbox retains.
        """
        return self._run(lambda: self._sessions.list_messages(session_id, agent_id, limit=limit, offset=offset))

    def create_multi_agent(self, session_id: str, multi_agent: MultiAgentBase, **kwargs: Any) -> None:
        """Create the state of a multi-agent in a session.

        :raises SessionException: it already exists.
        """
        state = multi_agent.serialize_state()
        self._run(lambda: self._sessions.create_multi_agent(session_id, multi_agent.id, state))

    def read_multi_agent(self, session_id: str, multi_agent_id: str, **kwargs: Any) -> dict[str, Any] | None:
        """Return the state of a multi-agent; ``None`` only if it certainly does not exist."""
        return self._run(lambda: self._sessions.read_multi_agent(session_id, multi_agent_id))

    def update_multi_agent(self, session_id: str, multi_agent: MultiAgentBase, **kwargs: Any) -> None:
        """Replace the state of a multi-agent.

        :raises SessionException: it does not exist.
        """
        state = multi_agent.serialize_state()
        self._run(lambda: self._sessions.update_multi_agent(session_id, multi_agent.id, state))

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return wait_for(self._history, lambda: run_to_completion(work()))
        except InHomeLoop:
            raise
        except LetopisError as error:
            raise SessionException(str(error)) from error
