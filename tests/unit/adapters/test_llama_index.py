"""A chat store of LlamaIndex in a history."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs llama-index-core: pip install 'letopis[llama-index]'")

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import MessageStatus

from letopis import History, InvalidInput, Message, ToolCall, ToolResult
from letopis.adapters.llama_index import LetopisChatStore
from letopis.store.model.large_content import MAX_STRING_BYTES

ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED
PICTURE = ImageBlock(image=b"\x89PNG", image_mimetype="image/png")


def called(arguments: Any) -> ChatMessage:
    block = ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs=arguments)
    return ChatMessage(role="assistant", blocks=[block])


MESSAGES = [
    ChatMessage("Be brief", role=MessageRole.SYSTEM),
    ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), PICTURE]),
    ChatMessage("Same again"),
    ChatMessage("Same again"),
    called({"at": "tea", "n": 1}),
    ChatMessage("a cup", role="tool", additional_kwargs={"tool_call_id": "c1"}),
    ChatMessage("12", role="function", additional_kwargs={"name": "count"}),
    ChatMessage("A cup", role="chatbot"),
    ChatMessage(role="assistant"),
]


def numbered(*numbers: int) -> list[ChatMessage]:
    return [ChatMessage(f"message {number}") for number in numbers]


@pytest.fixture
def store(history: History) -> LetopisChatStore:
    return LetopisChatStore(history, owner="42")


async def test_messages_come_back_as_they_were(store: LetopisChatStore, history: History) -> None:
    await store.add_messages("chat-1", MESSAGES)
    await store.add_message("chat-1", ChatMessage("Same again"))
    await store.add_messages("chat-1", [])
    assert await store.get_messages("chat-1") == [*MESSAGES, ChatMessage("Same again")]
    assert await store.count_messages("chat-1") == await store.count_messages("chat-1", None) == len(MESSAGES) + 1
    call, result = (await history.messages("chat-1"))[4:6]
    assert call.message.content == (ToolCall("c1", "look", {"at": "tea", "n": 1}),)
    assert result.message.content == (ToolResult("c1", "a cup"),)


@pytest.mark.parametrize(("limit", "offset"), [(3, None), (3, 2), (0, None), (20, None), (None, 4), (3, 20), (5, 3)])
async def test_a_limit_gives_the_newest(store: LetopisChatStore, limit: int | None, offset: int | None) -> None:
    await store.add_messages("chat-1", numbered(*range(6)))
    found = await store.get_messages("chat-1", limit=limit, offset=offset)
    kept = list(range(6))[: max(0, 6 - (offset or 0))]
    assert found == numbered(*(kept if limit is None else kept[max(0, len(kept) - limit) :]))


async def test_archived_messages_stay_and_are_told_apart(store: LetopisChatStore, history: History) -> None:
    await store.add_messages("chat-1", numbered(*range(500)))
    assert await store.archive_oldest_messages("chat-1", 120) == numbered(*range(120))
    assert await store.archive_oldest_messages("chat-1", 1) == numbered(120)
    await store.add_messages("chat-1", numbered(500), ARCHIVED)
    assert await store.get_messages("chat-1") == numbered(*range(121, 500))
    assert await store.get_messages("chat-1", ARCHIVED) == numbered(*range(121), 500)
    assert await store.get_messages("chat-1", None) == numbered(*range(501))
    assert await store.count_messages("chat-1", ARCHIVED) == 122
    assert await store.archive_oldest_messages("chat-1", 0) == []
    assert len(await history.messages("chat-1", last=None)) == 501


async def test_deleting(store: LetopisChatStore, history: History) -> None:
    await store.add_messages("chat-1", numbered(*range(8)))
    await store.archive_oldest_messages("chat-1", 2)
    assert await store.delete_oldest_messages("chat-1", 2) == numbered(2, 3)
    assert await store.delete_message("chat-1", 3) == ChatMessage("message 5")
    assert await store.delete_message("chat-1", 5) is await store.delete_message("chat-1", -1) is None
    assert await store.get_messages("chat-1", None) == numbered(0, 1, 4, 6, 7)
    assert await store.get_messages("chat-1") == numbered(4, 6, 7)
    await store.delete_messages("chat-1", ARCHIVED)
    assert await store.get_messages("chat-1", None) == numbered(4, 6, 7)
    await store.delete_messages("chat-1")
    assert await store.get_messages("chat-1", None) == []
    kept = [one.message.text for one in await history.messages("chat-1", every=True)]
    assert sorted(set(kept)) == [f"message {number}" for number in range(8)]


async def test_the_newest_archived_message_may_be_deleted(store: LetopisChatStore) -> None:
    await store.add_messages("chat-1", numbered(*range(4)))
    await store.archive_oldest_messages("chat-1", 2)
    await store.delete_message("chat-1", 1)
    assert await store.get_messages("chat-1", ARCHIVED) == numbered(0)
    assert await store.get_messages("chat-1") == numbered(2, 3)


async def test_what_is_appended_once_more_keeps_its_status(store: LetopisChatStore) -> None:
    await store.add_messages("chat-1", numbered(*range(6)))
    await store.archive_oldest_messages("chat-1", 4)
    await store.delete_message("chat-1", 1)
    for archived in ((0, 2, 3), (0, 3), (3,)):
        assert await store.get_messages("chat-1", ARCHIVED) == numbered(*archived)
        assert await store.get_messages("chat-1") == numbered(4, 5)
        await store.delete_message("chat-1", 1 if len(archived) == 3 else 0)
    await store.archive_oldest_messages("chat-1", 1)
    assert await store.get_messages("chat-1") == numbered(5)


async def test_set_messages_is_one_append(store: LetopisChatStore, history: History) -> None:
    await store.add_messages("chat-1", numbered(0, 1, 2))
    before = [one.id for one in await history.messages("chat-1")]
    await store.set_messages("chat-1", numbered(0, 1, 7))
    assert await store.get_messages("chat-1") == numbered(0, 1, 7)
    assert [one.id for one in await history.messages("chat-1")][:2] == before[:2], "what stays is not written again"
    await store.archive_oldest_messages("chat-1", 2)
    await store.set_messages("chat-1", numbered(0, 1, 7))
    assert await store.get_messages("chat-1") == numbered(0, 1, 7), "they are active again"
    await store.set_messages("chat-1", numbered(8), ARCHIVED)
    assert (await store.get_messages("chat-1"), await store.get_messages("chat-1", ARCHIVED)) == ([], numbered(8))


async def test_set_messages_that_fails_leaves_all_as_it_was(store: LetopisChatStore) -> None:
    """LlamaIndex' own store deletes in a transaction of its own, and loses the conversation."""
    await store.add_messages("chat-1", numbered(0, 1))
    for wrong in (ChatMessage("x" * (MAX_STRING_BYTES + 1)), object()):
        with pytest.raises(InvalidInput):
            await store.set_messages("chat-1", [*numbered(7), wrong])  # type: ignore[list-item]
    assert await store.get_messages("chat-1") == numbered(0, 1)


