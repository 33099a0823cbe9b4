"""A conversation store of Pydantic AI in a history, beyond what Pydantic AI's contract asks."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("pydantic_ai", reason="needs pydantic-ai-slim: pip install 'letopis[pydantic-ai]'")

from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationConflict, ConversationEntry, ConversationRecord
from pydantic_ai.messages import (
    BinaryImage,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage

from letopis.adapters.pydantic_ai import LetopisConversationStore
from letopis.outbox import History
from letopis.store import (
    File,
    InvalidInput,
    Message,
    NotSaved,
    Reasoning,
    StoreUnavailable,
    Text,
    ToolCall,
    ToolResult,
)
from letopis.store.model.large_content import MAX_STRING_BYTES
from tests.support.bots.pydantic_ai import THEN, grown, loaded, saved, turns
from tests.support.outboxes import open_apart, prune
from tests.support.peers import refused_port
from tests.support.sayings import present

CHAT = "chat-1"
PICTURES = ImageUrl("https://example.org/a.png"), BinaryImage(data=b"\xff\xfe?>", media_type="image/png")
MESSAGES: list[ModelMessage] = [
    ModelRequest(parts=[SystemPromptPart("Be brief", timestamp=THEN), UserPromptPart("What is this?", timestamp=THEN)]),
    ModelResponse(
        parts=[
            ThinkingPart("A cup?", id="r1", signature="c2ln"),
            TextPart("I look"),
            ToolCallPart("look", {"at": "tea", "n": [1, 2.5, None]}, tool_call_id="c1"),
            ToolCallPart("look", '{"at":  "cup"}', tool_call_id="c2"),
        ],
        usage=RequestUsage(input_tokens=5, output_tokens=2),
        model_name="fake",
        timestamp=THEN,
        provider_details={"finish_reason": "tool"},
    ),
    ModelRequest(
        parts=[
            ToolReturnPart("look", {"found": "a cup"}, tool_call_id="c1", timestamp=THEN),
            ToolReturnPart("look", "not there", tool_call_id="c2", timestamp=THEN, outcome="failed"),
        ]
    ),
    ModelResponse(parts=[TextPart("A cup")], timestamp=THEN),
    ModelRequest(
        parts=[UserPromptPart(["And this?", *PICTURES], timestamp=THEN)],
        instructions="Be kind",
        metadata={"from": "telegram"},
    ),
    ModelResponse(parts=[], timestamp=THEN),
    ModelRequest(parts=[SystemPromptPart("Only this", timestamp=THEN)]),
]


def told(*numbers: int | str) -> list[str]:
    return [f"{what} {number}" for number in numbers for what in ("question", "answer")]


@pytest.fixture
def store(history: History) -> LetopisConversationStore:
    """A conversation store on a history that delivers nothing."""
    return LetopisConversationStore(history)


async def path_of(history: History, chat: str = CHAT) -> list[str]:
    return [one.text for one in await history.messages(chat, last=None)]


async def test_messages_come_back_byte_for_byte_and_are_understood(
    store: LetopisConversationStore, history: History
) -> None:
    await store.save(Conversation(conversation_id=CHAT, messages=list(MESSAGES)), scope="42")
    found = await loaded(store, CHAT)
    assert found.messages == MESSAGES
    assert ModelMessagesTypeAdapter.dump_json(found.messages) == ModelMessagesTypeAdapter.dump_json(MESSAGES)
    assert await store.save(Conversation(conversation_id=CHAT, messages=list(MESSAGES), revision=found.revision)) == []
    stored = await history.messages(CHAT)
    calls = ToolCall("c1", "look", {"at": "tea", "n": [1, 2.5, None]}), ToolCall("c2", "look", '{"at":  "cup"}')
    assert [(one.role, one.content) for one in stored] == [
        ("user", "What is this?"),
        ("assistant", (Reasoning("A cup?"), Text("I look"), *calls)),
        ("tool", (ToolResult("c1", {"found": "a cup"}), ToolResult("c2", "not there", "error"))),
        ("assistant", "A cup"),
        ("user", (Text("And this?"), File("https://example.org/a.png", media_type="image/png"))),
        ("assistant", ()),
        ("system", "Only this"),
    ]
    assert (stored[1].message.tokens, dict(stored[1].message.usage)) == (7, {"input": 5, "output": 2})
    assert [one.conversation_id for one in await history.conversations(owner="42")] == [CHAT]


async def test_the_path_follows_the_head(store: LetopisConversationStore, history: History) -> None:
    conversation = await saved(store, CHAT, 1, 2)
    tip = (await store.load_entries(CHAT) or [])[-1].id
    branched = await store.branch(CHAT, at=2, expected_revision=conversation.revision)
    assert await path_of(history) == told(1)
    await grown(store, branched, "other")
    assert await path_of(history) == told(1, "other")
    back = await store.branch(CHAT, from_entry=tip, expected_revision=branched.revision)
    assert await path_of(history) == told(1, 2)
    await grown(store, back, 3)
    assert (await loaded(store, CHAT)).messages == turns(1, 2, 3)
    assert await path_of(history) == told(1, 2, 3)
    fork = await store.fork(CHAT, from_entry=tip)
    await grown(store, fork, "fork")
    assert await path_of(history, fork.conversation_id) == told(1, 2, "fork")
    found = present(await history.chat(fork.conversation_id).conversation())
    assert found.forked_from is not None and found.message_count == 2


async def test_a_branch_comes_back_as_a_copy_of_its_messages(store: LetopisConversationStore, history: History) -> None:
    first = await saved(store, CHAT, 1, 2)
    entries = [one.id for one in await store.load_entries(CHAT) or []]
    other = await store.branch(CHAT, at=2, expected_revision=first.revision)
    await grown(store, other, "other")
    other_tip = (await store.load_entries(CHAT) or [])[-1].id
    back = await store.branch(CHAT, from_entry=entries[-1], expected_revision=other.revision)
    page = await history.messages(CHAT)
    assert [one.id for one in await store.load_entries(CHAT) or []] == entries
    assert [one.id for one in page][:2] == entries[:2] and {one.id for one in page}.isdisjoint(entries[2:])
    # What is saved now continues the branch, for a fork too.
    await grown(store, back, 3)
    tip = (await store.load_entries(CHAT) or [])[-1].id
    fork = await store.fork(CHAT, from_entry=tip)
    await grown(store, fork, "fork")
    assert await path_of(history, fork.conversation_id) == told(1, 2, 3, "fork")
    # There and back again, once more.
    again = await store.branch(CHAT, from_entry=other_tip, expected_revision=back.revision)
    assert await path_of(history) == told(1, "other")
    again = await store.branch(CHAT, from_entry=tip, expected_revision=again.revision)
    assert await path_of(history) == told(1, 2, 3)
    assert (await loaded(store, CHAT)).messages == turns(1, 2, 3)
    # The redaction of what is shown is not undone by the copies that are not.
    shown = (await history.messages(CHAT))[2]
    await history.chat(CHAT).redact(shown.id)
    found = await loaded(store, CHAT)
    assert found.messages == [*turns(1), turns(2)[1], *turns(3)]
    await grown(store, found, 4)
    assert (await path_of(history))[-4:] == told(3, 4)


async def test_a_write_again_has_no_effect(store: LetopisConversationStore, history: History) -> None:
    """A caller that does not know whether a write took effect makes it again."""
    entry = ConversationEntry(parent_id=None, message=turns(1)[0])
    record, other = (ConversationRecord(conversation_id=CHAT, head_id=entry.id) for _ in range(2))
    for _ in range(2):
        await store.write_record(record, new_entries=[entry], expected_revision=None)
    assert len(await history.messages(CHAT, every=True)) == 1
    with pytest.raises(ConversationConflict):
        await store.write_record(other, new_entries=[entry], expected_revision=None)


async def test_a_save_that_fails_leaves_nothing(store: LetopisConversationStore, history: History) -> None:
    conversation = await saved(store, CHAT, 1)
    too_long = UserPromptPart("x" * (MAX_STRING_BYTES + 1), timestamp=THEN)
    conversation.messages += [*turns(2), ModelRequest(parts=[too_long])]
    with pytest.raises(InvalidInput):
        await store.save(conversation)
    assert (await loaded(store, CHAT)).messages == turns(1)
    assert await path_of(history) == told(1)
    conversation.messages = turns(1, 2)
    assert len(await store.save(conversation)) == 2


async def test_edited_redacted_and_foreign_messages(store: LetopisConversationStore, history: History) -> None:
    await saved(store, CHAT, 1, 2)
    await history.append(CHAT, Message.assistant("An operator is here"))
    first, second, third, fourth, _ = await history.messages(CHAT)
    await history.chat(CHAT).edit(first.id, "the question, put well")
    await history.chat(CHAT).edit(fourth.id, "the answer, put well")
    found = await loaded(store, CHAT)
    texts = [part.content for message in found.messages for part in message.parts]  # type: ignore[union-attr]
    assert texts == ["the question, put well", "answer 1", "question 2", "the answer, put well"]
    await history.chat(CHAT).redact(second.id, third.id)
    found = await loaded(store, CHAT)
    assert len(found.messages) == 2
    entries = [(one.id, one.parent_id) for one in present(await store.load_entries(CHAT))]
    assert entries == [(first.id, None), (fourth.id, first.id)]
    await grown(store, found, 3)
    assert (await path_of(history))[-3:] == ["An operator is here", "question 3", "answer 3"]
    with pytest.raises(LookupError):
        await store.read_entry(second.id)
    await history.chat(CHAT).redact(first.id)
    assert len((await loaded(store, CHAT)).messages) == 3


async def test_deleted_is_erased(store: LetopisConversationStore, history: History) -> None:
    await saved(store, CHAT, "secret")
    await store.delete(CHAT)
    assert "".join(one.text for one in await history.messages(CHAT, every=True)) == ""
    await saved(store, CHAT, "anew")
    await history.chat(CHAT).delete()
    assert await store.load(CHAT) is None
    with pytest.raises(ConversationConflict):
        await saved(store, CHAT, "too late")


async def test_a_fork_needs_a_new_id(store: LetopisConversationStore, history: History) -> None:
    await saved(store, CHAT, 1)
    await history.append("used", Message.user("hello"))
    with pytest.raises(InvalidInput, match="new id"):
        await store.fork(CHAT, new_conversation_id="used")


async def test_long_histories_and_long_scopes(store: LetopisConversationStore) -> None:
    scope = "u" * 200
    conversation = await saved(store, CHAT, *range(150), scope=scope)
    await grown(store, conversation, "last")
    assert (await loaded(store, CHAT)).messages == turns(*range(150), "last")
    assert (await loaded(store, CHAT, limit=250)).messages == turns(*range(26, 150), "last")
    assert [one.scope for one in await store.list_conversations(scope=scope)] == [scope]
    back = await store.branch(CHAT, at=2, expected_revision=conversation.revision)
    assert back.messages == turns(0)


async def test_without_the_store(alone: History) -> None:
    store = LetopisConversationStore(alone)
    with pytest.raises(StoreUnavailable):
        await store.load(CHAT)
    with pytest.raises(StoreUnavailable):
        await store.list_conversations()
    conversation = await saved(store, CHAT, 1)  # an id that is new; the history store decides whether it is
    await grown(store, conversation, 2)
    found = await loaded(store, CHAT)
    assert found.messages == turns(1, 2)
    await store.branch(CHAT, at=2, expected_revision=found.revision)
    assert (await loaded(store, CHAT)).messages == turns(1)


async def test_what_is_retained_is_loaded_without_the_store(tmp_path: Path) -> None:
    path, target = tmp_path / "bot.outbox.db", tmp_path / "history.db"
    async with History(path, store=target) as history:
        await saved(LetopisConversationStore(history), CHAT, 1, 2, 3, 4)
        assert await history.drained(timeout=20)
        await prune(history, keep_last=3)

    away = f"postgresql://nobody@127.0.0.1:{await refused_port()}/nowhere"
    async with History(path, store=away, relay=False) as history:
        store = LetopisConversationStore(history)
        found = await loaded(store, CHAT)
        assert 0 < len(found.messages) < 8
        assert found.messages == turns(1, 2, 3, 4)[-len(found.messages) :]
        with pytest.raises(StoreUnavailable):
            await store.load_entries(CHAT)
        with pytest.raises(StoreUnavailable):
            await LetopisConversationStore(history, require_complete=True).load(CHAT)
        await grown(store, found, 5)

    async with History(path, store=target) as history:
        assert (await loaded(LetopisConversationStore(history), CHAT)).messages == turns(1, 2, 3, 4, 5)


async def test_another_outbox_was_first(tmp_path: Path) -> None:
    target = tmp_path / "history.db"
    async with (
        open_apart(tmp_path / "a.outbox.db", store=target) as one,
        open_apart(tmp_path / "b.outbox.db", store=target) as two,
    ):
        here = LetopisConversationStore(one, in_store=True)
        there = LetopisConversationStore(two, in_store=True)
        conversation = await saved(here, CHAT, 1)
        other = await loaded(there, CHAT)
        other.messages += turns("other")
        conversation.messages += turns("mine")
        results = await asyncio.gather(here.save(conversation), there.save(other), return_exceptions=True)
        assert sorted(type(one).__name__ for one in results) == ["ConversationConflict", "list"]
        won = (await loaded(here, CHAT)).messages
        assert won == (await loaded(there, CHAT)).messages
        assert won in (turns(1, "mine"), turns(1, "other"))
        again = await loaded(here, CHAT)
        await grown(here, again, "again")
        assert await two.drained(timeout=20)
        assert (await loaded(there, CHAT)).messages == [*won, *turns("again")]
        assert (await path_of(two))[-3:] == [won[-1].parts[0].content, "question again", "answer again"]  # type: ignore[union-attr]


async def test_a_save_that_is_not_confirmed(alone: History) -> None:
    store = LetopisConversationStore(alone, in_store=True, timeout=0.05)
    with pytest.raises(NotSaved):
        await saved(store, CHAT, 1)
    assert (await loaded(store, CHAT)).messages == turns(1)


async def test_a_cancelled_caller_does_not_interrupt_a_save(store: LetopisConversationStore) -> None:
    entry = ConversationEntry(parent_id=None, message=turns(1)[0])
    record = ConversationRecord(conversation_id=CHAT, head_id=entry.id)
    writing = asyncio.ensure_future(store.write_record(record, new_entries=[entry], expected_revision=None))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (await loaded(store, CHAT)).messages == turns(1)[:1]
