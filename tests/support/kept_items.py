"""Give each framework's own backend and Letopis the same items, and return what each gives back, as JSON text."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from letopis.outbox import BlockingHistory, History
from letopis.store import InvalidInput
from letopis.store.model.envelope import to_text
from tests.support.values.items import ITEMS, VALUES, Kind

THEN: Final = datetime(2026, 1, 1, tzinfo=UTC)
UNFIT: Final = frozenset({"depth-300", "depth-900"})
"""What a framework's own serializer may refuse, before any backend sees it."""
Outcome = dict[str, str]
"""By kind: what came back, or the class of the error."""
Deed = Callable[[Kind], Awaitable[Any]]


def kinds_of(framework: str) -> Sequence[Kind]:
    """Return what this framework is given: OpenAI's items of odd shapes belong to its own API."""
    return (*VALUES, *ITEMS) if framework == "openai_agents" else VALUES


async def tried(framework: str, deed: Deed) -> Outcome:
    """Do something with each kind, and note what comes of it."""
    found: Outcome = {}
    for kind in kinds_of(framework):
        try:
            found[kind.name] = to_text(await deed(kind))
        except Exception as error:  # frameworks raise whatever their serializers do
            found[kind.name] = f"raises {type(error).__name__}"
    return found


async def differences(framework: str, folder: Path, url: str) -> list[str]:
    """Return what is refused, or comes back through a store otherwise than from the framework's own backend.

    A framework may be unable to write something itself, such as deep nesting; then its own backend refuses it too.
    """
    subject = ADAPTERS[framework][1](folder)
    subject.url = url
    theirs = await tried(framework, subject.own)
    async with History.open(folder / "a.outbox.db", store=url, own_thread=True) as history:
        written = await tried(framework, lambda kind: subject.write(history, kind))
        assert await history.drained(timeout=120)
    async with History.open(
        folder / "b.outbox.db", store=url, relay=False, own_thread=True, read_timeout=60.0
    ) as history:
        found = await tried(framework, lambda kind: subject.read(history, kind))
    await asyncio.to_thread(getattr(subject, "close", lambda: None))
    problems = []
    for name, outcome in theirs.items():
        refuses = outcome.startswith("raises")
        if written[name].startswith("raises") and not (refuses and name in UNFIT):
            problems.append(f"{framework}: {name}: {written[name]}")
        elif not refuses and found[name] != outcome:
            problems.append(f"{framework}: {name}: comes back as {found[name][:100]!a}, not as {outcome[:100]!a}")
    return problems


def refusing(item: Any) -> Any:
    """Stand for an envelope that holds no text, for controls."""
    raise InvalidInput("item", "is not JSON that can be stored")


class OpenAIAgents:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def item(self, kind: Kind) -> Any:
        return kind.output if kind in VALUES else kind.value

    async def own(self, kind: Kind) -> Any:
        from agents import SQLiteSession

        session = SQLiteSession(kind.name, self._folder / "own.db")
        await session.add_items([self.item(kind)])
        found = await session.get_items()
        session.close()
        return found

    async def write(self, history: History, kind: Kind) -> None:
        from letopis.adapters.openai_agents import LetopisSession

        await LetopisSession(kind.name, history).add_items([self.item(kind)])

    async def read(self, history: History, kind: Kind) -> Any:
        from letopis.adapters.openai_agents import LetopisSession

        return await LetopisSession(kind.name, history).get_items()


class Strands:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "own"

    def message(self, kind: Kind) -> Any:
        from strands.types.session import SessionMessage

        result = {"toolUseId": "c", "status": "success", "content": [{"json": kind.value}]}
        at = THEN.isoformat()
        message: Any = {"role": "user", "content": [{"toolResult": result}]}
        return SessionMessage(message=message, message_id=0, created_at=at, updated_at=at)

    async def own(self, kind: Kind) -> Any:
        from strands.session import FileSessionManager

        return await asyncio.to_thread(self._round, FileSessionManager(kind.name, str(self._folder)), kind, new=False)

    async def write(self, history: History, kind: Kind) -> None:
        from letopis.adapters.strands import LetopisSessionRepository

        await asyncio.to_thread(self._write, LetopisSessionRepository(history), kind)

    async def read(self, history: History, kind: Kind) -> Any:
        from letopis.adapters.strands import LetopisSessionRepository

        return await asyncio.to_thread(self._read, LetopisSessionRepository(history), kind)

    def _round(self, repository: Any, kind: Kind, *, new: bool) -> Any:
        self._write(repository, kind, new=new)
        return self._read(repository, kind)

    def _write(self, repository: Any, kind: Kind, *, new: bool = True) -> None:
        from strands.types.session import Session, SessionAgent, SessionType

        if new:
            repository.create_session(Session(session_id=kind.name, session_type=SessionType.AGENT))
        at = THEN.isoformat()
        state = {"value": kind.value}
        agent = SessionAgent("bot", state=state, conversation_manager_state={}, created_at=at, updated_at=at)
        repository.create_agent(kind.name, agent)
        repository.create_message(kind.name, "bot", self.message(kind))

    def _read(self, repository: Any, kind: Kind) -> Any:
        (message,) = repository.list_messages(kind.name, "bot")
        return [message.to_dict(), repository.read_agent(kind.name, "bot").state]


