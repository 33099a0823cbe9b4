"""Several chats per owner, their totals and their messages: the same whatever of them is delivered when."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis import Event, Message, Page
from letopis.outbox import History, Relay, Retention
from letopis.store import (
    Conversation,
    ConversationRenamed,
    ConversationStarted,
    ConversationStore,
    Figures,
    InvalidInput,
    RecordedMessage,
    Saved,
    Statistics,
)
from tests.support.outboxes import prune
from tests.support.relays import deliver_all
from tests.support.sayings import all_pages, present

DAY = datetime(2026, 3, 1, tzinfo=UTC)


async def active(history: History, owner: str = "42") -> str | None:
    found = await history.active(owner, create=False)
    assert found is None or found.active
    return None if found is None else found.conversation_id


async def all_chats(history: History, owner: str = "42", *, limit: int = 50, **more: Any) -> list[Conversation]:
    return await all_pages(partial(history.conversations, owner=owner, limit=limit, **more), most=limit)


async def names(history: History, **more: Any) -> list[str]:
    found = await all_chats(history, **more)
    assert [one.active for one in found] == [one.conversation_id == await active(history) for one in found]
    return [one.conversation_id for one in found]


class TestActive:
    async def test_the_first_message_begins_a_chat(self, history: History) -> None:
        assert await active(history) is None
        found = present(await history.active("42"))
        assert (found.owner_id, found.active, found.number, found.title) == ("42", True, None, None)
        assert await active(history) == found.conversation_id
        await deliver_all(history)
        again = present(await history.active("42"))
        assert (again.conversation_id, again.number, again.active) == (found.conversation_id, 1, True)

    async def test_calls_at_once_begin_one_chat(self, history: History) -> None:
        found = await asyncio.gather(*(history.active(owner) for owner in ("42", "7") * 10))
        assert len({one.conversation_id for one in found if one is not None}) == 2
        assert len(await all_chats(history)) == 1
        assert not history._parts.conversations._starting

    async def test_a_departure_that_the_outbox_has_let_go_is_not_forgotten(self, history: History) -> None:
        await history.start("42", conversation_id="a")
        await history.start("42", conversation_id="b")
        await history.chat("b").delete()
        await deliver_all(history)
        await prune(history, keep_last=0)
        assert await active(history) == "a"

    async def test_nobodys_conversation_has_to_be_given_to_somebody(self, history: History) -> None:
        await history.append("a", Message.user("hi"))
        with pytest.raises(InvalidInput, match="owner"):
            await history.chat("a").activate()
        await history.chat("a").activate(owner="42")
        for _ in range(2):
            assert await active(history) == "a"
            await deliver_all(history)
        with pytest.raises(InvalidInput, match="another owner"):
            await history.chat("a").activate(owner="7")

    async def test_while_the_store_is_away(self, alone: History) -> None:
        await alone.append("old", Message.user("hi"), owner="42")
        assert await active(alone) == "old"
        assert await active(alone, "7") is None
        await alone.start("42", conversation_id="a")
        await alone.append("old", Message.user("newer"))
        assert await active(alone) == "a"
        page = await alone.conversations(owner="42")
        assert ([one.conversation_id for one in page], page.complete) == (["a", "old"], False)
        await alone.chat("a").delete()
        assert await active(alone) == "old"
        await alone.chat("old").archive()
        assert await active(alone) is None
        begun = present(await alone.active("42"))
        assert await active(alone) == begun.conversation_id


class TestChats:
    @pytest.mark.parametrize("limit", [1, 2, 3, 10])
    @pytest.mark.parametrize("saved", [True, False])
    async def test_the_active_one_is_first_then_the_newest_activity(
        self, history: History, limit: int, saved: bool
    ) -> None:
        for number in range(9):
            await history.start("42", conversation_id=f"c{number}", activate=number == 4)
        await history.append("c1", Message.user("newest"))
        await history.chat("c2").archive()
        await history.chat("c3").delete()
        if saved:
            await deliver_all(history)

        assert await names(history, limit=limit) == ["c4", "c1", "c8", "c7", "c6", "c5", "c0"]
        assert await names(history, limit=limit, states=["archived"]) == ["c2"]
        numbers = [one.number for one in await all_chats(history, limit=limit)]
        assert numbers == ([5, 2, 9, 8, 7, 6, 1] if saved else [None] * 7)

    @pytest.mark.parametrize(
        ("field", "wrong"),
        [("owner", ""), ("after", "x"), ("after", "WzEsMl0"), ("limit", 0), ("states", ["gone"]), ("states", "active")],
    )
    async def test_wrong_arguments(self, history: History, field: str, wrong: Any) -> None:
        with pytest.raises(InvalidInput, check=lambda refused: refused.field == field):
            await history.conversations(**{"owner": "42", field: wrong})


class TestStart:
    async def test_all_that_is_said_of_it(self, history: History) -> None:
        receipt = await history.start("42", title="Tea 🫖", metadata={"model": "small"})
        found = present(await history.chat(receipt.conversation_id).conversation())
        assert (found.title, found.metadata, found.owner_id) == ("Tea 🫖", {"model": "small"}, "42")

    async def test_again_under_the_same_id_fills_what_is_not_known(self, history: History) -> None:
        await history.start("42", conversation_id="a", activate=False)
        await history.start("42", conversation_id="a", title="Tea")
        await history.start("42", conversation_id="a", title="Coffee")
        with pytest.raises(InvalidInput, match="another owner"):
            await history.start("7", conversation_id="a")
        for _ in range(2):
            (found,) = await all_chats(history)
            assert (found.title, found.active) == ("Tea", True)
            await deliver_all(history)


class TestStatistics:
    async def said(self, history: History) -> Statistics:
        """Say something in three conversations; return what it comes to for owner 42."""
        await history.append("a", Message.user("q", tokens=1), owner="42")
        await history.append("a", Message.assistant("a", tokens=2, metadata={"kind": "deep"}))
        await history.append("b", Message.assistant("b", metadata={"kind": "fast"}), owner="42")
        await history.append("x", Message.user("mine", tokens=100), owner="7")
        await history.append("silent", ConversationStarted(owner_id="42"))
        by = {
            None: Figures(questions=1, messages=1, tokens=1),
            "deep": Figures(answers=1, messages=1, tokens=2),
            "fast": Figures(answers=1, messages=1),
        }
        return Statistics(questions=1, answers=2, messages=3, tokens=3, conversations=2, by=by)

    async def test_pending_and_saved_are_the_same(self, history: History) -> None:
        expected = await self.said(history)
        for events in (0, 3, 2, 100):
            if events:
                await Relay(history.outbox, history.store, batch=events).drain_once()
            found = await history.statistics(owner="42", by="kind")
            assert (found, dict(found.by)) == (expected, expected.by)
            assert (await history.statistics()).tokens == 103
        assert await history.store.statistics(owner="42", by="kind") == expected

    async def test_a_period(self, history: History) -> None:
        for hour in range(4):
            event = Event.of(Message.user("q", tokens=10**hour), conversation_id="a")
            await history.append("a", replace(event, occurred_at=DAY + timedelta(hours=hour)), owner="42")
            if hour == 1:
                await deliver_all(history)
        period = {"since": DAY + timedelta(hours=1), "until": DAY + timedelta(hours=3)}
        assert (await history.statistics(owner="42", **period)).tokens == 110
        assert (await history.statistics(**period)).messages == 2

    async def test_what_nobody_said_here_whose_it_is(self, history: History, tmp_path: Path) -> None:
        """The owner is known from another outbox, so only the store can tell."""
        await self.said(history)
        await deliver_all(history)
        async with History(tmp_path / "other.outbox.db", store=history.store, relay=False) as other:
            await other.append("a", Message.user("q", tokens=50))
            await other.append("x", Message.user("q", tokens=500))
            await other.append("new", Message.user("q", tokens=5000))
            found = await other.statistics(owner="42")
            assert (found.tokens, found.conversations) == (53, 2)
            assert (await other.statistics()).tokens == 5653
            await deliver_all(other)
            assert await other.statistics(owner="42") == found

    async def test_what_pending_events_erase_is_in_no_group(self, history: History) -> None:
        async def counted() -> dict[object, int]:
            return {kind: figures.messages for kind, figures in (await history.statistics(by="kind")).by.items()}

        for name in ("a", "b"):
            await history.append(name, Message.user("hi", id="m", metadata={"kind": "v"}))
        await deliver_all(history)
        await history.chat("a").redact("m")
        assert await counted() == {None: 1, "v": 1}, "in its own conversation only"
        for _ in range(2):
            await history.append("b", Message.user("hi", metadata={"kind": "v"}))
            await history.chat("b").reset()
        assert await counted() == {None: 4}, "up to the last reset"

    async def test_while_the_store_is_away(self, alone: History) -> None:
        expected = await self.said(alone)
        found = await alone.statistics(owner="42", by="kind")
        assert not found.complete
        assert replace(found, complete=True) == expected

    async def test_nothing_is_doubled_or_missed_while_it_is_delivered_and_pruned(self, tmp_path: Path) -> None:
        retention = Retention(keep_last=0, keep_for=timedelta(0))
        async with History(tmp_path / "bot.outbox.db", retention=retention) as history:

            async def look() -> None:
                while not done:
                    least = durable
                    found = await history.statistics(owner="42")
                    assert least <= found.tokens <= total
                    assert found.conversations == len(names)
                    looks.append(found.tokens)

            total, durable, done, looks = 0, 0, False, list[int]()
            names = {f"c{number}" for number in range(5)}
            for name in names:
                total += 1
                await history.append(name, Message.user("q", tokens=1), owner="42")
                durable += 1
            looking = asyncio.create_task(look())
            for number in range(80):
                total += 1  # before it is appended, as what was seen by then may hold it
                await history.append(f"c{number % 5}", Message.user("q", tokens=1))
                durable += 1
            assert await history.drained(20)
            done = True
            await looking
            assert (await history.statistics(owner="42")).tokens == total == 85
            assert len(looks) > 3


async def test_every_store_looks_the_same_after_the_delivery(tmp_path: Path, empty_database_url: str) -> None:
    async with (
        ConversationStore.open(empty_database_url, migrate=True, partitions=2) as store,
        History(tmp_path / "bot.outbox.db", store=store, relay=False) as history,
    ):
        for name in ("a", "b", "c", "d"):
            await history.start("42", conversation_id=name)
            await history.append(name, Message.user("q", tokens=1))
        await deliver_all(history)
        await history.append("b", Message.assistant("a", tokens=2))
        await history.chat("c").archive()
        await history.chat("d").delete()
        await history.append("e", Message.user("q", tokens=4), owner="42")
        counted = Statistics(questions=5, answers=1, messages=6, tokens=10, conversations=5)
        for _ in range(2):
            # When d was deleted, b had the newest activity; e came later.
            states = ("active", "archived", "deleted")
            assert (await active(history), await names(history, states=states)) == ("b", ["b", "e", "d", "c", "a"])
            assert await history.statistics(owner="42") == counted
            await deliver_all(history)
        found = present(await store.active("42"))
        assert (found.conversation_id, found.number) == ("b", 2)


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
        history._parts.gateway.store = empty
        page = await history.messages("c1")

    assert ([one.text for one in page], page.complete) == (["2", "3"], False)