async def test_keys_are_conversations_with_messages(store: LetopisChatStore, history: History) -> None:
    await store.add_messages("chat-1", numbered(0))
    await store.add_messages("chat-2", numbered(0))
    await store.delete_messages("chat-2")
    await history.append("another owner's", Message.user("Hello"), owner="43")
    assert await store.get_keys() == ["chat-1"]
    assert sorted(await LetopisChatStore(history).get_keys()) == ["another owner's", "chat-1"]


async def test_messages_from_elsewhere_and_edited_ones(store: LetopisChatStore, history: History) -> None:
    await store.add_messages("chat-1", [ChatMessage("Whaat?")])
    (wrong,) = await history.messages("chat-1")
    await history.chat("chat-1").edit(wrong.id, "What?")
    await history.append("chat-1", Message.assistant([ToolCall("c1", "look", '{"at": "tea"}')]))
    await history.append("chat-1", Message.tool([ToolResult("c1", "a cup")]))
    assert await store.get_messages("chat-1") == [
        ChatMessage("What?"),
        called('{"at": "tea"}'),
        ChatMessage("a cup", role="tool", additional_kwargs={"tool_call_id": "c1"}),
    ]


async def test_without_the_store_the_newest_are_active(alone: History) -> None:
    """Which are archived may not be known then; the memory archives again what is too much for it."""
    store = LetopisChatStore(alone)
    await store.add_messages("chat-1", numbered(*range(4)))
    assert await store.get_messages("chat-1") == numbered(*range(4))
    await store.archive_oldest_messages("chat-1", 2)
    assert await store.get_messages("chat-1") == numbered(2, 3)


def test_the_synchronous_methods_of_a_memory(tmp_path: Path) -> None:
    """They run an event loop each."""
    history = History(tmp_path / "bot.outbox.db", relay=False, own_thread=True)
    memory = Memory(sql_store=LetopisChatStore(history), session_id="chat-1", token_limit=300, tokenizer_fn=str.split)
    for message in numbered(0, 1):
        memory.put(message)
    assert memory.get() == numbered(0, 1)
    asyncio.run(history.close())
