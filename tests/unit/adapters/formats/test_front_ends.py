"""A front end gets its chat back, in items that its own code takes."""

import json
import os
import subprocess
from pathlib import Path

import orjson
import pytest

from letopis.adapters.formats import ag_ui, openai_chat, thread_page, ui_message
from letopis.outbox import History
from letopis.store import Data, File, Message, Reasoning, Text, ToolCall, ToolResult, UnknownPart, window
from letopis.store.model.parts import Part
from tests.support.paths import ROOT
from tests.support.required import missing, program
from tests.unit.adapters.formats.items import PICTURE, Chance, Item
from tests.unit.adapters.formats.test_round_trips import FORMATS, stored

VALIDATE = """
import { safeValidateUIMessages } from "ai";
let text = "";
for await (const chunk of process.stdin) text += chunk;
const wrong = [];
for (const messages of JSON.parse(text)) {
  const result = await safeValidateUIMessages({ messages });
  wrong.push(result.success ? null : String(result.error.message).slice(0, 500));
}
console.log(JSON.stringify(wrong));
"""


def validated(chats: list[list[Item]]) -> list[str | None]:
    """Return what `ai` finds wrong with each chat."""
    folder = Path(os.environ.get("LETOPIS_TEST_NODE", ROOT / "build"))
    node = program("node", "nodejs")
    if not (folder / "node_modules" / "ai").is_dir():
        missing("ai", f"npm install --prefix {folder} ai")
    done = subprocess.run(
        [node, "--input-type=module", "--eval", VALIDATE],
        input=orjson.dumps(chats),
        capture_output=True,
        cwd=folder,
        check=True,
        timeout=120,
    )
    wrong: list[str | None] = json.loads(done.stdout)
    return wrong


def own_chat(chance: Chance) -> list[Message]:
    """A conversation as a bot records it, of every kind of part."""

    def part() -> Part:
        uris = (PICTURE, chance.uri("audio/mpeg"), "openai:file-1", "s3://bucket/key")
        kinds: list[Part] = [
            Text(chance.words()),
            Reasoning(chance.words()),
            File(chance.choice(uris), chance.choice([None, "image/*"]), chance.choice([None, "a.png"])),
            Data(chance.json()),
            UnknownPart({"type": "hologram", "depth": 3}),
        ]
        return chance.choice(kinds)

    messages = []
    for _ in range(chance.randrange(1, 6)):
        role = chance.choice(["system", "developer", "user", "assistant", "tool"])
        content: list[Part] = [part() for _ in range(chance.randrange(3))]
        calls = [ToolCall(chance.ident("call"), "look", chance.choice([None, chance.arguments(), chance.object()]))]
        results = [ToolResult(call.call_id, chance.json(), chance.choice(["ok", "error"])) for call in calls]
        interrupted = chance.maybe(0.1)
        if role == "assistant" and chance.maybe():
            messages.append(Message.assistant([*content, *calls]))
            content = list(results)
        messages.append(Message(role=role, content=content, status="interrupted" if interrupted else "complete"))
    return messages


def thousand_chats() -> list[list[Message]]:
    chance, makers = Chance(7), [(module.to_messages, talk) for module, talk in FORMATS.values()]
    chats = [chance.choice(makers) for _ in range(500)]
    return [make(talk(chance)) for make, talk in chats] + [own_chat(chance) for _ in range(500)]


def test_ag_ui_takes_a_thousand_chats() -> None:
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic, of the group adapters")
    core = pytest.importorskip("ag_ui.core", reason="needs ag-ui-protocol, of the group adapters")
    for messages in thousand_chats():
        items = ag_ui.from_messages(messages)
        snapshot = core.MessagesSnapshotEvent.model_validate({"type": "MESSAGES_SNAPSHOT", "messages": items})
        assert len({item["id"] for item in items}) == len(items) == len(snapshot.messages)
        again = pydantic.TypeAdapter(list[core.Message]).dump_python(snapshot.messages, mode="json", by_alias=True)
        assert ag_ui.from_messages([stored(one) for one in ag_ui.to_messages(again)]) == again


def test_use_chat_takes_a_thousand_chats() -> None:
    chats = [items for messages in thousand_chats() if (items := ui_message.from_messages(messages))]
    assert len(chats) > 950
    wrong = validated([*chats, [{"id": "m", "role": "user", "parts": []}]])
    assert wrong[-1] is not None and "at least one part" in wrong[-1]
    assert [found for found in wrong[:-1] if found is not None] == []
    for items in chats:
        assert len({item["id"] for item in items}) == len(items)
        assert ui_message.from_messages([stored(one) for one in ui_message.to_messages(items)]) == items


TURN = [
    Message.user([Text("What is this?"), File(PICTURE, "image/png", "a.png")], id="q"),
    Message.assistant([Reasoning("hm"), Text("I look."), ToolCall("c1", "look", '{"at": 1}'), ToolCall("c2", "look")]),
    Message.tool(ToolResult("c1", {"seen": "hedgehog"}), ToolResult("c2", "dark", "error")),
    Message.assistant("A hedge", status="interrupted"),
]


