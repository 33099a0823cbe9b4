"""Reads of pending events: whatever is delivered when, a read shows every message, once and in order."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis import Page, Saved
from letopis.outbox import History, Relay
from letopis.store import ConversationRenamed, ConversationStore, Message, RecordedMessage
from tests.support.pruning import prune
from tests.support.relays import deliver_all
from tests.support.sayings import all_pages, present


async def deliver(history: History, events: int) -> int:
    """Deliver at most this many events; return how many were delivered."""
    return await Relay(history.outbox, history.store, batch=events).drain_once()


async def test_a_conversation_is_read_before_the_store_knows_it_and_when_it_holds_a_part(history: History) -> None:
    await history.append("c1", Message.user("one", tokens=1), ConversationRenamed(title="Tea"), owner="42")
    found = present(await history.chat("c1").conversation())
    assert (found.owner_id, found.title, found.message_count, found.tokens) == ("42", "Tea", 1, 1)
    assert (found.version, found.number, found.pending) == (0, None, 3)
    await deliver_all(history)
    await history.append("c1", Message.user("two", tokens=2), Message.user("three", tokens=4))
    found = present(await history.chat("c1").conversation())
    assert (found.version, found.message_count, found.tokens, found.pending, found.number) == (3, 3, 7, 2, 1)


async def test_a_pending_edit_shows_wherever_its_message_lies(history: History) -> None:
    for number in range(6):
        await history.append("c1", Message.user(str(number), id=f"m-{number}"))
    await deliver(history, 4)
    await history.chat("c1").edit("m-1", "edited")
    page = await history.messages("c1", last=3)
    assert [one.text for one in page] == ["3", "4", "5"]
    assert [one.text for one in await history.messages("c1", last=3, before=page.next)] == ["0", "edited", "2"]
    first = await history.messages("c1", first=2)
    assert [(one.text, one.edited, one.saved) for one in first] == [
        ("0", False, Saved.SAVED),
        ("edited", True, Saved.PENDING),
    ]


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
    assert len(await history.messages("c1")) == 4
    async with ConversationStore.open(tmp_path / "empty.db") as empty:
        history._parts.gateway._store = empty
        page = await history.messages("c1")

    assert ([one.text for one in page], page.complete) == (["2", "3"], False)