class GoogleADK:
    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "own.db")

    async def _round(self, service: Any, kind: Kind) -> None:
        from google.adk.events.event import Event
        from google.adk.events.event_actions import EventActions
        from google.genai import types

        response = types.FunctionResponse(id="c", name="look", response={"result": kind.value})
        event = Event(
            id="e1",
            author="bot",
            timestamp=THEN.timestamp(),
            content=types.Content(role="user", parts=[types.Part(function_response=response)]),
            actions=EventActions(state_delta={"value": kind.value}),
        )
        session = await service.create_session(app_name="app", user_id="u", session_id=kind.name)
        await service.append_event(session, event)

    async def _read(self, service: Any, kind: Kind) -> Any:
        session = await service.get_session(app_name="app", user_id="u", session_id=kind.name)
        events = [one.model_dump(mode="json", exclude_none=True) for one in session.events]
        return [events, session.state]

    async def own(self, kind: Kind) -> Any:
        from google.adk.sessions import InMemorySessionService
        from google.adk.sessions.sqlite_session_service import SqliteSessionService

        # Its SQLite makes null of NaN in the state, but not of infinity; the service in memory keeps both.
        found = []
        for service in (SqliteSessionService(self._path), InMemorySessionService()):
            await self._round(service, kind)
            found.append(await self._read(service, kind))
        return [found[0][0], found[1][1]]

    async def write(self, history: History, kind: Kind) -> None:
        from letopis.adapters.google_adk import LetopisSessionService

        await self._round(LetopisSessionService(history), kind)

    async def read(self, history: History, kind: Kind) -> Any:
        from letopis.adapters.google_adk import LetopisSessionService

        return await self._read(LetopisSessionService(history), kind)


class AgentFramework:
    def __init__(self, folder: Path) -> None:
        del folder

    def message(self, kind: Kind) -> Any:
        from agent_framework import Content, Message

        content = Content("function_result", call_id="c", result=kind.value)
        return Message("tool", [content], additional_properties={"value": kind.value})

    async def own(self, kind: Kind) -> Any:
        from agent_framework import InMemoryHistoryProvider

        provider, state = InMemoryHistoryProvider(), dict[str, Any]()
        await provider.save_messages(kind.name, [self.message(kind)], state=state)
        return [one.to_dict() for one in await provider.get_messages(kind.name, state=state)]

    async def write(self, history: History, kind: Kind) -> None:
        from letopis.adapters.agent_framework import LetopisHistoryProvider

        await LetopisHistoryProvider(history).save_messages(kind.name, [self.message(kind)])

    async def read(self, history: History, kind: Kind) -> Any:
        from letopis.adapters.agent_framework import LetopisHistoryProvider

        return [one.to_dict() for one in await LetopisHistoryProvider(history).get_messages(kind.name)]


class PydanticAI:
    def __init__(self, folder: Path) -> None:
        from pydantic_ai.conversation_store import InMemoryConversationStore

        del folder
        self._own = InMemoryConversationStore()

    async def _save(self, store: Any, kind: Kind) -> None:
        from pydantic_ai.conversation import Conversation
        from pydantic_ai.messages import ModelRequest, ToolReturnPart

        part = ToolReturnPart("look", kind.value, tool_call_id="c", timestamp=THEN)
        await store.save(Conversation(conversation_id=kind.name, messages=[ModelRequest([part], timestamp=THEN)]))

    async def _read(self, store: Any, kind: Kind) -> Any:
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        found = await store.load(kind.name)
        return ModelMessagesTypeAdapter.dump_python(found.messages, mode="json")

    async def own(self, kind: Kind) -> Any:
        await self._save(self._own, kind)
        return await self._read(self._own, kind)

    async def write(self, history: History, kind: Kind) -> None:
        from letopis.adapters.pydantic_ai import LetopisConversationStore

        await self._save(LetopisConversationStore(history), kind)

    async def read(self, history: History, kind: Kind) -> Any:
        from letopis.adapters.pydantic_ai import LetopisConversationStore

        return await self._read(LetopisConversationStore(history), kind)


