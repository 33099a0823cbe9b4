"""Give each framework's own backend and Letopis the same items, and return what each gives back, as JSON text."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from letopis import BlockingHistory, History, InvalidInput
from letopis.adapters._envelope import to_text
from tests.support.sayings import present
from tests.support.values.items import ITEMS, VALUES, Kind

THEN: Final = datetime(2026, 1, 1, tzinfo=UTC)
UNFIT: Final = frozenset({"depth-300", "depth-900"})
"""What a framework's own serializer may refuse, before any backend sees it."""
Outcome = dict[str, str]  # by kind: what came back, or the class of the error
Deed = Callable[[Kind], Awaitable[Any]]


def kinds_of(framework: str) -> Sequence[Kind]:
    return (*VALUES, *ITEMS) if framework == "openai_agents" else VALUES


async def tried(framework: str, deed: Deed) -> Outcome:
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
    async with History(folder / "a.outbox.db", store=url, own_thread=True) as history:
        written = await tried(framework, lambda kind: subject.write(history, kind))
        assert await history.drained(timeout=120)
    async with History(folder / "b.outbox.db", store=url, relay=False, own_thread=True, read_timeout=60.0) as history:
        found = await tried(framework, lambda kind: subject.read(history, kind))
    await subject.close()
    problems = [] if theirs["text"][:6] != "raises" else [f"{framework}: its own backend {theirs['text']}"]
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


class Subject:
    """A framework's own backend, and Letopis in the place of it."""

    adapter: str
    backend: str
    """Where they are: frameworks are imported when they are used, as one may be missing."""
    of_one = False
    """Whether the adapter is that of one conversation, whose name it takes first."""
    url: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def theirs(self, name: str) -> Any:
        backend = resolve_name(self.backend)
        with warnings.catch_warnings(action="ignore"):  # LangChain's is deprecated
            return backend()

    async def end(self, backend: Any) -> None:
        """End the framework's own backend."""

    def ours(self, history: History, name: str) -> Any:
        return resolve_name(f"letopis.adapters.{self.adapter}")(*[name] * self.of_one, history)

    def put(self, backend: Any, kind: Kind) -> Any:
        """Have a backend keep an item, in a conversation of its kind's name; in a thread unless it is a coroutine."""
        raise NotImplementedError

    def got(self, backend: Any, kind: Kind) -> Any:
        raise NotImplementedError

    async def own(self, kind: Kind) -> Any:
        backend = self.theirs(kind.name)
        try:
            await _done(self.put, backend, kind)
            return await _done(self.got, backend, kind)
        finally:
            await self.end(backend)

    async def write(self, history: History, kind: Kind) -> None:
        await _done(self.put, self.ours(history, kind.name), kind)

    async def read(self, history: History, kind: Kind) -> Any:
        return await _done(self.got, self.ours(history, kind.name), kind)

    async def close(self) -> None:
        """End what is left open."""


async def _done(deed: Callable[..., Any], *given: Any) -> Any:
    return await (deed(*given) if iscoroutinefunction(deed) else asyncio.to_thread(deed, *given))


def _text(kind: Kind) -> str:
    return kind.value if isinstance(kind.value, str) else "a value"


class OpenAIAgents(Subject):
    adapter = "openai_agents:LetopisSession"
    of_one = True

    def theirs(self, name: str) -> Any:
        from agents import SQLiteSession

        return SQLiteSession(name, self.folder / "own.db")

    async def end(self, backend: Any) -> None:
        backend.close()

    async def put(self, backend: Any, kind: Kind) -> None:
        await backend.add_items([kind.output if kind in VALUES else kind.value])

    async def got(self, backend: Any, kind: Kind) -> Any:
        return await backend.get_items()


class Strands(Subject):
    adapter = "strands:LetopisSessionRepository"

    def theirs(self, name: str) -> Any:
        from strands.session import FileSessionManager

        return FileSessionManager(name, str(self.folder / "own"))

    def put(self, backend: Any, kind: Kind) -> None:
        from strands.session import FileSessionManager
        from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

        if not isinstance(backend, FileSessionManager):  # which has made its session itself
            backend.create_session(Session(session_id=kind.name, session_type=SessionType.AGENT))
        times = {"created_at": THEN.isoformat(), "updated_at": THEN.isoformat()}
        agent = SessionAgent("bot", state={"value": kind.value}, conversation_manager_state={}, **times)
        backend.create_agent(kind.name, agent)
        result = {"toolUseId": "c", "status": "success", "content": [{"json": kind.value}]}
        message: Any = {"role": "user", "content": [{"toolResult": result}]}
        backend.create_message(kind.name, "bot", SessionMessage(message=message, message_id=0, **times))

    def got(self, backend: Any, kind: Kind) -> Any:
        (message,) = backend.list_messages(kind.name, "bot")
        return [message.to_dict(), backend.read_agent(kind.name, "bot").state]


