"""What is returned of a conversation that a killed process has left: every call with its result, and nothing else."""

import random

import pytest

from letopis.store import Message, Text, ToolCall, ToolResult
from letopis.store.model.parts import Reasoning, UnknownPart
from letopis.store.rules.tool_calls import repair_tool_calls

USER = Message.user("What is tea?", id="u")
NEXT = Message.user("And coffee?", id="n")


def call(*ids: str, name: str = "") -> Message:
    return Message.assistant([ToolCall(one, "look") for one in ids], id=name or f"call {'+'.join(ids)}")


def result(*ids: str, name: str = "") -> Message:
    return Message.tool([ToolResult(one, f"{one}: a leaf") for one in ids], id=name or f"result {'+'.join(ids)}")


def short(messages: list[Message]) -> list[str]:
    """Return each message as the ids of its calls and results, or what it says; an interrupted one with ``!``."""
    found = []
    for message in messages:
        parts = message.content if isinstance(message.content, tuple) else ()
        ids = [
            f"{'>' if isinstance(part, ToolCall) else '!' if part.status == 'interrupted' else '<'}{part.call_id}"
            for part in parts
            if isinstance(part, ToolCall | ToolResult)
        ]
        found.append(" ".join(ids) or message.text)
    return found


ANSWER = Message.assistant("A leaf", id="a")
WITH_RESULT = Message.user([ToolResult("9"), Text("And coffee?")], id="n")
SOUND = [USER, call("1", "2"), result("1"), result("2"), ANSWER, NEXT, call("1", name="again"), result("1", name="r")]


@pytest.mark.parametrize(
    "messages",
    [
        *([], SOUND, [result("1")], [call("1")]),
        [USER, call("1", "2"), result("2", "1"), ANSWER],
        [USER, call("1", "1"), result("1"), result("1", name="second"), ANSWER],
        [USER, call("1"), Message.assistant([Reasoning("Hm")], id="h"), result("1")],
        [USER, Message.tool([UnknownPart({"type": "computer_call_output"})], id="o"), ANSWER],
    ],
)
def test_what_is_sound_is_not_changed(messages: list[Message]) -> None:
    """Nor a conversation without a user message, nor a part of a kind that Letopis does not know."""
    assert repair_tool_calls(messages) == messages


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, call("1")], ["What is tea?", ">1", "!1"]),
        ([USER, call("1"), NEXT], ["What is tea?", ">1", "!1", "And coffee?"]),
        ([USER, call("1", "2"), result("2"), NEXT], ["What is tea?", ">1 >2", "!1", "<2", "And coffee?"]),
        ([USER, result("1"), NEXT], ["What is tea?", "And coffee?"]),
        ([USER, call("1"), result("1"), result("1", name="twice")], ["What is tea?", ">1", "<1"]),
        ([USER, result("1"), call("1")], ["What is tea?", ">1", "<1"]),
        ([USER, call("1"), call("2"), result("1"), result("2")], ["What is tea?", ">1", "<1", ">2", "<2"]),
        ([USER, call("1"), NEXT, ANSWER, result("1")], ["What is tea?", ">1", "<1", "And coffee?", "A leaf"]),
        ([USER, call("1", "2"), result("1"), NEXT, result("2")], ["What is tea?", ">1 >2", "<2", "<1", "And coffee?"]),
        ([USER, call("1"), WITH_RESULT], ["What is tea?", ">1", "!1", "And coffee?"]),
    ],
)
def test_what_is_broken_is_repaired(messages: list[Message], expected: list[str]) -> None:
    made = repair_tool_calls(messages)
    assert short(made) == expected
    assert repair_tool_calls(made) == made


def test_a_result_may_follow_later_where_a_format_allows_it() -> None:
    messages = [USER, call("1"), call("2"), result("2"), NEXT, ANSWER, result("1")]
    assert short(repair_tool_calls(messages)) == ["What is tea?", ">1", "<1", ">2", "<2", "And coffee?", "A leaf"]
    assert repair_tool_calls(messages, apart=True) == messages


def test_a_window_takes_no_result_from_before_it() -> None:
    """Some models use an id again: the result of a call that was cut off is not that of a later one."""
    window = [result("1"), ANSWER, NEXT, call("1", name="again")]
    assert short(repair_tool_calls(window, beginning=False)) == ["A leaf", "And coffee?", ">1", "!1"]


def test_a_call_that_waits_stays() -> None:
    messages = [USER, call("1", "2"), result("2")]
    assert repair_tool_calls(messages, waits=lambda message, part: part.call_id == "1") == messages


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_lost_or_in_the_wrong_order(seed: int) -> None:
    """Each call is followed by exactly one result before anything else is said, and the rest is as it was."""
    chance = random.Random(seed)
    talk: list[Message] = []
    for turn in range(4):
        ids = [chance.choice("abc") + str(turn % 2) for _ in range(chance.randrange(3))]
        talk.append(Message.user(f"question {turn}", id=f"u{turn}"))
        if ids := list(dict.fromkeys(ids)):
            talk.append(call(*ids, name=f"c{turn}"))
            talk += [result(one, name=f"r{turn}{one}") for one in ids]
        talk.append(Message.assistant(f"answer {turn}", id=f"a{turn}"))
    broken = [one for one in talk if chance.random() > 0.3]
    for _ in range(chance.randrange(3)):
        broken.insert(chance.randrange(len(broken) + 1), broken.pop(chance.randrange(len(broken)))) if broken else None
    beginning = chance.random() < 0.5
    if beginning and not any(one.role == "user" for one in broken):
        return

    made = repair_tool_calls(broken, beginning=beginning)

    waiting: list[str] = []
    for message in made:
        parts = message.content if isinstance(message.content, tuple) else ()
        if message.role != "tool":
            assert waiting == []
            waiting = [part.call_id for part in parts if isinstance(part, ToolCall)]
        for part in parts:
            if isinstance(part, ToolResult):
                waiting.remove(part.call_id)
    assert waiting == []
    assert [one for one in made if one.role != "tool"] == [one for one in broken if one.role != "tool"]