class LangChain:
    def __init__(self, folder: Path) -> None:
        del folder

    def message(self, kind: Kind) -> Any:
        from langchain_core.messages import ToolMessage

        text = kind.value if isinstance(kind.value, str) else "a value"
        return ToolMessage(text, tool_call_id="c", artifact=kind.value)

    async def own(self, kind: Kind) -> Any:
        from langchain_core.chat_history import InMemoryChatMessageHistory

        chat = InMemoryChatMessageHistory()
        await chat.aadd_messages([self.message(kind)])
        return [dict(one) for one in await chat.aget_messages()]

    async def write(self, history: History, kind: Kind) -> None:
        from letopis.adapters.langchain import LetopisChatMessageHistory

        await LetopisChatMessageHistory(kind.name, history).aadd_messages([self.message(kind)])

    async def read(self, history: History, kind: Kind) -> Any:
        from letopis.adapters.langchain import LetopisChatMessageHistory

        return [dict(one) for one in await LetopisChatMessageHistory(kind.name, history).aget_messages()]


class LlamaIndex:
    def __init__(self, folder: Path) -> None:
        self._url = f"sqlite+aiosqlite:///{folder / 'own.db'}"

    async def _write(self, store: Any, kind: Kind) -> None:
        from llama_index.core.base.llms.types import ChatMessage

        text = kind.value if isinstance(kind.value, str) else "a value"
        about = {"tool_call_id": "c", "value": kind.value}
        await store.add_message(kind.name, ChatMessage(text, role="tool", additional_kwargs=about))

    async def _read(self, store: Any, kind: Kind) -> Any:
        return [one.model_dump(mode="json") for one in await store.get_messages(kind.name)]

    async def own(self, kind: Kind) -> Any:
        from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

        store = SQLAlchemyChatStore("memory", self._url)
        try:
            await self._write(store, kind)
            return await self._read(store, kind)
        finally:
            assert store._async_engine is not None
            await store._async_engine.dispose()

    async def write(self, history: History, kind: Kind) -> None:
        from letopis.adapters.llama_index import LetopisChatStore

        await self._write(LetopisChatStore(history), kind)

    async def read(self, history: History, kind: Kind) -> Any:
        from letopis.adapters.llama_index import LetopisChatStore

        return await self._read(LetopisChatStore(history), kind)


class Haystack:
    url: str
    """The store, for histories of its own: Haystack's stores block."""

    def __init__(self, folder: Path) -> None:
        from haystack_experimental.chat_message_stores.in_memory import InMemoryChatMessageStore

        self._own = InMemoryChatMessageStore()
        self._folder = str(folder)
        self._opened: dict[str, BlockingHistory] = {}

    def _history(self, like: History) -> BlockingHistory:
        """Return a blocking history on the same store, and deliver what an earlier one has."""
        path = f"{like.outbox.path}.blocking.outbox.db"
        if path not in self._opened:
            self.close()
            self._opened = {path: BlockingHistory.open(path, store=self.url, read_timeout=60.0)}
        return self._opened[path]

    def close(self) -> None:
        for one in self._opened.values():
            assert one.drained(timeout=60)
            one.close()
        self._opened = {}

    def _write(self, store: Any, kind: Kind) -> None:
        from haystack.dataclasses import ChatMessage, ToolCall

        text = kind.value if isinstance(kind.value, str) else "a value"
        about = {"chat_message_id": "1", "value": None if isinstance(kind.value, str) else kind.value}
        origin = ToolCall(tool_name="look", arguments=about, id="c")
        store.write_messages(self._folder + kind.name, [ChatMessage.from_tool(text, origin=origin, meta=about)])

    def _read(self, store: Any, kind: Kind) -> Any:
        return [one.to_dict() for one in store.retrieve_messages(self._folder + kind.name)]

    async def own(self, kind: Kind) -> Any:
        self._write(self._own, kind)
        return self._read(self._own, kind)

    async def write(self, history: History, kind: Kind) -> None:
        await asyncio.to_thread(lambda: self._write(self._ours(history), kind))

    async def read(self, history: History, kind: Kind) -> Any:
        return await asyncio.to_thread(lambda: self._read(self._ours(history), kind))

    def _ours(self, history: History) -> Any:
        from letopis.adapters.haystack import LetopisChatMessageStore

        return LetopisChatMessageStore(self._history(history))


ADAPTERS: Final[dict[str, tuple[str, Callable[[Path], Any]]]] = {
    "openai_agents": ("agents", OpenAIAgents),
    "strands": ("strands", Strands),
    "google_adk": ("google.adk", GoogleADK),
    "agent_framework": ("agent_framework", AgentFramework),
    "pydantic_ai": ("pydantic_ai", PydanticAI),
    "langchain": ("langchain_core", LangChain),
    "llama_index": ("llama_index.core", LlamaIndex),
    "haystack": ("haystack_experimental", Haystack),
}
"""By framework: the package that it needs, and how to use its backend and ours."""
