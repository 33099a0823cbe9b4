"""Messages, sessions and checkpoints of Microsoft Agent Framework in a history."""

import warnings
from typing import Any

import pytest

pytest.importorskip("agent_framework", reason="needs agent-framework-core: pip install 'letopis[agent-framework]'")

from agent_framework import (
    Agent,
    AgentSession,
    Content,
    Message,
    WorkflowCheckpoint,
    WorkflowCheckpointException,
)

from letopis import File, History, Reasoning, StoreUnavailable, Text, ToolCall, ToolResult
from letopis.adapters.agent_framework import LetopisHistoryProvider
from letopis.adapters.agent_framework.checkpoint_storage import LetopisCheckpointStorage, latest_of
from letopis.adapters.agent_framework.history_provider import without_replayed
from letopis.store import Message as Said
from tests.support.bots.agent_framework import FakeModel
from tests.support.story import nothing

PICTURE = "data:image/png;base64,iVBORw0KGgo="
CALL = Content.from_function_call("c1", "look", arguments='{"at": "tea"}')
MESSAGES = [
    Message("system", ["Be brief"]),
    Message("user", ["What is this?", Content.from_uri(PICTURE, media_type="image/png")], author_name="ada"),
    Message("assistant", [Content.from_text_reasoning(text="A picture", protected_data="c2VjcmV0"), CALL]),
    Message("tool", [Content.from_function_result("c1", result={"it": "is a cup of tea, I think"})]),
    Message("assistant", ["A cup"], message_id="m-1", additional_properties={"score": 0.5}),
    Message("user", ["Same again"]),
    Message("user", ["Same again"]),
    Message("assistant", []),
    Message("critic", ["Hm"]),
]


def said(*texts: str) -> list[Message]:
    """Return a talk: the user first, then in turn."""
    return [Message("assistant" if place % 2 else "user", [text]) for place, text in enumerate(texts)]


def texts(messages: Any) -> list[str]:
    return [message.text for message in messages]


def dicts(messages: list[Message]) -> list[dict[str, Any]]:
    return [message.to_dict() for message in messages]


@pytest.fixture
def provider(history: History) -> LetopisHistoryProvider:
    return LetopisHistoryProvider(history, owner="42")


async def test_messages_come_back_as_they_were(provider: LetopisHistoryProvider, history: History) -> None:
    await provider.save_messages("chat-1", MESSAGES)
    await provider.save_messages("chat-1", [])
    assert dicts(await provider.get_messages("chat-1")) == dicts(MESSAGES)
    found = [one.message for one in await history.messages("chat-1")]
    assert [one.role for one in found[-2:]] == ["assistant", "user"]
    assert found[1].content == (Text("What is this?"), File(PICTURE, "image/png")) and found[1].name == "ada"
    assert found[2].content == (Reasoning("A picture"), ToolCall("c1", "look", '{"at": "tea"}'))
    assert found[3].content == (ToolResult("c1", '{"it": "is a cup of tea, I think"}'),)
    assert found[4].content == "A cup"


async def test_a_run_is_streamed_and_the_owner_told(provider: LetopisHistoryProvider, history: History) -> None:
    agent: Any = Agent(FakeModel(nothing), instructions="Be brief", context_providers=[provider])
    stream = agent.run("and tea?", session=AgentSession(session_id="chat-1"), stream=True)
    assert "".join([update.text async for update in stream]) == "answer to and tea? "
    await stream.get_final_response()
    assert texts(await history.messages("chat-1")) == ["and tea?", "answer to and tea? "]
    told = LetopisHistoryProvider(history, owner=lambda session: session.partition("/")[0])
    await told.save_messages("ada/1", said("hi"))
    owners = {one.conversation_id: one.owner_id for one in await history.conversations()}
    assert owners == {"chat-1": "42", "ada/1": "ada"}


async def test_of_a_transcript_only_what_is_new_is_stored(provider: LetopisHistoryProvider) -> None:
    """Some callers give all that was said with each run."""
    agent: Any = Agent(FakeModel(nothing), context_providers=[LetopisHistoryProvider(provider._history)])
    talk: list[Message] = []
    for number in range(4):
        talk.append(Message("user", [f"question {number % 2}"]))
        response = await agent.run(talk, session=AgentSession(session_id="chat-1"))
        talk += response.messages
    assert texts(await provider.get_messages("chat-1")) == texts(talk)