def test_results_are_in_their_calls() -> None:
    asked, called, answered = ui_message.from_messages(TURN)
    file = {"type": "file", "mediaType": "image/png", "filename": "a.png", "url": PICTURE}
    assert asked == {"id": "q", "role": "user", "parts": [{"type": "text", "text": "What is this?"}, file]}
    look = {"type": "tool-look", "toolCallId": "c1", "state": "output-available", "input": {"at": 1}}
    assert called["parts"] == [
        {"type": "reasoning", "text": "hm"},
        {"type": "text", "text": "I look."},
        look | {"output": {"seen": "hedgehog"}},
        look | {"toolCallId": "c2", "state": "output-error", "input": {}, "errorText": "dark"},
    ]
    assert answered["metadata"] == {"letopis": {"interrupted": True}}


def test_ag_ui_has_reasoning_and_results_as_items() -> None:
    asked, thought, called, seen, failed, answered = ag_ui.from_messages(TURN)
    name = TURN[1].id
    source = {"type": "url", "value": PICTURE, "mimeType": "image/png"}
    assert asked["content"][1] == {"type": "image", "source": source, "metadata": {"filename": "a.png"}}
    assert thought == {"id": f"{name}#0", "role": "reasoning", "content": "hm"}
    assert (called["id"], called["content"]) == (name, "I look.")
    assert called["toolCalls"][0]["function"] == {"name": "look", "arguments": '{"at": 1}'}
    assert (seen["toolCallId"], seen["content"]) == ("c1", '{"seen":"hedgehog"}')
    assert (failed["toolCallId"], failed["content"], failed["error"]) == ("c2", "dark", "dark")
    assert answered["metadata"] == {"letopis": {"interrupted": True}}
    again = [one for item in ag_ui.from_messages(TURN) for one in ag_ui.to_messages([item])]
    assert again[0].content == TURN[0].content
    assert again[4].content == (ToolResult("c2", "dark", "error"),)
    assert (again[5].text, again[5].status) == ("A hedge", "interrupted")


def test_an_answer_of_several_steps_is_read_by_a_model_in_their_order() -> None:
    done = {"state": "output-available", "input": {}, "output": "-5"}
    steps = [
        {"type": "text", "text": "I look."},
        {"type": "tool-cold", "toolCallId": "c", **done},
        {"type": "step-start"},
        {"type": "text", "text": "Five below."},
    ]
    item = {"id": "a", "role": "assistant", "parts": steps, "metadata": {"n": 1}}
    messages = ui_message.to_messages([{"id": "q", "role": "user", "parts": [{"type": "text", "text": "?"}]}, item])
    assert [message.id for message in messages] == ["q", "a", "a/1"]
    told = openai_chat.from_messages(window(messages, last=10).messages)
    assert [(one["role"], one["content"]) for one in told[1:]] == [
        ("assistant", "I look."),
        ("tool", "-5"),
        ("assistant", "Five below."),
    ]
    assert ui_message.from_messages(messages)[1] == item
    [rest] = ui_message.from_messages(messages[2:])
    assert (rest["id"], rest["parts"]) == ("a/1", steps[2:])


def test_a_call_that_the_front_end_waits_for_gets_the_result_of_the_server() -> None:
    open_call = {"type": "dynamic-tool", "toolName": "look", "toolCallId": "c", "state": "input-available", "input": {}}
    item = {"id": "a", "role": "assistant", "parts": [open_call]}
    messages = [*ui_message.to_messages([item]), Message.tool(ToolResult("c", 5))]
    assert messages[0].content == (ToolCall("c", "look", {}),)
    assert ui_message.from_messages(messages) == [
        {**item, "parts": [{**open_call, "state": "output-available", "output": 5}]}
    ]
    [stray] = ui_message.from_messages(messages[1:])
    assert stray["parts"][0]["output"] == 5, "without its call, it is still shown"


def test_an_item_without_an_id_gets_one() -> None:
    [message] = ui_message.to_messages([{"id": "", "role": "user", "parts": [{"type": "text", "text": "x"}]}])
    assert ui_message.from_messages([message])[0]["id"] == message.id != ""
    [message] = ag_ui.to_messages([{"role": "user", "content": "x"}])
    assert ag_ui.from_messages([message]) == [{"role": "user", "content": "x", "id": message.id}]


async def test_pages_of_a_thread_hold_each_result_with_its_call(history: History) -> None:
    calls = [ToolCall(f"c{number}", "look") for number in range(7)]
    thread = [
        Message.user("first"),
        Message.assistant(calls),
        *(Message.tool(ToolResult(call.call_id, "seen")) for call in calls),
        Message.assistant("done"),
    ]
    await history.append("chat", *thread)
    await history.chat("chat").redact(thread[0].id)
    await history.chat("chat").redact(thread[2].id)

    page = await thread_page(history, "chat", ui_message.from_messages, last=3)
    assert page.next is None and page.complete
    asked, called, redacted, done = page
    assert asked["metadata"] == redacted["metadata"] == {"letopis": {"redacted": True}}
    assert (asked["parts"], redacted["id"]) == ([{"type": "text", "text": ""}], thread[2].id)
    states = [part["state"] for part in called["parts"]]
    assert states == ["input-available", *["output-available"] * 6]
    assert done["parts"] == [{"type": "text", "text": "done"}]
    [newest] = await thread_page(history, "chat", ag_ui.from_messages, last=1)
    assert newest == {"id": thread[-1].id, "role": "assistant", "content": "done"}
