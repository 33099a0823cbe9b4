"""What a deletion retains for forks is stripped as soon as none reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis.store import ConversationDeleted, ConversationStarted, ConversationStore, Message
from letopis.store.testing.outbox import Outbox
from letopis.store.write.applier import Applier
from tests.support.sayings import new_outbox, send
from tests.support.sqlite_rows import rows
from tests.support.statements import over, statements_of


@pytest.mark.parametrize("retained", [1, 2])
async def test_erase_released_tells_whether_it_stripped_an_event(
    retained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(_: Applier, marks: object) -> None:
        """The process ends before the second transaction of an apply."""

    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("parent", Message.user("one"), Message.user("two"))
        forked = ConversationStarted(forked_from={"conversation_id": "parent", "version": retained})
        await send(store, outbox, "fork", forked)
        await send(store, outbox, "parent", ConversationDeleted())
        eraser = (await store._runtime.prepared()).applier._eraser
        monkeypatch.setattr(Applier, "_erase_released", crash)
        await send(store, outbox, "fork", ConversationDeleted())
        answers = [await over(store, lambda connection: eraser.erase_released(connection, now=1)) for _ in range(2)]

    assert answers == [True, False]


async def test_erase_released_locks_no_conversation_that_retains_nothing(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await new_outbox(store, "bystander", Message.user("one"))
        eraser = (await store._runtime.prepared()).applier._eraser
        with statements_of(store) as ran:
            assert not await over(store, lambda connection: eraser.erase_released(connection, now=1))

    assert ran
    assert "bystander" not in repr(ran)


async def test_what_a_fork_read_that_begins_and_ends_with_its_parent_is_stripped(tmp_path: Path) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "parent", Message.user("secret"))
        forked = ConversationStarted(forked_from={"conversation_id": "parent", "version": 1})
        outbox.append("fork", forked, ConversationDeleted())
        await send(store, outbox, "parent", ConversationDeleted())
    stored = rows(tmp_path / "history.db", "SELECT data FROM letopis_events")

    assert len(stored) == 4
    assert "secret" not in repr(stored)
