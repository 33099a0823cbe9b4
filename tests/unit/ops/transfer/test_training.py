"""What a set for training holds, and what must not be in it."""

import json
from typing import Any

import pytest

from letopis import History, Message, Reasoning, Text, ToolCall, ToolResult
from letopis.ops.transfer.training import TrainingSet
from letopis.store import ConversationStore, File
from tests.support.relays import deliver_all

CALLED = [
    Message.assistant([Reasoning("hm"), Text("I look."), ToolCall("c", "cold", {"in": "Kazan"})], id="a1"),
    Message.tool(ToolResult("c", {"degrees": -5}), id="a1-result"),
]


async def lines(source: History | ConversationStore, form: str, **chosen: Any) -> list[dict[str, Any]]:
    made = TrainingSet(source, form)
    written = [json.loads(line) async for line in made.of(**{"owner": None, "conversation": None} | chosen)]
    assert made.lines == len(written)
    return written


@pytest.fixture
async def talk(history: History) -> History:
    """A question with two answers that were taken back, of which one was cut off, and one that is shown."""
    chat = history.chat("c1")
    question = Message.user([Text("How cold is it?"), File("https://e.org/a.png", "image/png", "map.png")], id="q1")
    await history.append("c1", Message.system("Be brief."), question, Message.assistant("Warm.", id="a0"), owner="42")
    await chat.react("a0", "rating", value=1)
    await chat.regenerate()
    await history.append("c1", Message.assistant("Ver", status="interrupted"))
    await chat.regenerate()
    await history.append("c1", *CALLED, Message.assistant("Five below.", id="a2"))
    await chat.react("a2", "rating", value=4)
    await chat.react("a2", "rating", value=5, actor="ann")
    await chat.react("a2", "length", value=100)
    await deliver_all(history)
    return history


PROMPT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How cold is it?\n[map.png]"},
]
FUNCTION = {"name": "cold", "arguments": '{"in":"Kazan"}'}
ANSWER = [
    {"role": "assistant", "content": "I look.", "tool_calls": [{"id": "c", "type": "function", "function": FUNCTION}]},
    {"role": "tool", "tool_call_id": "c", "content": '{"degrees":-5}'},
    {"role": "assistant", "content": "Five below."},
]


async def test_the_answer_shown_is_chosen_and_the_regenerated_one_rejected(talk: History) -> None:
    pair = {
        "conversation_id": "c1",
        "question_id": "q1",
        "prompt": PROMPT,
        "chosen": ANSWER,
        "rejected": [{"role": "assistant", "content": "Warm."}],
        "score_chosen": 4.5,
        "score_rejected": 1,
    }
    assert await lines(talk, "preference") == await lines(talk.store, "preference") == [pair]
    await talk.append("c1", Message.user("Once more?", id="q2"), Message.assistant("No.", id="b1"))
    await talk.chat("c1").regenerate()
    await talk.append("c1", Message.assistant("Yes.", id="b2"))
    [_, second] = await lines(talk, "preference")
    assert second["prompt"] == [*PROMPT, *ANSWER, {"role": "user", "content": "Once more?"}]
    assert (second["chosen"][0]["content"], second["rejected"][0]["content"]) == ("Yes.", "No.")
    assert "score_chosen" not in second
    await talk.chat("c1").redact("a2")
    [pair] = await lines(talk, "preference")
    assert pair["prompt"] == [PROMPT[0], {"role": "user", "content": "Once more?"}]
    await talk.chat("c1").redact("q2")
    assert await lines(talk, "preference") == []


async def test_a_conversation_is_a_line_without_turns_that_are_not_whole(talk: History) -> None:
    shown = {"conversation_id": "c1", "messages": [*PROMPT, *ANSWER]}
    assert await lines(talk, "messages") == await lines(talk.store, "messages") == [shown]
    late = [
        Message.user("And"),
        Message.user("now?"),
        Message.assistant([ToolCall("d", "cold")]),
        Message.assistant("Wait."),
    ]
    await talk.append("c1", *late, Message.user("So?"), Message.assistant("Si", status="interrupted"))
    await talk.append("c2", Message.user("Hi"), owner="43")
    assert await lines(talk, "messages") == [shown], "a call without a result, an answer cut off, no answer"
    assert (await lines(talk, "messages", owner="43"), await lines(talk, "messages", conversation="c2")) == ([], [])
    assert await lines(talk, "messages", conversation="c1", owner=None) == [shown]


async def test_the_last_answer_is_the_output(talk: History) -> None:
    [line] = await lines(talk, "otel")
    asked = line["gen_ai.input.messages"]
    assert line["gen_ai.conversation.id"] == "c1"
    assert line["gen_ai.output.messages"] == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Five below."}], "finish_reason": "stop"}
    ]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool"]
    file = {"type": "uri", "mime_type": "image/png", "modality": "image", "uri": "https://e.org/a.png"}
    assert asked[1]["parts"] == [{"type": "text", "content": "How cold is it?"}, file]
    assert asked[2]["parts"][::2] == [
        {"type": "reasoning", "content": "hm"},
        {"type": "tool_call", "id": "c", "name": "cold", "arguments": {"in": "Kazan"}},
    ]
    assert asked[3]["parts"] == [{"type": "tool_call_response", "id": "c", "response": {"degrees": -5}}]


@pytest.mark.parametrize(("kind", "subject"), [("conversation", "c1"), ("owner", "42")])
async def test_what_is_on_hold_is_in_no_set(talk: History, kind: Any, subject: str) -> None:
    await talk.append("c2", Message.user("Hi"), Message.assistant("Hello"), owner="43")
    await talk.store.erasures.hold(kind, subject, reason="a lawsuit")
    assert [line["conversation_id"] for line in await lines(talk, "messages")] == ["c2"]
    assert await lines(talk, "messages", conversation="c1") == []
