"""A chat message store of Haystack in a history."""

import base64
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("haystack", reason="needs haystack-ai: pip install 'letopis[haystack]', or the group adapters")
pytest.importorskip("haystack_experimental", reason="needs haystack-experimental, of the group adapters")

from haystack import Pipeline
from haystack.dataclasses import ChatMessage, ImageContent, TextContent, ToolCall
from haystack.utils import Secret
from haystack_experimental.chat_message_stores.in_memory import InMemoryChatMessageStore
from haystack_experimental.components.retrievers import ChatMessageRetriever
from haystack_experimental.components.writers import ChatMessageWriter

from letopis import BlockingHistory, Message, ToolResult
from letopis.adapters.haystack import LetopisChatMessageStore
from letopis.store import ToolCall as LetopisToolCall
from tests.support.sayings import present

LOOK = ToolCall("look", {"at": "tea", "n": 1}, id="c1")
NAMELESS = ToolCall("look", {})
MESSAGES = [
    ChatMessage.from_user("Same again", name="Ada"),
    ChatMessage.from_user("Same again", name="Ada"),
    ChatMessage.from_user(
        content_parts=[TextContent("What is this?"), ImageContent(base64.b64encode(b"\x89PNG").decode(), "image/png")]
    ),
    ChatMessage.from_assistant("Let me look", tool_calls=[LOOK], meta={"model": "fake", "usage": {"tokens": 3}}),
    ChatMessage.from_tool("a cup", origin=LOOK),
    ChatMessage.from_assistant(tool_calls=[NAMELESS]),
    ChatMessage.from_tool("no cup", origin=NAMELESS, error=True),
    ChatMessage.from_assistant("A cup", reasoning="It looks like one"),
]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[BlockingHistory]:
    with BlockingHistory(tmp_path / "bot.outbox.db", relay=False) as opened:
        yield opened


@pytest.fixture
def store(history: BlockingHistory) -> LetopisChatMessageStore:
    """A store that returns all rounds and takes system messages."""
    return LetopisChatMessageStore(history, owner="42", skip_system_messages=False, last_k=None)


def plain(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """The messages without the ids that stores give them."""
    found = [message.to_dict() for message in messages]
    for one in found:
        one["meta"] = {key: value for key, value in one["meta"].items() if key != "chat_message_id"}
    return found


def test_messages_come_back_and_are_not_written_again(store: LetopisChatMessageStore, history: BlockingHistory) -> None:
    assert store.write_messages("chat-1", MESSAGES) == len(MESSAGES)
    assert store.write_messages("chat-1", []) == 0
    read = store.retrieve_messages("chat-1")
    assert plain(read) == plain(MESSAGES)
    assert store.count_messages("chat-1") == len(MESSAGES)
    assert all("chat_message_id" not in message.meta for message in MESSAGES), "what is given is not changed"
    content: Any = history.messages("chat-1")[3].content
    assert LetopisToolCall("c1", "look", '{"at": "tea", "n": 1}') in content
    assert store.write_messages("chat-1", [*read, ChatMessage.from_user("More")]) == 1
    assert store.count_messages("chat-1") == len(MESSAGES) + 1


def test_ids_of_haystack_may_come_again_after_a_deletion(store: LetopisChatMessageStore) -> None:
    def numbered(text: str) -> list[ChatMessage]:
        return [ChatMessage.from_user(text, meta={"chat_message_id": "0"})]

    assert store.write_messages("chat-1", numbered("Hello")) == 1
    assert store.write_messages("chat-1", numbered("Hello again")) == 0
    for text in ("Hello again", "Hello"):  # other content, and the same
        store.delete_messages("chat-1")
        for _ in range(2):
            store.write_messages("chat-1", numbered(text))
            found = store.retrieve_messages("chat-1")
            assert [(message.text, message.meta["chat_message_id"]) for message in found] == [(text, "0")]


@pytest.mark.parametrize("last_k", [0, 1, 2, 3, 70, 1_000, None])
def test_rounds_are_those_of_haystacks_own_store(
    store: LetopisChatMessageStore, last_k: int | None, request: pytest.FixtureRequest
) -> None:
    talk = [ChatMessage.from_system("Be brief")]
    for number in range(60):
        talk += [ChatMessage.from_user(f"Question {number}")]
        if number % 3 == 0:
            talk += [ChatMessage.from_assistant(tool_calls=[LOOK]), ChatMessage.from_tool("a cup", origin=LOOK)]
        talk += [ChatMessage.from_assistant(f"Answer {number}")]
    talk += [ChatMessage.from_user("And now?")]
    theirs = InMemoryChatMessageStore(skip_system_messages=False, last_k=None)
    theirs.write_messages(request.node.name, talk)
    store.write_messages("chat-1", talk)
    wanted = theirs.retrieve_messages(request.node.name, last_k)
    assert plain(store.retrieve_messages("chat-1", last_k)) == plain(wanted)


def test_deleting_all_is_for_the_owner(store: LetopisChatMessageStore, history: BlockingHistory) -> None:
    store.write_messages("chat-1", MESSAGES)
    store.write_messages("chat-2", MESSAGES)
    history.append("chat-3", Message.user("Hello"), owner="43")
    store.delete_all_messages()
    assert [store.count_messages(f"chat-{number}") for number in (1, 2, 3)] == [0, 0, 1]


def test_messages_from_elsewhere_and_edited_ones(store: LetopisChatMessageStore, history: BlockingHistory) -> None:
    store.write_messages("chat-1", [ChatMessage.from_user("Whaat?")])
    history.chat("chat-1").edit(history.messages("chat-1")[0].id, "What?")
    call = Message.assistant([LetopisToolCall("c1", "look", '{"at": "tea"}')])
    history.append("chat-1", call, Message.tool(ToolResult("c1", "a cup")))
    asked, called, result = store.retrieve_messages("chat-1")
    assert (asked.text, called.tool_calls) == ("What?", [ToolCall("look", {"at": "tea"}, id="c1")])
    assert present(result.tool_call_result).result == "a cup"
    assert store.write_messages("chat-1", [asked, called, result]) == 0


def test_system_messages_are_skipped(history: BlockingHistory) -> None:
    store = LetopisChatMessageStore(history)
    assert store.write_messages("chat-1", [ChatMessage.from_system("Be brief"), *MESSAGES]) == len(MESSAGES)
    assert store.count_messages("chat-1") == len(MESSAGES)


def test_a_pipeline_is_serialized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTORY_URL", str(tmp_path / "history.db"))
    url = Secret.from_env_var("HISTORY_URL")
    store = LetopisChatMessageStore(path=tmp_path / "bot.outbox.db", store=url, owner="42", last_k=3)
    pipeline = Pipeline()
    pipeline.add_component("retriever", ChatMessageRetriever(store))
    pipeline.add_component("writer", ChatMessageWriter(store))
    trusted: dict[str, Any] = {}
    if "allowed_modules" in inspect.signature(Pipeline.loads).parameters:  # older releases trust every module
        trusted["allowed_modules"] = ["letopis.adapters.haystack", "haystack_experimental.components.*"]
    again = Pipeline.loads(pipeline.dumps(), **trusted)
    writer = again.get_component("writer").chat_message_store
    assert isinstance(writer, LetopisChatMessageStore) and writer.to_dict() == store.to_dict()
    writer.write_messages("chat-1", MESSAGES)
    assert store.count_messages("chat-1") == len(MESSAGES), "both have the file open"
    store.close()
    writer.close()
