"""A turn that a kill has cut, in each framework: the next one works, with a model that refuses what providers refuse.

Each framework runs as it is. The model is ours: it answers, and raises what an API answers with 400: a call without its
result, or a result without its call.
"""

import asyncio
import os
import signal
import subprocess
import warnings
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import BlockingHistory, History
from letopis.store import Message, ToolCall, ToolResult
from tests.support.child import command
from tests.support.sayings import present

Part = tuple[str, str]
"""``("call", id)``, ``("result", id)`` or ``("said", text)``."""


class Refused(Exception):
    """What an API answers with 400."""


def check(messages: Iterable[Sequence[Part]], *, apart: bool = False) -> None:
    waiting: list[str] = []
    for parts in messages:
        results = [name for kind, name in parts if kind == "result"]
        for name in results:
            if name not in waiting:
                raise Refused(f"no call of {name}")
            waiting.remove(name)
        if waiting and not results and not apart:
            raise Refused(f"no result of {waiting}")
        waiting += [name for kind, name in parts if kind == "call"]
    if waiting:
        raise Refused(f"no result of {waiting}")


async def answered(*_: Any) -> None:
    """Think of nothing."""


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    """A history that delivers nothing, served in a thread of its own, as Strands needs it."""
    async with opened(str(tmp_path / "bot.outbox.db")) as history:
        yield history


async def texts(history: History, conversation: str = "chat-1") -> list[Any]:
    """Return what is stored: it must not change by being read."""
    return [(one.id, one.message.content) for one in await history.messages(conversation, last=None)]


# OpenAI Agents


def responses_parts(items: Iterable[Any]) -> list[list[Part]]:
    kinds = {"function_call": "call", "function_call_output": "result"}
    return [[(kinds.get(one.get("type"), "said"), str(one.get("call_id")))] for one in items]


def agents_model(*answers: str) -> Any:
    """A model that answers one after the other; one that begins with a c is the id of a call."""
    from agents import ModelResponse, Usage
    from openai.types.responses import ResponseFunctionToolCall

    from tests.support.bots.openai_agents import FakeModel

    waiting = iter(answers)

    class Strict(FakeModel):
        async def get_response(self, system_instructions: Any, input: Any, *given: Any, **options: Any) -> Any:  # noqa: A002
            check(responses_parts([] if isinstance(input, str) else input), apart=True)
            if (text := next(waiting))[0] != "c":
                return self._said(text)
            call = ResponseFunctionToolCall(call_id=text, name="look", arguments="{}", type="function_call")
            return ModelResponse(output=[call], usage=Usage(), response_id=None)

    return Strict(answered)


def item(kind: str, name: str = "c1") -> Any:
    if kind == "call":
        return {"type": "function_call", "call_id": name, "name": "look", "arguments": "{}"}
    if kind == "result":
        return {"type": "function_call_output", "call_id": name, "output": "a cup"}
    return {"role": kind, "content": name}


BROKEN = [
    [item("user", "hi"), item("call")],
    [item("user", "hi"), item("call"), item("call", "c2"), item("result", "c2")],
    [item("user", "hi"), item("result")],
    [item("user", "hi"), item("call"), item("user", "again?"), item("assistant", "yes")],
]


@pytest.mark.parametrize("items", BROKEN)
async def test_openai_agents(history: History, items: list[Any]) -> None:
    pytest.importorskip("agents")
    from agents import Agent, Runner

    from letopis.adapters.openai_agents import LetopisSession

    session = LetopisSession("chat-1", history)
    await session.add_items(items)
    before = await texts(history)
    with pytest.raises(Refused):  # the control: as it is stored, it is refused
        check(responses_parts([*items, item("user", "next")]), apart=True)

    found = await session.get_items()
    check(responses_parts(found), apart=True)
    assert [one for one in found if one in items] == [one for one in items if one in found]
    assert await texts(history) == before
    # Without the SDK's own pruning, which a list of the caller does not get.
    await Runner.run(Agent(name="bot", model=agents_model("fine")), [*found, item("user", "next")])
    await Runner.run(Agent(name="bot", model=agents_model("fine")), "next", session=session)
    assert (await texts(history))[: len(before)] == before


