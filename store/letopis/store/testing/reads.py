"""Prove that pages are exact and stay in place while events are delivered."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from letopis.store import (
    Conversation,
    ConversationStarted,
    Event,
    InvalidInput,
    Message,
    MessageSent,
    RecordedEvent,
    Text,
    ToolCall,
    UnknownPart,
)
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox

ONLY = "chat-1"


async def fill(store: DestinationStore) -> Outbox:
    """Deliver ten messages at the versions 2, 4 ... 20, each followed by its delivery."""
    outbox = Outbox()
    outbox.append(ONLY, ConversationStarted(owner_id="42"))
    for number in range(1, 11):
        outbox.append(ONLY, Message.user(str(number), id=f"m-{number}"))
        outbox.append(ONLY, MessageSent(message_id=f"m-{number}"))
    await outbox.deliver(store)
    return outbox


WINDOWS: tuple[tuple[dict[str, Any], Iterable[int], str | None], ...] = (
    ({}, range(1, 11), None),
    ({"last": 3}, [8, 9, 10], "16"),
    ({"last": 10}, range(1, 11), None),
    ({"last": 11}, range(1, 11), None),
    ({"last": 3, "before": 16}, [5, 6, 7], "10"),
    ({"last": 3, "before": "16"}, [5, 6, 7], "10"),
    ({"last": 3, "before": 6}, [1, 2], None),
    ({"last": 3, "before": 2}, [], None),
    ({"last": 3, "before": 0}, [], None),
    ({"last": 3, "after": 18}, [10], None),
    ({"first": 3}, [1, 2, 3], "6"),
    ({"first": 3, "after": 6}, [4, 5, 6], "12"),
    ({"first": 3, "after": "6"}, [4, 5, 6], "12"),
    ({"first": 3, "after": 18}, [10], None),
    ({"first": 3, "after": 20}, [], None),
    ({"first": 3, "after": 2**63 - 1}, [], None),
    ({"first": 2, "after": 4, "before": 10}, [3, 4], None),
    ({"after": 4, "before": 10}, [3, 4], None),
    ({"before": 6}, [1, 2], None),
    ({"after": 16}, [9, 10], None),
    ({"last": 2, "before": 11}, [4, 5], "8"),
)


NO_WINDOWS: tuple[dict[str, Any], ...] = (
    {"last": 0},
    {"last": -1},
    {"last": True},
    {"last": 1.5},
    {"last": "3"},
    {"first": 0},
    {"first": 2, "last": 2},
    {"before": -1},
    {"before": 2**63},
    {"before": "x"},
    {"before": "-1"},
    {"before": ""},
    {"before": "١"},
    {"after": 1.0},
    {"after": "9" * 20},
    {"after": True},
)


async def many(store: DestinationStore, count: int) -> Outbox:
    """Deliver conversations of two owners, later ones newer; every third has the time of the one before."""
    outbox = Outbox()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(count):
        outbox.append(
            f"chat-{number:03}",
            Event(
                type="conversation.started",
                data={"owner_id": str(number % 2)},
                occurred_at=start + timedelta(seconds=number - (number % 3 == 2)),
            ),
        )
    await outbox.deliver(store)
    return outbox


async def walk(store: DestinationStore, **options: Any) -> list[Conversation]:
    seen: list[Conversation] = []
    after = None
    while True:
        page = await store.conversations(after=after, **options)
        assert len(page) <= options["limit"]
        seen.extend(page)
        if (after := page.next) is None:
            return seen


NO_CURSORS: tuple[Any, ...] = (
    "",
    "x",
    "%%%",
    "bnVsbA",
    "WzFd",
    "WzEsMl0",
    "WyJ4IiwieCJd",
    "W10",
    "WzFlOTksIngiXQ",
    "я",
    "A" * 5000,
    7,
)


class ReadConformance(StoreConformance):
    """Read messages, events and conversations a page at a time."""

    @pytest.fixture
    async def filled(self, store: DestinationStore) -> Outbox:
        """Return an outbox that :func:`fill` has delivered from."""
        return await fill(store)

    async def test_an_invalid_window_is_refused(self, store: DestinationStore) -> None:
        for window in NO_WINDOWS:
            with pytest.raises(InvalidInput):
                await store.messages(ONLY, **window)

    async def test_walking_back_misses_and_repeats_nothing_while_more_is_said(
        self, store: DestinationStore, filled: Outbox
    ) -> None:
        seen: list[str] = []
        before = None
        while True:
            page = await store.messages(ONLY, last=3, before=before)
            seen = [message.text for message in page] + seen
            filled.append(ONLY, Message.user("meanwhile"))
            await filled.deliver(store)
            if (before := page.next) is None:
                break

        assert seen == [str(number) for number in range(1, 11)]

    async def test_events_are_paged_by_version(self, store: DestinationStore, filled: Outbox) -> None:
        seen: list[RecordedEvent] = []
        after: int | str = 0
        while True:
            page = await store.events(ONLY, after=after, first=4)
            seen.extend(page)
            if page.next is None:
                break
            after = page.next

        assert [event.version for event in seen] == list(range(1, 22))
        assert [event.event_id for event in seen] == [event.event_id for event in filled.lanes[ONLY]]
        with pytest.raises(InvalidInput, match="limit"):
            await store.events(ONLY, first=0)
        with pytest.raises(InvalidInput, match="after"):
            await store.events(ONLY, after="x")

    async def test_conversations_are_listed_by_activity(self, store: DestinationStore) -> None:
        await many(store, 30)
        for limit in (1, 2, 7, 29, 30, 31):
            every = await walk(store, limit=limit)
            mine = await walk(store, owner="1", limit=limit)

            order = [(conversation.updated_at, conversation.conversation_id) for conversation in every]
            assert len(every) == 30 and order == sorted(order, reverse=True)
            assert mine == [conversation for conversation in every if conversation.owner_id == "1"]
            assert await walk(store, owner="nobody", limit=limit) == []

    async def test_a_list_repeats_nothing_when_a_conversation_moves_to_the_front(self, store: DestinationStore) -> None:
        outbox = await many(store, 12)
        page = await store.conversations(limit=5)
        seen = [conversation.conversation_id for conversation in page]
        outbox.append("chat-010", Message.user("again"))
        outbox.append("chat-new", Message.user("new"))
        await outbox.deliver(store)
        while page.next is not None:
            page = await store.conversations(limit=5, after=page.next)
            seen.extend(conversation.conversation_id for conversation in page)

        assert seen == [f"chat-{number:03}" for number in reversed(range(12))]
        assert {one.conversation_id for one in await store.conversations(limit=2)} == {"chat-010", "chat-new"}

    async def test_an_invalid_cursor_is_refused(self, store: DestinationStore) -> None:
        for after in NO_CURSORS:
            with pytest.raises(InvalidInput, match="after"):
                await store.conversations(after=after)

    async def test_a_page_without_a_size_is_refused(self, store: DestinationStore) -> None:
        sizes: tuple[Any, ...] = (0, -1, 10_001, True, 1.0, "5", None)
        for limit in sizes:
            with pytest.raises(InvalidInput, match="limit"):
                await store.conversations(limit=limit)

    async def test_parts_come_back_as_parts(self, store: DestinationStore) -> None:
        parts = (
            Text("see"),
            ToolCall("c-1", "weather", {"city": "Тверь"}),
            UnknownPart({"type": "hologram", "x": [1]}),
        )
        outbox = Outbox()
        outbox.append(ONLY, Message.assistant(parts))
        await outbox.deliver(store)

        assert (await store.messages(ONLY))[0].content == parts

    async def test_a_window_holds_what_it_says(self, store: DestinationStore, filled: Outbox) -> None:
        for window, expected, following in WINDOWS:
            page = await store.messages(ONLY, **window)

            assert [message.text for message in page] == [str(number) for number in expected], window
            assert page.next == following and page.complete, window

    async def test_nothing_is_known_of_a_conversation_that_is_not_there(self, store: DestinationStore) -> None:
        assert await store.conversation(ONLY) is None
        assert tuple(await store.messages(ONLY, last=5)) == ()
        assert tuple(await store.events(ONLY)) == ()
