"""Records of a history: from any loop, pending and stored together, and what is known of them without the store."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis import ABSENT, History, InvalidInput, RecordConflict, StoreUnavailable
from tests.support.outboxes import locked_out
from tests.support.relays import deliver_all, sql
from tests.support.sayings import all_pages, present

CP = ("cp",)
TAGS = {"run": "r"}


async def test_a_record_that_was_put_again_since_it_was_read_is_not_deleted(bot: History) -> None:
    records = bot.records(conversation="chat-1")
    for key in "abc":
        await records.put(CP, key, key)
    await deliver_all(bot)
    read = await records.list(values=False)
    await records.put(CP, "b", "again")
    receipts = await records.delete_many([(CP, "c"), (CP, "never there")], unchanged=read.items[:2])

    assert [(one.kept, one.revision is None) for one in receipts] == [(False, True)] * 3 + [(True, False)]
    for _ in range(2):
        assert [(one.key, one.value) for one in await records.list()] == [("b", "again")]
        await deliver_all(bot)
    for keys, named in (([], "keys"), ([(CP, "b"), (CP, "")], "key")):
        with pytest.raises(InvalidInput, match=named):
            await records.delete_many(keys)
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


async def found(history: History, limit: int, **order: Any) -> list[str]:
    pages = await all_pages(partial(history.records.find, TAGS, limit=limit, **order), most=limit)
    return [one.key for one in pages]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_find_merges_pending_records_in_either_order(history: History, limit: int) -> None:
    one, two = history.records(conversation="one"), history.records(conversation="two")
    for records, key in ((one, "1"), (one, "4"), (two, "5"), (one, "gone")):
        await records.put(CP, key, 0, tags=TAGS)
    await deliver_all(history)
    for records, key in ((two, "2"), (one, "3")):
        await records.put(CP, key, 0, tags=TAGS)
    await one.delete(CP, "gone")
    await two.put(CP, "6", 0, tags={"run": "other"})

    assert await found(history, limit) == ["1", "3", "4", "2", "5"]
    assert await found(history, limit, reverse=True) == ["5", "4", "3", "2", "1"]
    assert await found(history, limit, reverse=True, end="4") == ["3", "2", "1"]
    assert await found(history, limit, end="3") == ["1", "2"]


async def test_what_the_outbox_does_not_know_does_not_exist(alone: History) -> None:
    for needs_the_store in (alone.records(conversation="chat").get(CP, "state"), alone.records.scopes()):
        with pytest.raises(StoreUnavailable):
            await needs_the_store
    records = alone.records(conversation="chat", new=True)
    assert await records.get(CP, "state") is None
    assert (await records.list()).items == () and (await records.list()).complete
    with pytest.raises(StoreUnavailable):
        await alone.records(conversation="chat").put(CP, "state", 1, expected=ABSENT)

    first = await records.put(CP, "state", 1, expected=ABSENT)

    with pytest.raises(RecordConflict):
        await records.put(CP, "state", 2, expected=ABSENT)
    assert first.revision is not None
    await records.put(CP, "state", 2, expected=first.revision)
    assert present(await records.get(CP, "state")).value == 2
    assert [one.value for one in await records.list()] == [2]
    await records.delete(CP, "state")
    assert await records.get(CP, "state") is None


async def test_a_wrong_claim_loses_nothing_and_is_told(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    async with History(tmp_path / "other.outbox.db", store=store, relay=False, watch=False) as other:
        await other.records(conversation="chat").put(CP, "state", "stored")
        await deliver_all(other)

    async with locked_out(tmp_path / "bot.outbox.db", store) as history:
        records = history.records(conversation="chat", new=True)
        assert await records.get(CP, "state") is None
        conditional = await records.put(CP, "state", "begun", expected=ABSENT)
        await records.put(CP, "other", "kept")

    async with History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False) as history:
        receipt = await history.records(conversation="chat").put(CP, "third", 3)
        await deliver_all(history)
        assert await receipt.saved()
        records = history.records(conversation="chat", new=True)
        assert {one.key: one.value for one in await records.list()} == {"state": "stored", "other": "kept", "third": 3}
        # While the store answers, the claim changes nothing.
        assert present(await records.get(CP, "state")).value == "stored" != conditional.revision
        with pytest.raises(RecordConflict):
            await records.put(CP, "state", "again", expected=ABSENT)
