"""A caller who says that a conversation is new can begin it while the history store is down."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis import ABSENT, History, RecordConflict, StoreUnavailable
from tests.support.outages import locked_out
from tests.support.relays import deliver_all
from tests.support.sayings import present

NAMESPACE = ("agent",)


async def test_what_the_outbox_does_not_know_does_not_exist(alone: History) -> None:
    with pytest.raises(StoreUnavailable):
        await alone.records(conversation="chat").get(NAMESPACE, "state")
    records = alone.records(conversation="chat", new=True)
    assert await records.get(NAMESPACE, "state") is None
    assert (await records.list()).items == () and (await records.list()).complete
    with pytest.raises(StoreUnavailable):
        await alone.records(conversation="chat").put(NAMESPACE, "state", 1, expected=ABSENT)

    first = await records.put(NAMESPACE, "state", 1, expected=ABSENT)

    with pytest.raises(RecordConflict):
        await records.put(NAMESPACE, "state", 2, expected=ABSENT)
    assert first.revision is not None
    await records.put(NAMESPACE, "state", 2, expected=first.revision)
    assert present(await records.get(NAMESPACE, "state")).value == 2
    assert [one.value for one in await records.list()] == [2]
    await records.delete(NAMESPACE, "state")
    assert await records.get(NAMESPACE, "state") is None


async def test_a_wrong_claim_loses_nothing_and_is_told(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    async with History(tmp_path / "other.outbox.db", store=store, relay=False, watch=False) as other:
        await other.records(conversation="chat").put(NAMESPACE, "state", "stored")
        await deliver_all(other)

    async with locked_out(tmp_path / "bot.outbox.db", store) as history:
        records = history.records(conversation="chat", new=True)
        assert await records.get(NAMESPACE, "state") is None
        conditional = await records.put(NAMESPACE, "state", "begun", expected=ABSENT)
        await records.put(NAMESPACE, "other", "kept")

    async with History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False) as history:
        receipt = await history.records(conversation="chat").put(NAMESPACE, "third", 3)
        await deliver_all(history)
        assert await receipt.saved()
        records = history.records(conversation="chat", new=True)
        assert {one.key: one.value for one in await records.list()} == {"state": "stored", "other": "kept", "third": 3}
        # While the store answers, the claim changes nothing.
        assert present(await records.get(NAMESPACE, "state")).value == "stored" != conditional.revision
        with pytest.raises(RecordConflict):
            await records.put(NAMESPACE, "state", "again", expected=ABSENT)