class GoogleADK(Subject):
    adapter = "google_adk:LetopisSessionService"

    async def put(self, backend: Any, kind: Kind) -> None:
        from google.adk.events.event import Event
        from google.adk.events.event_actions import EventActions
        from google.genai import types

        response = types.FunctionResponse(id="c", name="look", response={"result": kind.value})
        content = types.Content(role="user", parts=[types.Part(function_response=response)])
        actions = EventActions(state_delta={"value": kind.value})
        event = Event(id="e1", author="bot", timestamp=THEN.timestamp(), content=content, actions=actions)
        session = await backend.create_session(app_name="app", user_id="u", session_id=kind.name)
        await backend.append_event(session, event)

    async def got(self, backend: Any, kind: Kind) -> Any:
        session = await backend.get_session(app_name="app", user_id="u", session_id=kind.name)
        events = [one.model_dump(mode="json", exclude_none=True) for one in session.events]
        return [events, session.state]

    async def own(self, kind: Kind) -> Any:
        from google.adk.sessions import InMemorySessionService
        from google.adk.sessions.sqlite_session_service import SqliteSessionService

        # Its SQLite makes null of NaN in the state, but not of infinity; the service in memory keeps both.
        found = []
        for service in (SqliteSessionService(str(self.folder / "own.db")), InMemorySessionService()):
            await self.put(service, kind)
            found.append(await self.got(service, kind))
        return [found[0][0], found[1][1]]


class AgentFramework(Subject):
    adapter = "agent_framework:LetopisHistoryProvider"
    backend = "agent_framework:InMemoryHistoryProvider"

    def theirs(self, name: str) -> Any:
        self._state = dict[str, Any]()
        return super().theirs(name)

    def ours(self, history: History, name: str) -> Any:
        self._state = {}
        return super().ours(history, name)

    async def put(self, backend: Any, kind: Kind) -> None:
        from agent_framework import Content, Message

        content = Content("function_result", call_id="c", result=kind.value)
        message = Message("tool", [content], additional_properties={"value": kind.value})
        await backend.save_messages(kind.name, [message], state=self._state)

    async def got(self, backend: Any, kind: Kind) -> Any:
        return [one.to_dict() for one in await backend.get_messages(kind.name, state=self._state)]


class PydanticAI(Subject):
    adapter = "pydantic_ai:LetopisConversationStore"
    backend = "pydantic_ai.conversation_store:InMemoryConversationStore"

    async def put(self, backend: Any, kind: Kind) -> None:
        from pydantic_ai.conversation import Conversation
        from pydantic_ai.messages import ModelRequest, ToolReturnPart

        part = ToolReturnPart("look", kind.value, tool_call_id="c", timestamp=THEN)
        await backend.save(Conversation(conversation_id=kind.name, messages=[ModelRequest([part], timestamp=THEN)]))

    async def got(self, backend: Any, kind: Kind) -> Any:
        from pydantic_ai.messages import ModelMessagesTypeAdapter

        found = await backend.load(kind.name)
        return ModelMessagesTypeAdapter.dump_python(found.messages, mode="json")


class LangChain(Subject):
    adapter = "langchain:LetopisChatMessageHistory"
    backend = "langchain_core.chat_history:InMemoryChatMessageHistory"
    of_one = True

    async def put(self, backend: Any, kind: Kind) -> None:
        from langchain_core.messages import ToolMessage

        await backend.aadd_messages([ToolMessage(_text(kind), tool_call_id="c", artifact=kind.value)])

    async def got(self, backend: Any, kind: Kind) -> Any:
        return [dict(one) for one in await backend.aget_messages()]


class LlamaIndex(Subject):
    adapter = "llama_index:LetopisChatStore"

    def theirs(self, name: str) -> Any:
        from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

        return SQLAlchemyChatStore("memory", f"sqlite+aiosqlite:///{self.folder / 'own.db'}")

    async def end(self, backend: Any) -> None:
        await present(backend._async_engine).dispose()

    async def put(self, backend: Any, kind: Kind) -> None:
        from llama_index.core.base.llms.types import ChatMessage

        about = {"tool_call_id": "c", "value": kind.value}
        await backend.add_message(kind.name, ChatMessage(_text(kind), role="tool", additional_kwargs=about))

    async def got(self, backend: Any, kind: Kind) -> Any:
        return [one.model_dump(mode="json") for one in await backend.get_messages(kind.name)]


class Haystack(Subject):
    backend = "haystack_experimental.chat_message_stores.in_memory:InMemoryChatMessageStore"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._opened: dict[str, BlockingHistory] = {}

    def ours(self, history: History, name: str) -> Any:
        """Return an adapter on a blocking history of the same store, and deliver what an earlier one has."""
        from letopis.adapters.haystack import LetopisChatMessageStore

        path = f"{history.outbox.path}.blocking.outbox.db"
        if path not in self._opened:
            self._close()
            self._opened = {path: BlockingHistory(path, store=self.url, read_timeout=60.0)}
        return LetopisChatMessageStore(self._opened[path])

    def put(self, backend: Any, kind: Kind) -> None:
        from haystack.dataclasses import ChatMessage, ToolCall

        about = {"chat_message_id": "1", "value": None if isinstance(kind.value, str) else kind.value}
        message = ChatMessage.from_tool(_text(kind), origin=ToolCall("look", about, id="c"), meta=about)
        backend.write_messages(f"{self.folder}{kind.name}", [message])

    def got(self, backend: Any, kind: Kind) -> Any:
        return [one.to_dict() for one in backend.retrieve_messages(f"{self.folder}{kind.name}")]

    async def write(self, history: History, kind: Kind) -> None:
        await asyncio.to_thread(lambda: self.put(self.ours(history, kind.name), kind))

    async def read(self, history: History, kind: Kind) -> Any:
        return await asyncio.to_thread(lambda: self.got(self.ours(history, kind.name), kind))

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for one in self._opened.values():
            assert one.drained(timeout=60)
            one.close()
        self._opened = {}


ADAPTERS: Final[dict[str, tuple[str, Callable[[Path], Subject]]]] = {
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
