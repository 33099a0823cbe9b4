"""``in_store=True``: a refusal is answered at once, with nothing written; while the store is away, it says so."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.outbox.history.append import Appender
from letopis.store import (
    ConversationGone,
    ConversationStore,
    Message,
    NotSaved,
    StoreUnavailable,
    VersionConflict,
)
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import count, deliver, path
from tests.support.sayings import Bots

pytestmark = [on_sqlite, pytest.mark.usefixtures("store_url")]

CHAT = "chat-1"


@pytest.fixture
async def bots(tmp_path: Path, store: ConversationStore) -> AsyncIterator[tuple[History, History]]:
    """Two outboxes that feed one store: the first with a relay, the second delivers when told to."""
    async with (
        History(tmp_path / "one.outbox.db", store=store, watch=False) as one,
        History(tmp_path / "two.outbox.db", store=store, relay=False, watch=False) as two,
    ):
        yield one, two


async def test_it_returns_once_the_store_lets_it_stand(one: History, two: History, store: ConversationStore) -> None:
    await one.append(CHAT, Message.user("what?", id="q"))
    # The question is pending still: what it is answered by comes after it.
    page = await one.messages(CHAT)
    receipt = await one.append(CHAT, Message.assistant("so", id="a"), expected=page, in_store=True)
    assert [found.id for found in await store.messages(CHAT)] == ["q", "a"]
    assert await receipt.saved(60)
    # A retry finds it there, although the conversation has moved on.
    await two.append(CHAT, Message.user("more", id="more"))
    await deliver(two)
    await one.append(CHAT, Message.assistant("so", id="a"), expected=page, in_store=True)
    assert await path(one) == ["q", "a", "more"]


@pytest.mark.parametrize("how", ["expected", "after"])
async def test_a_refusal_comes_at_once_and_nothing_is_written(one: History, two: History, how: str) -> None:
    await one.append(CHAT, Message.user("what?", id="q"))
    await one.drained(10)
    page: Any = await one.messages(CHAT)
    await two.append(CHAT, Message.assistant("first", id="first"))
    await deliver(two)
    before = (await one.status()).lanes, await count(one, "letopis_outbox_events")
    with pytest.raises(VersionConflict, match="history store") as refused:
        await one.append(CHAT, Message.assistant("late", id="late"), in_store=True, **{how: page})
    assert (refused.value.in_store, refused.value.set_aside) == (True, False)
    assert refused.value.actual > refused.value.expected
    assert ((await one.status()).lanes, await count(one, "letopis_outbox_events")) == before
    assert await path(two) == ["q", "first"]
    # Whoever reads again is not late; a local writer is seen locally, as ever.
    page = await one.messages(CHAT)
    await one.append(CHAT, Message.assistant("late", id="late"), in_store=True, **{how: page})
    with pytest.raises(VersionConflict) as local:
        await one.append(CHAT, Message.assistant("x"), in_store=True, **{how: page})
    assert not local.value.set_aside
    assert await path(two) == ["q", "first", "late"]


async def test_what_was_first_by_moments_sets_the_append_aside(bots: Bots, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = bots
    await one.append(CHAT, Message.user("what?", id="q"))
    assert await one.drained(60)
    page = await one.messages(CHAT)
    real = Appender._conflict_before

    async def slow(self: Appender, *args: Any, **options: Any) -> Any:
        found = await real(self, *args, **options)
        await two.append(CHAT, Message.assistant("first", id="first"))
        await deliver(two)
        return found

    monkeypatch.setattr(Appender, "_conflict_before", slow)
    with pytest.raises(VersionConflict, match="set aside") as refused:
        await one.append(CHAT, Message.assistant("late", id="late"), expected=page, in_store=True, timeout=60)
    assert refused.value.set_aside
    assert await path(one) == await path(two) == ["q", "first"]


async def test_a_deleted_conversation_refuses(one: History, two: History) -> None:
    await one.append(CHAT, Message.user("what?", id="q"))
    assert await one.drained(60)
    page = await one.messages(CHAT)
    await two.chat(CHAT).delete()
    await deliver(two)
    with pytest.raises(ConversationGone):
        await one.append(CHAT, Message.assistant("late"), expected=page, in_store=True)


async def test_without_a_delivery_it_is_written_and_not_confirmed(two: History) -> None:
    message = Message.user("x", id="x")
    with pytest.raises(NotSaved) as waiting:
        await two.append(CHAT, message, expected=0, in_store=True, timeout=0.05)
    assert len(waiting.value.event_ids) == 1
    assert await path(two) == ["x"]
    await deliver(two)
    assert (await two.append(CHAT, message, expected=0, in_store=True, timeout=10)).message_id == "x"


async def test_without_a_condition_it_returns_once_it_is_saved(
    one: History, alone: History, store: ConversationStore
) -> None:
    await one.append(CHAT, Message.user("what?", id="q"), in_store=True, timeout=60)
    assert [found.id for found in await store.messages(CHAT)] == ["q"]
    with pytest.raises(NotSaved):
        await alone.append(CHAT, Message.user("what?", id="q"), in_store=True, timeout=0.05)
    assert await path(alone) == ["q"]


async def test_while_the_store_is_away_it_says_so_and_writes_nothing(alone: History) -> None:
    await alone.append(CHAT, Message.user("what?", id="q"))
    page = await alone.messages(CHAT)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="what other outboxes have written"):
            await alone.append(CHAT, Message.assistant("so", id="a"), expected=page, in_store=True)
    assert await path(alone) == ["q"]
    late = await alone.append(CHAT, Message.assistant("so", id="a"), expected=page)  # the default still works
    assert not await late.saved(0.01)
