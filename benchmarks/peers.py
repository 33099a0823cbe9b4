"""Drive each peer through its own public API, as its documentation shows it."""

from __future__ import annotations

import json
import sqlite3
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar
from uuid import NAMESPACE_OID, UUID, uuid5

from benchmarks.subjects import Missed, Subject


class Peer(Subject):
    """Another project's library; imported when it is opened, since few users have them all."""

    distribution: ClassVar[str]

    def _import(self, name: str) -> Any:
        try:
            return import_module(name)
        except ImportError as error:
            raise Missed(f"{self.distribution} is not installed ({error})") from error

    @classmethod
    def installed(cls) -> str | None:
        """Return the version that is installed."""
        try:
            return version(cls.distribution)
        except PackageNotFoundError:
            return None


class _OpenAI(Peer):
    """The sessions of OpenAI Agents, one for each conversation."""

    distribution = "openai-agents"

    async def open(self, folder: Path) -> None:
        self._sessions: dict[str, Any] = {}

    @abstractmethod
    def _make_session(self, chat: str) -> Any: ...

    def _session(self, chat: str) -> Any:
        if chat not in self._sessions:
            self._sessions[chat] = self._make_session(chat)
        return self._sessions[chat]

    async def say(self, chat: str, text: str) -> None:
        await self._session(chat).add_items([{"role": "user", "content": text}])

    async def last(self, chat: str, count: int) -> Sequence[str]:
        return [item["content"] for item in await self._session(chat).get_items(limit=count)]


class OpenAISQLite(_OpenAI):
    title = "OpenAI Agents SQLiteSession"
    key = "openai-sqlite"

    async def open(self, folder: Path) -> None:
        self._module = self._import("agents")
        self._path = folder / "agents.db"
        await super().open(folder)

    def _make_session(self, chat: str) -> Any:
        return self._module.SQLiteSession(chat, self._path)

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()


class _OnEngine(Peer):
    """A peer on an asynchronous engine of SQLAlchemy."""

    async def open(self, folder: Path) -> None:
        create = self._import("sqlalchemy.ext.asyncio").create_async_engine
        self._engine = create(f"sqlite+aiosqlite:///{(folder / 'peer.db').as_posix()}")

    async def close(self) -> None:
        await self._engine.dispose()


class OpenAISQLAlchemy(_OpenAI, _OnEngine):
    title = "OpenAI Agents SQLAlchemySession"
    key = "openai-sqlalchemy"

    async def open(self, folder: Path) -> None:
        self._class = self._import("agents.extensions.memory.sqlalchemy_session").SQLAlchemySession
        await _OpenAI.open(self, folder)
        await _OnEngine.open(self, folder)

    def _make_session(self, chat: str) -> Any:
        return self._class(chat, engine=self._engine, create_tables=True)


class LangChain(_OnEngine):
    title = "LangChain SQLChatMessageHistory"
    key = "langchain"
    distribution = "langchain-community"

    async def open(self, folder: Path) -> None:
        self._class = self._import("langchain_community.chat_message_histories").SQLChatMessageHistory
        self._message = self._import("langchain_core.messages").HumanMessage
        self._histories: dict[str, Any] = {}
        await super().open(folder)

    def _history(self, chat: str) -> Any:
        if chat not in self._histories:
            self._histories[chat] = self._class(session_id=chat, connection=self._engine)
        return self._histories[chat]

    async def say(self, chat: str, text: str) -> None:
        await self._history(chat).aadd_messages([self._message(content=text)])

    async def last(self, chat: str, count: int) -> Sequence[str]:
        # There is no way to ask for less than all.
        return [message.content for message in (await self._history(chat).aget_messages())[-count:]]


class LlamaIndex(_OnEngine):
    """`SQLAlchemyChatStore` is what implements `AsyncDBChatStore`."""

    title = "LlamaIndex SQLAlchemyChatStore"
    key = "llamaindex"
    distribution = "llama-index-core"

    async def open(self, folder: Path) -> None:
        self._message = self._import("llama_index.core.llms").ChatMessage
        store = self._import("llama_index.core.storage.chat_store.sql").SQLAlchemyChatStore
        await super().open(folder)
        self._store = store(table_name="messages", async_engine=self._engine)

    async def say(self, chat: str, text: str) -> None:
        await self._store.add_message(chat, self._message(role="user", content=text))

    async def last(self, chat: str, count: int) -> Sequence[str]:
        # Its `limit` counts from the oldest, so the newest are had by reading all of them.
        return [message.content or "" for message in (await self._store.get_messages(chat))[-count:]]


class LangGraph(Peer):
    """A checkpoint is the whole state of a conversation, so each message writes all that came before it again."""

    title = "LangGraph AsyncSqliteSaver"
    key = "langgraph"
    distribution = "langgraph-checkpoint-sqlite"

    async def open(self, folder: Path) -> None:
        saver = self._import("langgraph.checkpoint.sqlite.aio").AsyncSqliteSaver
        self._empty = self._import("langgraph.checkpoint.base").empty_checkpoint
        self._message = self._import("langchain_core.messages").HumanMessage
        self._stack = AsyncExitStack()
        self._saver = await self._stack.enter_async_context(saver.from_conn_string(str(folder / "graph.db")))
        self._states: dict[str, tuple[dict[str, Any], list[Any]]] = {}

    async def say(self, chat: str, text: str) -> None:
        config, messages = self._states.get(chat) or (
            {"configurable": {"thread_id": chat, "checkpoint_ns": ""}},
            [],
        )
        messages.append(self._message(content=text))
        step = len(messages)
        checkpoint = self._empty()
        checkpoint["channel_values"] = {"messages": messages}
        checkpoint["channel_versions"] = {"messages": step}
        config = await self._saver.aput(
            config, checkpoint, {"source": "loop", "step": step, "parents": {}}, {"messages": step}
        )
        self._states[chat] = (config, messages)

    async def last(self, chat: str, count: int) -> Sequence[str]:
        found = await self._saver.aget_tuple({"configurable": {"thread_id": chat, "checkpoint_ns": ""}})
        messages = [] if found is None else found.checkpoint["channel_values"]["messages"]
        return [message.content for message in messages[-count:]]

    async def close(self) -> None:
        await self._stack.aclose()


