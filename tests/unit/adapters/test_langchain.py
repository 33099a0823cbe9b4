"""A chat message history of LangChain in a history."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "langchain_core", reason="needs langchain-core: pip install 'letopis[langchain]', or group adapters"
)

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from letopis import BlockingHistory, History, InvalidInput, Message, ToolCall, ToolResult
from letopis.adapters.formats import openai_chat
from letopis.adapters.langchain import LetopisChatMessageHistory

MESSAGES: list[BaseMessage] = [
    SystemMessage("Be brief"),
    HumanMessage(
        [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    ),
    HumanMessage("Same again", id="h1", name="Ada"),
    HumanMessage("Same again", id="h1", name="Ada"),
    AIMessage(
        "Let me look",
        tool_calls=[{"name": "look", "args": {"at": "tea", "n": 1}, "id": "c1", "type": "tool_call"}],
        invalid_tool_calls=[{"name": "look", "args": "{", "id": "c2", "error": "no JSON", "type": "invalid_tool_call"}],
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        response_metadata={"model": "fake"},
    ),
    ToolMessage("a cup", tool_call_id="c1", artifact={"raw": [1, 2]}, status="error"),
    AIMessage([{"type": "thinking", "thinking": "Hm", "signature": "c2lnbmF0dXJl"}, {"type": "text", "text": "A cup"}]),
    ChatMessage("Whoever", role="critic"),
    FunctionMessage("12", name="count"),
    RemoveMessage(id="h1"),
]


async def test_messages_come_back_as_they_were(history: History) -> None:
    chat = LetopisChatMessageHistory("chat-1", history, owner="42")
    await chat.aadd_messages(MESSAGES)
    await chat.aadd_messages([])
    assert await chat.aget_messages() == MESSAGES
    stored = await history.messages("chat-1")
    assert [one.role for one in stored][3:6] == ["user", "assistant", "tool"]
    assert [one.text for one in stored][-4:-2] == ["A cup", "Whoever"]
    content: Any = stored[4].content
    assert ToolCall("c1", "look", '{"at": "tea", "n": 1}') in content
    await chat.aclear()
    assert await chat.aget_messages() == []
    assert len(await history.messages("chat-1", every=True)) == len(MESSAGES)


async def test_messages_from_elsewhere_and_edited_ones(history: History) -> None:
    chat = LetopisChatMessageHistory("chat-1", history)
    await chat.aadd_messages([HumanMessage("Whaat?")])
    (wrong,) = await history.messages("chat-1")
    await history.chat("chat-1").edit(wrong.id, "What?")
    await history.append("chat-1", Message.assistant([ToolCall("c1", "look", '{"at": "tea"}')]))
    await history.append("chat-1", Message.tool([ToolResult("c1", "a cup")]))
    asked, call, result = await chat.aget_messages()
    assert asked == HumanMessage("What?")
    assert isinstance(call, AIMessage) and call.tool_calls[0]["args"] == {"at": "tea"}
    assert isinstance(result, ToolMessage) and (result.tool_call_id, result.content) == ("c1", "a cup")
    assert openai_chat.from_messages(await history.messages("chat-1"))[0] == {"role": "user", "content": "What?"}


def test_the_synchronous_half(tmp_path: Path) -> None:
    with BlockingHistory(tmp_path / "bot.outbox.db", relay=False) as history:
        chat = LetopisChatMessageHistory("chat-1", history)
        chat.add_messages(MESSAGES)
        chat.add_user_message("Hello")
        assert chat.messages == [*MESSAGES, HumanMessage("Hello")]
        assert asyncio.run(chat.aget_messages()) == chat.messages
        chat.clear()
        assert chat.messages == []


async def test_an_asynchronous_history_says_so(history: History) -> None:
    chat = LetopisChatMessageHistory("chat-1", history)
    for call in (lambda: chat.messages, lambda: chat.add_messages(MESSAGES), chat.clear):
        with pytest.raises(InvalidInput, match="BlockingHistory"):
            call()