async def test_openai_agents_with_every_limit(history: History) -> None:
    pytest.importorskip("agents")
    from letopis.adapters.openai_agents import LetopisSession

    session = LetopisSession("chat-1", history)
    turn = [item("user", "hi"), item("call"), item("call", "c2"), item("result"), item("result", "c2")]
    items = [*turn, item("assistant", "A cup"), *turn, item("assistant", "Tea"), item("user", "and?"), item("call")]
    await session.add_items(items)
    for limit in range(1, len(items) + 3):
        found = await session.get_items(limit)
        assert len(found) <= limit
        check(responses_parts(found), apart=True)
        assert not found or found[-1]["type"] == "function_call_output"


async def test_openai_agents_approval(history: History) -> None:
    """The run that waits is saved, another question comes, and then the approval, in another process."""
    pytest.importorskip("agents")
    from agents import Agent, Runner, RunState, SQLiteSession, function_tool

    from letopis.adapters.openai_agents import LetopisSession

    looked = []

    @function_tool(needs_approval=True)
    async def look() -> str:
        looked.append(1)
        return "a cup"

    def bot(*answers: str) -> Any:
        return Agent(name="bot", model=agents_model(*answers), tools=[look])

    async def play(session: Any) -> list[Any]:
        waiting = await Runner.run(bot("c1", "A cup"), "What is this?", session=session)
        seen = [await session.get_items()]
        kept = waiting.to_state().to_string()
        await Runner.run(bot("fine"), "never mind", session=session)
        seen.append(await session.get_items())
        agent = bot("A cup")
        state = await RunState.from_string(agent, kept)
        state.approve(state.get_interruptions()[0])
        assert (await Runner.run(agent, state, session=session)).final_output == "A cup"
        return [*seen, await session.get_items()]

    theirs = SQLiteSession("chat-1")
    ours = await play(LetopisSession("chat-1", history))
    assert ours == await play(theirs)
    assert ours[0][-1]["type"] == "function_call" and len(looked) == 2
    theirs.close()


# LangChain, LlamaIndex and Haystack


def chat_parts(messages: Iterable[Any]) -> list[list[Part]]:
    found: list[list[Part]] = []
    for one in messages:
        calls = [("call", call["id"]) for call in getattr(one, "tool_calls", ())]
        result = [("result", one.tool_call_id)] if one.type == "tool" else []
        found.append(calls or result or [("said", str(one.content))])
    return found


def langchain_call() -> Any:
    from langchain_core.messages import AIMessage

    return AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1", "type": "tool_call"}])


def langchain_chain(history: History) -> Any:
    from langchain_core.runnables.history import RunnableWithMessageHistory

    from letopis.adapters.langchain import LetopisChatMessageHistory
    from tests.support.bots.langchain import FakeModel

    class Strict(FakeModel):
        async def _agenerate(self, messages: Any, *given: Any, **options: Any) -> Any:
            check(chat_parts(messages))
            return self._generate(messages)

    with warnings.catch_warnings(action="ignore"):  # deprecated
        model = Strict(thinks=answered)
        return RunnableWithMessageHistory(model, lambda session_id: LetopisChatMessageHistory(session_id, history))


CHAT = {"configurable": {"session_id": "chat-1"}}


