"""Reads of pending events: whatever is delivered when, a read shows every message, once and in order."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis import Page, Saved
from letopis.outbox import History, Relay
from letopis.store import ConversationRenamed, ConversationStore, Delivery, InvalidInput, Message, RecordedMessage
from tests.support.pruning import prune
from tests.support.relays import deliver_all
from tests.support.sayings import all_pages, present


async def deliver(history: History, events: int) -> int:
    """Deliver at most this many events; return how many were delivered."""
    return await Relay(history.outbox, history.store, batch=events).drain_once()


async def texts(history: History, **window: Any) -> list[str]:
    return [message.text for message in await history.messages("c1", **window)]


async def test_a_conversation_is_read_before_the_store_knows_it_and_when_it_holds_a_part(history: History) -> None:
    await history.append("c1", Message.user("one", tokens=1), ConversationRenamed(title="Tea"), owner="42")
    found = present(await history.chat("c1").conversation())
    assert (found.owner_id, found.title, found.message_count, found.tokens) == ("42", "Tea", 1, 1)
    assert (found.version, found.number, found.pending) == (0, None, 3)
    await deliver_all(history)
    await history.append("c1", Message.user("two", tokens=2), Message.user("three", tokens=4))
    found = present(await history.chat("c1").conversation())
    assert (found.version, found.message_count, found.tokens, found.pending, found.number) == (3, 3, 7, 2, 1)


async def test_a_pending_edit_shows_on_a_saved_message(history: History) -> None:
    receipt = await history.append("c1", Message.assistant("draft", id="m"))
    await deliver_all(history)
    await history.chat("c1").edit("m", "final")
    await history.chat("c1").sent("m", platform_ids={"telegram": 7}, sent_as="file", file_path="/tmp/x.md")  # noqa: S108
    [message] = await history.messages("c1", last=1)
    assert (message.text, message.edited, message.saved) == ("final", True, Saved.PENDING)
    assert message.delivery is Delivery.SENT
    assert message.delivery_data["platform_ids"] == {"telegram": 7}
    assert message.event_id == receipt.event_ids[0]


async def test_a_pending_edit_of_a_message_outside_the_window_changes_nothing_shown(history: History) -> None:
    await history.append("c1", Message.user("one", id="m-1"), Message.user("two", id="m-2"))
    await deliver_all(history)
    await history.chat("c1").edit("m-1", "ONE")
    assert await texts(history, last=1) == ["two"]
    assert await texts(history, first=1) == ["ONE"]


async def test_an_edit_behind_the_window_still_shows_in_it(history: History) -> None:
    for number in range(6):
        await history.append("c1", Message.user(str(number), id=f"m-{number}"))
    await history.chat("c1").edit("m-1", "edited")
    page = await history.messages("c1", last=3)
    assert await texts(history, last=3, before=page.next) == ["0", "edited", "2"]
    assert await texts(history, first=2) == ["0", "edited"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("delivered", [0, 1, 5, 9, 13])
async def test_pages_in_both_directions_cover_everything_once(history: History, size: int, delivered: int) -> None:
    """Wherever the border between saved and pending lies."""
    for number in range(6):
        await history.append("c1", Message.user(str(2 * number)), Message.user(str(2 * number + 1)))
    await deliver(history, delivered) if delivered else None
    expected = [str(number) for number in range(12)]
    messages = partial(history.messages, "c1")
    newest_first = await all_pages(partial(messages, last=size), by="before", most=size)
    oldest_first = await all_pages(partial(messages, first=size), by="after", most=size)
    assert [one.text for one in newest_first] == [one.text for one in oldest_first] == expected


async def test_pages_stay_in_place_while_events_are_delivered_between_them(history: History) -> None:
    for number in range(20):
        await history.append("c1", Message.user(str(number)))

    async def read(**place: Any) -> Page[RecordedMessage]:
        if place:
            await deliver(history, 4)
        return await history.messages("c1", last=3, **place)

    found = await all_pages(read, by="before")
    assert [one.text for one in found] == [str(number) for number in range(20)]


async def test_what_neither_store_nor_tail_hold_makes_a_page_incomplete(history: History, tmp_path: Path) -> None:
    for number in range(4):
        await history.append("c1", Message.user(str(number)))
    await deliver_all(history)
    await prune(history, keep_last=2)
    assert await texts(history) == ["0", "1", "2", "3"]
    async with ConversationStore.open(tmp_path / "empty.db") as empty:
        history._parts.gateway._store = empty
        page = await history.messages("c1")

    assert ([one.text for one in page], page.complete) == (["2", "3"], False)


async def listed(history: History, limit: int, **options: Any) -> list[str]:
    found = await all_pages(partial(history.conversations, limit=limit, **options), most=limit)
    return [one.conversation_id for one in found]


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
@pytest.mark.parametrize("delivered", [0, 7, 500])
async def test_the_list_holds_all_once_newest_first(history: History, limit: int, delivered: int) -> None:
    start = datetime(2026, 11, 25, tzinfo=UTC)
    for number in range(9):
        await history.append(
            f"c{number}", Message.user("x"), owner=str(number % 2), occurred_at=start + timedelta(minutes=number)
        )
    await deliver(history, delivered) if delivered else None
    for number in (2, 5):
        await history.append(f"c{number}", Message.user("again"), occurred_at=start + timedelta(hours=number))

    assert await listed(history, limit) == ["c5", "c2", "c8", "c7", "c6", "c4", "c3", "c1", "c0"]
    assert await listed(history, limit, owner="1") == ["c5", "c7", "c3", "c1"]
    assert await listed(history, limit, owner="nobody") == []


async def test_the_list_shows_conversations_as_they_stand(history: History) -> None:
    await history.append("c1", Message.user("one"), owner="42")
    await deliver_all(history)
    await history.append("c1", ConversationRenamed(title="New"), Message.user("two"))
    [found] = await history.conversations(owner="42")
    assert (found.title, found.message_count, found.pending, found.number) == ("New", 2, 2, 1)


async def test_wrong_arguments_are_named(history: History) -> None:
    for wrong in (
        history.messages("c1", last=0),
        history.messages("c1", before="x"),
        history.messages("", last=1),
        history.chat("c1").events(limit=0),
        history.chat("c1").events(after=-1),
        history.chat("\n").conversation(),
    ):
        with pytest.raises(InvalidInput):
            await wrong