@pytest.mark.parametrize(
    ("stored", "given", "new"),
    [
        *[("", "qa", "qa"), ("qa", "qa", "qa"), ("qa", "qaqa", "qa"), ("qaqa", "qa", "qa"), ("qaqa", "qaqaqa", "qa")],
        *[("qapb", "pbrc", "rc"), ("qapb", "qarc", "qarc"), ("q", "qa", "qa"), ("qa", "q", "q")],
    ],
)
def test_what_is_new(stored: str, given: str, new: str) -> None:
    """Each letter is a message: of the user, then in turn."""
    assert "".join(texts(without_replayed(said(*stored), said(*given)))) == new


def test_ids_tell_a_save_that_comes_twice() -> None:
    def named(*ids: str | None) -> list[Message]:
        return [Message("user", ["q"], message_id=one) for one in ids]

    assert without_replayed(named("1", "2"), named("1", "2")) == []
    assert len(without_replayed(named("1", "2"), named("1", "3"))) == 2
    assert len(without_replayed(named("1", "2"), named("2", "3"))) == 1
    assert len(without_replayed(named(None), named(None))) == 1


async def test_a_window_begins_at_no_result(history: History) -> None:
    await LetopisHistoryProvider(history).save_messages("chat-1", MESSAGES)
    found = await LetopisHistoryProvider(history, last=6).get_messages("chat-1")
    assert dicts(found) == dicts(MESSAGES[4:])
    assert len(await LetopisHistoryProvider(history, last=2).get_messages("chat-1")) == 2


async def test_excluded_messages_are_left_out_on_request(history: History) -> None:
    hidden = Message("user", ["old"], additional_properties={"_excluded": True})
    await LetopisHistoryProvider(history).save_messages("chat-1", [hidden, *said("hi")])
    assert len(await LetopisHistoryProvider(history).get_messages("chat-1")) == 2
    assert texts(await LetopisHistoryProvider(history, skip_excluded=True).get_messages("chat-1")) == ["hi"]


async def test_messages_from_elsewhere_and_edited_ones(provider: LetopisHistoryProvider, history: History) -> None:
    await provider.save_messages("chat-1", said("Whaat?"))
    (wrong,) = await history.messages("chat-1")
    await history.chat("chat-1").edit(wrong.id, "What?")
    question = Said.user([Text("This"), File(PICTURE, "image/png")])
    call = Said.assistant([ToolCall("c1", "look", '{"at": "tea"}')])
    await history.append("chat-1", question, call, Said.tool(ToolResult("c1", "a cup")))
    edited, asked, called, result = await provider.get_messages("chat-1")
    assert (edited.role, edited.text) == ("user", "What?")
    assert [one.type for one in asked.contents] == ["text", "data"]
    assert called.contents[0].name == "look" and called.contents[0].arguments == '{"at": "tea"}'
    assert (result.role, result.contents[0].call_id, result.contents[0].result) == ("tool", "c1", "a cup")


async def test_without_the_store_a_run_gets_what_is_retained(alone: History) -> None:
    agent: Any = Agent(FakeModel(nothing), context_providers=[LetopisHistoryProvider(alone)])
    await agent.run("hi", session=AgentSession(session_id="chat-1"))
    assert len(await LetopisHistoryProvider(alone).get_messages("chat-1")) == 2
    with pytest.raises(StoreUnavailable):
        await LetopisHistoryProvider(alone, require_complete=True).get_messages("chat-1")


# Sessions.


def session_store(history: History) -> Any:
    """Return a session store; the framework warns of it."""
    with warnings.catch_warnings(action="ignore"):
        from letopis.adapters.agent_framework import LetopisSessionStore

        return LetopisSessionStore(history)


async def test_sessions_are_copies(bot: History) -> None:
    store = session_store(bot)
    session = AgentSession(session_id="inner", service_session_id="conv_1")
    session.state = {"form": {"step": 3, "said": said("hi")}, "letopis": {}}
    assert await store.get("chat-1") is None
    await store.set("chat-1", session)
    session.state["form"]["step"] = 4
    found = await store.get("chat-1")
    assert (found.session_id, found.service_session_id, found.state["form"]["step"]) == ("inner", "conv_1", 3)
    assert texts(found.state["form"]["said"]) == ["hi"]
    await store.set("chat-1", found)
    await bot.append("chat-1", Said.user("hi"))
    await store.delete("chat-1")
    await store.delete("chat-1")
    assert await store.get("chat-1") is None
    assert len(await bot.messages("chat-1")) == 1