async def test_langchain(history: History, tmp_path: Path) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.messages import HumanMessage, ToolMessage

    from letopis.adapters.langchain import LetopisChatMessageHistory, _to_messages

    call = langchain_call()
    async with History(tmp_path / "bot.outbox.db", relay=False) as killed:
        # Another process: what this one remembers of its running calls is lost.
        await killed.append("chat-1", *_to_messages([HumanMessage("hi"), call]))
    before = await texts(history)
    with pytest.raises(Refused):
        check(chat_parts([HumanMessage("hi"), call, HumanMessage("next")]))

    await langchain_chain(history).ainvoke([HumanMessage("next")], CHAT)
    chat = LetopisChatMessageHistory("chat-1", history)
    assert [one.type for one in await chat.aget_messages()] == ["human", "ai", "tool", "human", "ai"]
    assert (await texts(history))[:2] == before and len(await texts(history)) == 4

    # A tool that this process runs: its result comes with the next input.
    await chat.aadd_messages([HumanMessage("look"), call])
    await langchain_chain(history).ainvoke([ToolMessage("a cup", tool_call_id="c1")], CHAT)
    check(chat_parts(await chat.aget_messages()))
    await history.append("chat-1", Message.tool([ToolResult("c9", "lost")]))
    check(chat_parts(await chat.aget_messages()))


async def test_llama_index(history: History) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
    from llama_index.core.memory import Memory
    from llama_index.core.storage.chat_store.base_db import MessageStatus

    from letopis.adapters.llama_index import LetopisChatStore

    def parts(messages: Iterable[Any]) -> list[list[Part]]:
        return [
            [("call", str(block.tool_call_id)) for block in one.blocks if isinstance(block, ToolCallBlock)]
            or ([("result", one.additional_kwargs["tool_call_id"])] if one.role == "tool" else [("said", "")])
            for one in messages
        ]

    def call(name: str) -> Any:
        block = ToolCallBlock(tool_call_id=name, tool_name="look", tool_kwargs={})
        return ChatMessage(role="assistant", blocks=[block])

    store = LetopisChatStore(history)
    memory = Memory(sql_store=store, session_id="chat-1", token_limit=20_000, tokenizer_fn=str.split)
    lost = ChatMessage("a cup", role="tool", additional_kwargs={"tool_call_id": "c9"})
    stored = [ChatMessage("hi"), call("c1"), ChatMessage("hello?"), lost, call("c2")]
    await memory.aput_messages(stored)
    before = await texts(history)
    with pytest.raises(Refused):
        check(parts(stored))

    await memory.aput(ChatMessage("next"))
    found = await memory.aget()
    check(parts(found))
    assert [one for one in found if one in stored] == [stored[0], stored[1], stored[2], stored[4]]
    assert (await texts(history))[: len(before)] == before
    for limit in range(9):
        window = await store.get_messages("chat-1", limit=limit)
        assert len(window) <= limit
        check(parts(window))
    # The memory archives what it counts in what it was given.
    flushed = await store.archive_oldest_messages("chat-1", 3)
    assert flushed == found[:3]
    assert await store.get_messages("chat-1") == found[3:]
    assert len(await store.get_messages("chat-1", MessageStatus.ARCHIVED)) == 2


def test_haystack(tmp_path: Path) -> None:
    pytest.importorskip("haystack_experimental")
    from haystack.dataclasses import ChatMessage, ToolCall
    from haystack_experimental.components.retrievers import ChatMessageRetriever
    from haystack_experimental.components.writers import ChatMessageWriter

    from letopis.adapters.haystack import LetopisChatMessageStore

    def parts(messages: Iterable[Any]) -> list[list[Part]]:
        return [
            [("call", call.id) for call in one.tool_calls]
            or [("result", result.origin.id) for result in one.tool_call_results]
            or [("said", one.text)]
            for one in messages
        ]

    call = ToolCall("look", {}, id="c1")
    stored = [ChatMessage.from_user("hi"), ChatMessage.from_assistant(tool_calls=[call])]
    with BlockingHistory(tmp_path / "bot.outbox.db", relay=False) as history:
        store = LetopisChatMessageStore(history)
        ChatMessageWriter(store).run(chat_history_id="chat-1", messages=stored)
        question = [ChatMessage.from_user("next")]
        with pytest.raises(Refused):
            check(parts([*stored, *question]))

        asked = ChatMessageRetriever(store).run("chat-1", current_messages=question)["messages"]
        check(parts(asked))
        # A pipeline may write back what it has read: the made-up result is none of it.
        ChatMessageWriter(store).run(chat_history_id="chat-1", messages=asked)
        assert [one.role for one in history.messages("chat-1")] == ["user", "assistant", "user"]
        history.append("chat-1", Message.tool([ToolResult("c9", "lost")]))
        check(parts(store.retrieve_messages("chat-1", last_k=1)))


