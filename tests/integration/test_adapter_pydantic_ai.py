"""What Pydantic AI's contract asks of a conversation store, on three stores; its own in-memory one is the control."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pydantic_ai", reason="needs pydantic-ai-slim: pip install 'letopis[pydantic-ai]'")

from pydantic_ai.conversation import Conversation, ConversationTypeAdapter
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RunUsage

from letopis.adapters.pydantic_ai import LetopisConversationStore
from letopis.outbox import History
from tests.support.bots.pydantic_ai import grown, loaded, saved, turns
from tests.support.sayings import present


@pytest.fixture
def store(delivering: History | None) -> ConversationStore:
    """A conversation store that delivers in the background; the control keeps all in memory."""
    return InMemoryConversationStore() if delivering is None else LetopisConversationStore(delivering)


@pytest.fixture
def chat() -> str:
    return f"chat-{uuid4()}"


async def test_nothing_is_there(store: ConversationStore, chat: str) -> None:
    assert await store.load(chat) is None
    assert await store.load_entries(chat) is None
    await store.delete(chat)
    with pytest.raises(UserError):
        await store.branch(chat, at=0, expected_revision=None)
    with pytest.raises(LookupError):
        await store.read_entry(str(uuid4()))


async def test_a_conversation_grows_by_what_is_new(store: ConversationStore, chat: str) -> None:
    first = await saved(store, chat, 1)
    entries = present(await store.load_entries(chat))
    assert [one.parent_id for one in entries] == [None, entries[0].id]
    found = await loaded(store, chat)
    assert (found.messages, found.revision, found.new_message_index) == (turns(1), first.revision, 2)
    found.messages += turns(2)
    found.usage = RunUsage(requests=2, input_tokens=7, tool_calls=1)
    call = ToolCallPart("pay", {"amount": 3}, tool_call_id="c1")
    found.deferred_tool_requests = DeferredToolRequests(approvals=[call], metadata={"c1": {"why": "money"}})
    new = await store.save(found)
    assert [one.message for one in new] == turns(2)
    assert new[0].parent_id == entries[-1].id
    again = await loaded(store, chat)
    assert again == found
    assert await store.read_entry(new[1].id) == new[1]
    assert await store.save(again) == []
    assert (await loaded(store, chat)).revision == again.revision != found.revision
    again.deferred_tool_requests = None
    await store.save(again)
    assert (await loaded(store, chat)).deferred_tool_requests is None


async def test_the_second_of_two_writers_is_told(store: ConversationStore, chat: str) -> None:
    await saved(store, chat, 1)
    one, other = await loaded(store, chat), await loaded(store, chat)
    one.messages += turns("first")
    other.messages += turns("second")
    await store.save(one)
    with pytest.raises(ConversationConflict):
        await store.save(other)
    with pytest.raises(ConversationConflict):
        await saved(store, chat, "new")
    with pytest.raises(ConversationConflict):
        await store.branch(chat, at=2, expected_revision=other.revision)
    assert (await loaded(store, chat)).messages == turns(1, "first")


async def test_both_at_once(store: ConversationStore, chat: str, delivering: History | None) -> None:
    await saved(store, chat, 1)
    both = [await loaded(store, chat), await loaded(store, chat)]
    for place, one in enumerate(both):
        one.messages += turns(place)
    results = await asyncio.gather(*map(store.save, both), return_exceptions=True)
    assert sorted(type(one).__name__ for one in results) == ["ConversationConflict", "list"]
    assert len((await loaded(store, chat)).messages) == 4
    if delivering is not None:  # no entry of the loser is left
        assert len(await delivering.messages(chat, every=True)) == 4


async def test_a_window_is_saved_on(store: ConversationStore, chat: str) -> None:
    await saved(store, chat, 1, 2, 3)
    window = await loaded(store, chat, limit=3)
    assert window.messages == turns(1, 2, 3)[3:]
    assert (await loaded(store, chat, limit=0)).messages == []
    with pytest.raises(UserError):
        await store.load(chat, limit=-1)
    assert len(await grown(store, window, 4)) == 2
    assert (await loaded(store, chat)).messages == turns(1, 2, 3, 4)
    copied = ConversationTypeAdapter.validate_json(ConversationTypeAdapter.dump_json(window))
    assert len(await grown(store, copied, 5)) == 2
    assert (await loaded(store, chat)).messages == turns(1, 2, 3, 4, 5)


async def test_branches(store: ConversationStore, chat: str) -> None:
    await saved(store, chat, 1, 2, 3)
    old = (await store.load_entries(chat) or [])[-1].id
    conversation = await loaded(store, chat)

    branched = await store.branch(chat, at=2, expected_revision=conversation.revision)
    assert branched.messages == turns(1)
    await grown(store, branched, "other")
    assert (await loaded(store, chat)).messages == turns(1, "other")
    assert present(await store.read_record(chat)).branches == [old]

    back = await store.branch(chat, from_entry=old, expected_revision=branched.revision)
    assert back.messages == turns(1, 2, 3)
    await grown(store, back, 4)
    assert (await loaded(store, chat)).messages == turns(1, 2, 3, 4)
    with pytest.raises(ConversationConflict):
        await store.save(branched)
    middle = (await store.load_entries(chat) or [])[1].id
    await store.branch(chat, from_entry=middle, expected_revision=back.revision)
    assert (await loaded(store, chat)).messages == turns(1)
    nothing = await store.branch(chat, at=0, expected_revision=(await loaded(store, chat)).revision)
    assert nothing.messages == (await loaded(store, chat)).messages == []
    await grown(store, nothing, "anew")
    assert (await loaded(store, chat)).messages == turns("anew")


async def test_a_rewritten_history_branches_off(store: ConversationStore, chat: str) -> None:
    first = await saved(store, chat, 1, 2)
    rewritten = Conversation(conversation_id=chat, revision=first.revision, messages=turns(1, "other"))
    new = await store.save(rewritten)
    whole = Conversation(conversation_id=chat, revision=rewritten.revision, messages=turns("summary"))
    await store.save(whole)
    assert [one.message for one in new] == turns("other")
    assert (await loaded(store, chat)).messages == turns("summary")
    branches = present(await store.read_record(chat)).branches
    assert [len(await store.read_history(tip)) for tip in branches] == [4, 4]


async def test_forks(store: ConversationStore, chat: str) -> None:
    source = await saved(store, chat, 1, 2, scope="u1")
    whole = await store.fork(chat, scope="u2")
    at = await store.fork(chat, at=2, new_conversation_id=f"{chat}-at")
    empty = await store.fork(chat, at=0)
    assert (whole.messages, at.messages, empty.messages) == (turns(1, 2), turns(1), [])
    with pytest.raises(ConversationConflict):
        await store.fork(chat, new_conversation_id=f"{chat}-at")

    for one, name in ((source, "source"), (whole, "whole"), (at, "at"), (empty, "empty")):
        await grown(store, one, name)

    assert (await loaded(store, chat)).messages == turns(1, 2, "source")
    assert (await loaded(store, whole.conversation_id, scope="u2")).messages == turns(1, 2, "whole")
    assert (await loaded(store, at.conversation_id, scope="u1")).messages == turns(1, "at")
    assert (await loaded(store, empty.conversation_id)).messages == turns("empty")
    assert len(await store.load_entries(at.conversation_id, limit=3) or []) == 3
    again = await store.fork(at.conversation_id)
    assert again.messages == turns(1, "at")
    assert present(await store.read_record(again.conversation_id)).forked_from == at.conversation_id


async def test_a_fork_keeps_what_it_shares(store: ConversationStore, chat: str) -> None:
    await saved(store, chat, 1, 2)
    fork = await store.fork(chat, at=2)
    await store.delete(chat)
    assert await store.load(chat) is None
    assert (await loaded(store, fork.conversation_id)).messages == turns(1)
    await grown(store, fork, 3)
    assert (await loaded(store, fork.conversation_id)).messages == turns(1, 3)


async def test_scopes_and_lists(store: ConversationStore, chat: str) -> None:
    scope = f"user of {chat}"
    first = await saved(store, f"{chat}-1", 1, scope=scope)
    await saved(store, f"{chat}-2", 1, scope=scope)
    await saved(store, f"{chat}-3", 1)
    await grown(store, first, 2, scope=scope)

    async def listed(**given: Any) -> list[str]:
        return [one.conversation_id for one in await store.list_conversations(**given)]

    assert await listed(scope=scope) == [f"{chat}-1", f"{chat}-2"]
    assert await listed(scope=scope, limit=1) == [f"{chat}-1"]
    assert {f"{chat}-{number}" for number in (1, 2, 3)} <= set(await listed())
    assert await store.load(f"{chat}-1", scope="another") is None
    with pytest.raises(ConversationConflict):
        await store.save(first, scope="another")
    await store.delete(f"{chat}-1", scope="another")
    assert await store.load(f"{chat}-1", scope=scope) is not None
    await store.delete(f"{chat}-1", scope=scope)
    assert await listed(scope=scope) == [f"{chat}-2"]


async def test_deleted_and_begun_again(store: ConversationStore, chat: str) -> None:
    old = await saved(store, chat, 1)
    await store.delete(chat)
    old.messages += turns(2)
    with pytest.raises(ConversationConflict):
        await store.save(old)
    with pytest.raises(ConversationConflict):
        await store.delete_record(chat, expected_revision=str(old.revision))
    await saved(store, chat, "anew")
    assert (await loaded(store, chat)).messages == turns("anew")
    with pytest.raises(ConversationConflict):
        await store.save(old)


async def test_a_head_that_is_nowhere_is_a_conflict(store: ConversationStore, chat: str) -> None:
    head = str(uuid4())
    forked = ConversationRecord(conversation_id=chat, head_id=head, forked_from="gone")
    with pytest.raises(ConversationConflict):
        await store.write_record(forked, expected_revision=None)
    revision = (await saved(store, chat, 1)).revision
    with pytest.raises(ConversationConflict):
        await store.write_record(ConversationRecord(conversation_id=chat, head_id=head), expected_revision=revision)
    assert (await loaded(store, chat)).messages == turns(1)
