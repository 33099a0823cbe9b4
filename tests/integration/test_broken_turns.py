"""A turn that a kill has cut, in each framework: the next one works, with a model that refuses what providers refuse.

The model is ours: it answers, and raises what an API answers with 400: a call without its result, or a result without
its call.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import BlockingHistory, History
from letopis.store import Message, ToolResult

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
    """A history that delivers nothing."""
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
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


async def test_openai_agents_with_every_limit(history: History) -> None:
    pytest.importorskip("agents")
    from agents import Agent, Runner

    from letopis.adapters.openai_agents import LetopisSession

    session = LetopisSession("chat-1", history)
    turn = [item("user", "hi"), item("call"), item("call", "c2"), item("result"), item("result", "c2")]
    items = [*turn, item("assistant", "A cup"), *turn, item("assistant", "Tea"), item("user", "and?"), item("call")]
    await session.add_items(items)
    before = await texts(history)
    with pytest.raises(Refused):  # the control: as it is stored, it is refused
        check(responses_parts([*items, item("user", "next")]), apart=True)
    for limit in range(1, len(items) + 3):
        found = await session.get_items(limit)
        assert len(found) <= limit
        check(responses_parts(found), apart=True)
        assert not found or found[-1]["type"] == "function_call_output"
    assert await texts(history) == before
    # Without the SDK's own pruning, which a list of the caller does not get.
    await Runner.run(Agent(name="bot", model=agents_model("fine")), [*found, item("user", "next")])
    await Runner.run(Agent(name="bot", model=agents_model("fine")), "next", session=session)
    assert (await texts(history))[: len(before)] == before


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


async def test_langchain(history: History, tmp_path: Path) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    from letopis.adapters.langchain import LetopisChatMessageHistory, _to_messages

    call = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1", "type": "tool_call"}])
    async with History(tmp_path / "bot.outbox.db", relay=False) as killed:
        # Another process: what this one remembers of its running calls is lost.
        await killed.append("chat-1", *_to_messages([HumanMessage("hi"), call]))
    before = await texts(history)
    with pytest.raises(Refused):
        check(chat_parts([HumanMessage("hi"), call, HumanMessage("next")]))

    chat = LetopisChatMessageHistory("chat-1", history)
    await chat.aadd_messages([HumanMessage("next"), AIMessage("fine")])
    assert [one.type for one in await chat.aget_messages()] == ["human", "ai", "tool", "human", "ai"]
    check(chat_parts(await chat.aget_messages()))
    assert (await texts(history))[:2] == before and len(await texts(history)) == 4

    # A tool that this process runs: its result comes with the next input.
    await chat.aadd_messages([HumanMessage("look"), call])
    check(chat_parts([*await chat.aget_messages(), ToolMessage("a cup", tool_call_id="c1")]))
    await chat.aadd_messages([ToolMessage("a cup", tool_call_id="c1")])
    await history.append("chat-1", Message.tool([ToolResult("c9", "lost")]))
    check(chat_parts(await chat.aget_messages()))


async def test_llama_index(history: History) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
    from llama_index.core.memory import Memory

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


def test_haystack(tmp_path: Path) -> None:
    pytest.importorskip("haystack_experimental")
    from haystack.dataclasses import ChatMessage, ToolCall

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
        store.write_messages("chat-1", stored)
        question = [ChatMessage.from_user("next")]
        with pytest.raises(Refused):
            check(parts([*stored, *question]))

        asked = [*store.retrieve_messages("chat-1"), *question]
        check(parts(asked))
        # A pipeline may write back what it has read: the made-up result is none of it.
        store.write_messages("chat-1", asked)
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