# Agent Framework


def framework_parts(messages: Iterable[Any]) -> list[list[Part]]:
    kinds = {"function_call": "call", "function_result": "result"}
    return [[(kinds.get(one.type, "said"), str(one.call_id)) for one in message.contents] for message in messages]


def framework_agent(history: History, tools: Any, *, each: bool, calls: int = 1) -> Any:
    from agent_framework import Agent, ChatMiddlewareLayer, ChatResponse, Content, FunctionInvocationLayer
    from agent_framework import Message as Said

    from letopis.adapters.agent_framework import LetopisHistoryProvider
    from tests.support.bots.agent_framework import FakeModel

    class Strict(FunctionInvocationLayer, ChatMiddlewareLayer, FakeModel):  # type: ignore[misc]
        def _inner_get_response(self, *, messages: Any, **given: Any) -> Any:
            async def answer() -> Any:
                self.asked.append(list(messages))
                check(framework_parts(messages))
                call = Content.from_function_call("c1", "look", arguments="{}")
                return ChatResponse(messages=[Said("assistant", [call if len(self.asked) <= calls else "A cup"])])

            return answer()

    given = {"context_providers": [LetopisHistoryProvider(history)], "tools": tools}
    return Agent(Strict(thinks=answered), require_per_service_call_history_persistence=each, **given)


@pytest.mark.parametrize("each", [False, True])
async def test_agent_framework(history: History, each: bool) -> None:
    pytest.importorskip("agent_framework")
    from agent_framework import AgentSession, Content
    from agent_framework import Message as Said

    from letopis.adapters.agent_framework import LetopisHistoryProvider

    call = Said("assistant", [Content.from_function_call("c1", "look", arguments="{}")])
    lost = Said("tool", [Content.from_function_result("c9", result="lost")])
    stored = [Said("user", ["hi"]), lost, call]
    await LetopisHistoryProvider(history).save_messages("chat-1", stored)
    before = await texts(history)
    with pytest.raises(Refused):
        check(framework_parts(stored))

    def look() -> str:
        return "a cup"

    agent, session = framework_agent(history, [look], each=each), AgentSession(session_id="chat-1")
    for question in ("next", "and now?"):
        assert (await agent.run(question, session=session)).text == "A cup"
    assert (await texts(history))[: len(before)] == before
    roles = [one.role for one in await history.messages("chat-1")]
    assert roles[len(before) :] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    for last in range(1, 10):
        window = await LetopisHistoryProvider(history, last=last).get_messages("chat-1")
        assert len(window) <= last
        check(framework_parts(window))


@pytest.mark.parametrize("each", [False, True])
async def test_agent_framework_approval(history: History, each: bool) -> None:
    pytest.importorskip("agent_framework")
    from agent_framework import AgentSession, tool
    from agent_framework import Message as Said

    looked = []

    @tool(approval_mode="always_require")
    def look() -> str:
        looked.append(1)
        return "a cup"

    session = AgentSession(session_id="chat-1")
    waiting = await framework_agent(history, [look], each=each).run("What is this?", session=session)
    [request] = waiting.user_input_requests
    stored = await texts(history)
    session = AgentSession.from_dict(session.to_dict())  # another process
    agent = framework_agent(history, [look], each=each, calls=0)
    approval = Said("user", [request.to_function_approval_response(True)])
    done = await agent.run(approval, session=session)
    assert done.text == "A cup" and looked == [1]
    assert (await texts(history))[: len(stored)] == stored
    assert [one.role for one in await history.messages("chat-1")].count("tool") == 1
    assert (await agent.run("next", session=session)).text == "A cup"