class GoogleADK(Peer):
    title = "Google ADK DatabaseSessionService"
    key = "google-adk"
    distribution = "google-adk"

    async def open(self, folder: Path) -> None:
        sessions = self._import("google.adk.sessions")
        self._event = self._import("google.adk.events").Event
        self._types = self._import("google.genai.types")
        self._config = self._import("google.adk.sessions.base_session_service").GetSessionConfig
        self._service = sessions.DatabaseSessionService(db_url=f"sqlite+aiosqlite:///{(folder / 'adk.db').as_posix()}")
        self._sessions: dict[str, Any] = {}

    async def say(self, chat: str, text: str) -> None:
        session = self._sessions.get(chat)
        if session is None:
            session = await self._service.create_session(app_name="bot", user_id="user", session_id=chat)
            self._sessions[chat] = session
        content = self._types.Content(role="user", parts=[self._types.Part(text=text)])
        await self._service.append_event(session, self._event(author="user", invocation_id="i", content=content))

    async def last(self, chat: str, count: int) -> Sequence[str]:
        session = await self._service.get_session(
            app_name="bot", user_id="user", session_id=chat, config=self._config(num_recent_events=count)
        )
        return [event.content.parts[0].text for event in session.events]

    async def close(self) -> None:
        await self._service.close()


class EventSourcing(Peer):
    """Its recorder for SQLite, which is synchronous."""

    title = "eventsourcing SQLite recorder"
    key = "eventsourcing"
    distribution = "eventsourcing"
    blocks = True

    async def open(self, folder: Path) -> None:
        persistence = self._import("eventsourcing.persistence")
        sqlite = self._import("eventsourcing.sqlite")
        self._stored = persistence.StoredEvent
        self._factory = sqlite.SQLiteFactory({"SQLITE_DBNAME": str(folder / "events.db")})
        self._recorder = self._factory.application_recorder()
        self._versions: dict[str, int] = {}

    async def say(self, chat: str, text: str) -> None:
        number = self._versions.get(chat, 0) + 1
        state = json.dumps({"role": "user", "content": text}).encode()
        self._recorder.insert_events(
            [self._stored(originator_id=_uuid(chat), originator_version=number, topic="message.appended", state=state)]
        )
        self._versions[chat] = number

    async def last(self, chat: str, count: int) -> Sequence[str]:
        found = self._recorder.select_events(_uuid(chat), desc=True, limit=count)
        return [json.loads(event.state)["content"] for event in reversed(found)]

    async def close(self) -> None:
        self._factory.close()


class TxOutbox(Peer):
    title = "txoutbox SqliteStorage"
    key = "txoutbox"
    distribution = "txoutbox"
    reads = False

    async def open(self, folder: Path) -> None:
        self.storage = self._import("txoutbox.adapters.sqlite").SqliteStorage(str(folder / "tx.db"))
        self.storage.create_schema()

    async def say(self, chat: str, text: str) -> None:
        await self.storage.add("message.appended", {"role": "user", "content": text}, key=chat)

    async def close(self) -> None:
        self.storage.close()


class SqlOutbox(Peer):
    """Synchronous, and to be used from one thread."""

    title = "sqloutbox Outbox"
    key = "sqloutbox"
    distribution = "sqloutbox"
    blocks = True
    reads = False

    async def open(self, folder: Path) -> None:
        self._outbox = self._import("sqloutbox").Outbox(folder / "sql.db", "bot")

    async def say(self, chat: str, text: str) -> None:
        payload = json.dumps({"chat": chat, "role": "user", "content": text}).encode()
        if self._outbox.enqueue("message.appended", payload) is None:
            raise RuntimeError("sqloutbox dropped the event")

    async def close(self) -> None:
        # It has no way to be closed.
        del self._outbox


class Ballast(Peer):
    """Synchronous; one connection is kept, for opening one costs more than the event."""

    title = "ballast.py EventBus"
    key = "ballast"
    distribution = "ballast-py"
    blocks = True
    reads = False

    async def open(self, folder: Path) -> None:
        ballast = self._import("ballast")
        self._database = ballast.Database(folder / "ballast.db")
        ballast.install(self._database)
        self._bus = ballast.EventBus()
        self._bus.declare("message.appended")
        self._connection: sqlite3.Connection = self._database.connect()

    async def say(self, chat: str, text: str) -> None:
        with self._database.transaction(self._connection) as connection:
            self._bus.publish(
                connection, "message.appended", {"role": "user", "content": text}, entity_type="chat", entity_id=chat
            )

    async def close(self) -> None:
        self._connection.close()


def _uuid(chat: str) -> UUID:
    return uuid5(NAMESPACE_OID, chat)


PEERS: tuple[type[Peer], ...] = (
    OpenAISQLite,
    OpenAISQLAlchemy,
    LangGraph,
    GoogleADK,
    LlamaIndex,
    LangChain,
    EventSourcing,
    TxOutbox,
    SqlOutbox,
    Ballast,
)
