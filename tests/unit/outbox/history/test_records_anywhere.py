"""Records of a history that is not open yet, from any loop, and what is known of them while the store is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from letopis import ABSENT, History, InvalidInput, Records, StoreUnavailable
from tests.support.relays import deliver_all, sql

CP = ("cp",)


async def keys(records: Records) -> list[str]:
    return [one.key for one in await records.list()]


def test_records_open_the_history_and_work_in_any_loop(tmp_path: Path) -> None:
    history = History(tmp_path / "bot.outbox.db")
    records = history.records(conversation="chat-1")

    async def main() -> list[str]:
        await records.put(CP, "here", 1)
        await asyncio.to_thread(lambda: asyncio.run(records.put(CP, "there", 2)))
        async with history.transaction() as tx:
            await tx.put(records, CP, "together", 3, expected=ABSENT)
        return await keys(records)

    async def again() -> list[str]:
        async with history:
            return await keys(records)

    assert asyncio.run(main()) == ["here", "there", "together"]
    assert asyncio.run(again()) == ["here", "there", "together"]  # opened again, in another loop


async def test_several_are_deleted_in_one_append(bot: History) -> None:
    records = bot.records(conversation="chat-1")
    for key in "abcd":
        await records.put(CP, key, key)
    await deliver_all(bot)
    receipts = await records.delete_many([(CP, "a"), (CP, "c"), (CP, "never there")])

    assert [one.revision for one in receipts] == [None] * 3
    for _ in range(2):
        assert await keys(records) == ["b", "d"]
        await deliver_all(bot)
    for wrong, named in (([], "keys"), ([(CP, "b"), (CP, "")], "key")):
        with pytest.raises(InvalidInput, match=named):
            await records.delete_many(wrong)
    assert await keys(records) == ["b", "d"]


async def test_a_record_that_was_put_again_since_it_was_read_is_not_deleted(bot: History) -> None:
    records = bot.records(conversation="chat-1")
    for key in "abc":
        await records.put(CP, key, key)
    await deliver_all(bot)
    read = await records.list(values=False)
    await records.put(CP, "b", "again")
    receipts = await records.delete_many([(CP, "c")], unchanged=read.items[:2])

    assert [one.kept for one in receipts] == [False, False, True]
    for _ in range(2):
        assert [(one.key, one.value) for one in await records.list()] == [("b", "again")]
        await deliver_all(bot)
    elsewhere = bot.records(conversation="chat-2")
    for wrong in (read.items, [(CP, "b")], 7):
        with pytest.raises(InvalidInput, match="unchanged"):
            await elsewhere.delete_many([], unchanged=wrong)  # type: ignore[arg-type]


async def test_a_list_may_be_incomplete_while_the_store_is_away(alone: History) -> None:
    records = alone.records(conversation="chat-1")
    for number in range(5):
        await records.put(CP, f"{number}", number)
    await records.put(("other",), "k", 0)
    await records.delete(CP, "3")
    with pytest.raises(StoreUnavailable):
        await records.list(CP)

    page = await records.list(CP, reverse=True, limit=2, incomplete=True)
    rest = await records.list(CP, reverse=True, limit=9, after=page.next, incomplete=True)
    found = [(one.key, one.value, one.current, one.saved) for one in page]
    assert found == [("4", 4, False, False), ("2", 2, False, False)]
    assert [one.key for one in rest] == ["1", "0"]
    assert (page.complete, rest.complete, rest.next) == (False, False, None)
    assert [one.key for one in await records.list(CP, start="1", end="3", incomplete=True)] == ["1", "2"]
    await records.delete_where(CP)
    await sql(alone.outbox, "UPDATE letopis_outbox_lanes SET delivered = head")
    assert [(one.key, one.saved) for one in await records.list(incomplete=True)] == [("k", True)]


async def test_a_list_is_complete_while_the_store_answers(bot: History) -> None:
    records = bot.records(conversation="chat-1")
    await records.put(CP, "a", 1)
    page = await records.list(CP, incomplete=True)
    assert page.complete and [one.current for one in page] == [True]