async def test_agent_framework_keeps_a_turn_that_begins_like_the_last_one(history: History) -> None:
    """The same question, and an answer that begins as before and goes on."""
    pytest.importorskip("agent_framework")
    from agent_framework import Agent, AgentSession, ChatResponse
    from agent_framework import Message as Said

    from letopis.adapters.agent_framework import LetopisHistoryProvider
    from tests.support.bots.agent_framework import FakeModel

    class Talking(FakeModel):
        def _inner_get_response(self, **given: Any) -> Any:
            async def answer() -> Any:
                self.asked.append([])
                return ChatResponse(messages=[Said("assistant", [f"part {one}"]) for one in range(len(self.asked))])

            return answer()

    agent: Any = Agent(Talking(answered), context_providers=[LetopisHistoryProvider(history)])
    for _ in range(3):
        await agent.run("hi", session=AgentSession(session_id="chat-1"))

    said = [one.text for one in await history.messages("chat-1")]
    assert said == ["hi", "part 0", "hi", "part 0", "part 1", "hi", "part 0", "part 1", "part 2"]


# Those that repair what they are given themselves: nothing that they store is changed here.


async def test_pydantic_ai(history: History) -> None:
    pytest.importorskip("pydantic_ai.conversation_store")
    from pydantic_ai import Agent
    from pydantic_ai.conversation import Conversation
    from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart
    from pydantic_ai.models.function import FunctionModel

    from letopis.adapters.pydantic_ai import LetopisConversationStore

    def parts(messages: Iterable[Any]) -> list[list[Part]]:
        kinds = {"tool-call": "call", "tool-return": "result"}
        every = [one.parts for one in messages]
        return [
            [(kinds.get(one.part_kind, "said"), getattr(one, "tool_call_id", "")) for one in parts] for parts in every
        ]

    def answer(messages: Any, info: Any) -> ModelResponse:
        check(parts(messages))
        return ModelResponse(parts=[TextPart("fine")])

    store = LetopisConversationStore(history)
    call = ModelResponse(parts=[ToolCallPart("look", {}, tool_call_id="c1")])
    cut = [ModelRequest(parts=[UserPromptPart("hi")]), call]
    await store.save(Conversation(conversation_id="chat-1", messages=cut))
    before = await texts(history)
    with pytest.raises(Refused):
        check(parts(cut))
    agent = Agent(FunctionModel(answer))

    for question in ("next", "and next"):
        conversation = present(await store.load("chat-1"))
        await store.save(await agent.run(question, conversation=conversation))

    assert (await texts(history))[:2] == before
    check(parts(present(await store.load("chat-1")).messages))
    for limit in range(1, 7):  # Pydantic AI repairs what a limit cuts
        conversation = await store.load("chat-1", limit=limit)
        await agent.run("again", conversation=conversation)


def adk_part(part: Any) -> Part:
    if part.function_call:
        return "call", part.function_call.name
    return ("result", part.function_response.name) if part.function_response else ("said", "")


def adk_agent(calls: bool, tools: Any) -> Any:
    from google.adk.agents import LlmAgent
    from google.adk.models.base_llm import BaseLlm
    from google.adk.models.llm_response import LlmResponse
    from google.genai import types

    class Strict(BaseLlm):
        async def generate_content_async(self, llm_request: Any, stream: bool = False) -> Any:
            said = [[adk_part(part) for part in content.parts] for content in llm_request.contents]
            check(said)
            part = types.Part(text="A cup")
            if calls and not any(kind == "result" for parts in said for kind, _ in parts):
                part = types.Part(function_call=types.FunctionCall(name="look", args={}))
            yield LlmResponse(content=types.Content(role="model", parts=[part]))

    return LlmAgent(name="bot", model=Strict(model="fake"), tools=tools)


def adk_runner(history: History, calls: bool, tools: Any) -> Any:
    from google.adk.runners import Runner

    from letopis.adapters.google_adk import LetopisSessionService

    service = LetopisSessionService(history, conversation=lambda app, user, session: session)
    agent = adk_agent(calls, tools)
    return Runner(app_name="bot", agent=agent, session_service=service, auto_create_session=True)