async def test_an_unknown_session_is_not_begun_anew(alone: History) -> None:
    store = session_store(alone)
    with pytest.raises(StoreUnavailable):
        await store.get("chat-1")
    await store.set("chat-1", AgentSession(session_id="chat-1"))
    assert (await store.get("chat-1")).session_id == "chat-1"


# Checkpoints.


class Mine:
    """A type of an application, equal by what is in it."""

    def __init__(self, note: str) -> None:
        self.note = note


def checkpoint(number: int, *, after: str | None = None, workflow: str = "flow", **given: Any) -> WorkflowCheckpoint:
    return WorkflowCheckpoint(
        workflow_name=workflow,
        graph_signature_hash="hash",
        checkpoint_id=f"id-{number}",
        previous_checkpoint_id=after,
        timestamp=f"2026-11-27T10:00:{number:02}+00:00",
        iteration_count=0,
        **given,
    )


async def test_checkpoints(bot: History) -> None:
    storage = LetopisCheckpointStorage(bot)
    first = checkpoint(1, state={"numbers": (1, 2), "text": "täa"})
    second = checkpoint(2, after="id-1", state={"blob": b"\x00" * 100_000})
    assert await storage.get_latest(workflow_name="flow") is None
    assert await storage.save(first) == "id-1"
    assert await storage.save(second) == "id-2"
    await storage.save(checkpoint(3, workflow="x" * 600))
    first.state["text"] = "changed"
    assert (await storage.load("id-1")).state == {"numbers": (1, 2), "text": "täa"}
    assert await storage.get_latest(workflow_name="flow") == second
    assert await storage.list_checkpoint_ids(workflow_name="flow") == ["id-1", "id-2"]
    assert [one.checkpoint_id for one in await storage.list_checkpoints(workflow_name="flow")] == ["id-1", "id-2"]
    assert await storage.list_checkpoint_ids(workflow_name="x" * 600) == ["id-3"]
    assert await storage.delete("id-2") is True
    assert await storage.delete("id-2") is False
    with pytest.raises(WorkflowCheckpointException, match="id-2"):
        await storage.load("id-2")
    assert await storage.list_checkpoint_ids(workflow_name="flow") == ["id-1"]


async def test_types_have_to_be_allowed(history: History) -> None:
    mine = f"{Mine.__module__}:{Mine.__qualname__}"
    saved = checkpoint(1, state={"mine": Mine("hi")})
    storage = LetopisCheckpointStorage(history)
    for wrong in (saved, checkpoint(2, state={"mine": lambda: None})):
        with pytest.raises(WorkflowCheckpointException):
            await storage.save(wrong)
    assert await storage.list_checkpoint_ids(workflow_name="flow") == []
    await LetopisCheckpointStorage(history, allowed_checkpoint_types=[mine]).save(saved)
    with pytest.raises(WorkflowCheckpointException):
        await storage.get_latest(workflow_name="flow")


@pytest.mark.parametrize(
    ("entries", "latest"),
    [
        ([], None),
        ([("a", None, 1)], "a"),
        ([("a", None, 1), ("b", "a", 2)], "b"),
        ([("a", None, 5), ("b", "a", 2)], "b"),
        ([("a", None, 1), ("b", "a", 2), ("c", "a", 3)], "c"),
        ([("b", "gone", 2), ("c", "b", 1)], "c"),
        ([("a", "b", 1), ("b", "a", 2)], "b"),
    ],
)
def test_which_checkpoint_is_the_latest(entries: list[tuple[str, str | None, int]], latest: str | None) -> None:
    times = {name: {"previous": before, "timestamp": f"2026-11-27T10:00:0{at}+00:00"} for name, before, at in entries}
    assert latest_of(times) == latest


async def test_checkpoints_without_the_store(alone: History) -> None:
    storage = LetopisCheckpointStorage(alone)
    for read in (storage.get_latest(workflow_name="flow"), storage.load("id-1")):
        with pytest.raises(StoreUnavailable):
            await read
    await storage.save(checkpoint(1))
    assert (await storage.get_latest(workflow_name="flow")) == await storage.load("id-1")
    with pytest.raises(StoreUnavailable):
        await storage.list_checkpoint_ids(workflow_name="flow")