async def adk_ask(runner: Any, *parts: Any) -> list[Any]:
    from google.genai import types

    content = types.Content(role="user", parts=list(parts))
    return [one async for one in runner.run_async(user_id="42", session_id="chat-1", new_message=content)]


def strands_agent(history: History, model: Any, tools: Any) -> Any:
    from strands import Agent
    from strands.session import RepositorySessionManager

    from letopis.adapters.strands import LetopisSessionRepository

    manager = RepositorySessionManager("chat-1", session_repository=LetopisSessionRepository(history))
    return Agent(model=model, tools=tools, session_manager=manager, callback_handler=None, agent_id="bot")


def strands_part(block: Any) -> Part:
    kinds = {"toolUse": "call", "toolResult": "result"}
    return next(((kinds[name], block[name]["toolUseId"]) for name in kinds if name in block), ("said", ""))


def strands_model(calls: bool) -> Any:
    from tests.support.bots.strands import FakeModel

    class Strict(FakeModel):
        async def stream(self, messages: Any, *given: Any, **options: Any) -> Any:
            said = [[strands_part(block) for block in message["content"]] for message in messages]
            check(said)
            if not calls or any(kind == "result" for parts in said for kind, _ in parts):
                async for event in self._words("A cup"):
                    yield event
                return
            yield {"messageStart": {"role": "assistant"}}
            yield {"contentBlockStart": {"start": {"toolUse": {"toolUseId": "c1", "name": "look"}}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": "{}"}}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use"}}

    return Strict(answered)


# Killed for real, inside the tool


def look() -> str:
    """Die as the machine wants it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def opened(path: str) -> History:
    return History(path, relay=False, own_thread=True)


async def strands_dies(path: str) -> None:
    from strands import tool

    await asyncio.to_thread(strands_agent(opened(path), strands_model(True), [tool(look)]), "hi")


async def strands_goes_on(history: History) -> None:
    said = await asyncio.to_thread(strands_agent(history, strands_model(False), []), "next")
    assert str(said).strip() == "A cup"


async def adk_dies(path: str) -> None:
    from google.genai import types

    await adk_ask(adk_runner(opened(path), True, [look]), types.Part(text="hi"))


async def adk_goes_on(history: History) -> None:
    from google.genai import types

    events = await adk_ask(adk_runner(history, False, []), types.Part(text="next"))
    assert events[-1].content.parts[0].text == "A cup"


async def framework_dies(path: str) -> None:
    from agent_framework import AgentSession

    await framework_agent(opened(path), [look], each=True).run("hi", session=AgentSession(session_id="chat-1"))


async def framework_goes_on(history: History) -> None:
    from agent_framework import AgentSession

    agent = framework_agent(history, [], each=True, calls=0)
    assert (await agent.run("next", session=AgentSession(session_id="chat-1"))).text == "A cup"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # ADK warns of features that it uses itself
@pytest.mark.parametrize(
    ("needs", "dies", "goes_on"),
    [
        ("strands", strands_dies, strands_goes_on),
        ("google.adk", adk_dies, adk_goes_on),
        ("agent_framework", framework_dies, framework_goes_on),
    ],
)
async def test_killed_inside_a_tool(history: History, tmp_path: Path, needs: str, dies: Any, goes_on: Any) -> None:
    pytest.importorskip(needs)
    done = await asyncio.to_thread(
        subprocess.run, command(dies, tmp_path / "bot.outbox.db"), timeout=120, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == -signal.SIGKILL
    before = await texts(history)
    parts = [part for _, content in before for part in (content if isinstance(content, tuple) else ())]
    assert any(isinstance(part, ToolCall) for part in parts)
    assert not any(isinstance(part, ToolResult) for part in parts)
    await goes_on(history)
    assert (await texts(history))[: len(before)] == before
