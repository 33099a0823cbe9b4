"""What a deletion retains for forks is stripped as soon as none reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis.store import ConversationDeleted, ConversationStarted, ConversationStore, Message
from letopis.store.testing.outbox import Outbox
from letopis.store.write.applier import Applier


@pytest.mark.parametrize("retained", [1, 2])
async def test_erase_released_tells_whether_it_stripped_an_event(
    retained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(_: Applier) -> None:
        """The process ends before the second transaction of an apply."""

    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("parent", Message.user("one"), Message.user("two"))
        outbox.append("fork", ConversationStarted(forked_from={"conversation_id": "parent", "version": retained}))
        await outbox.deliver(store)
        outbox.append("parent", ConversationDeleted())
        await outbox.deliver(store)
        applier = (await store._runtime.prepared()).applier
        monkeypatch.setattr(Applier, "_erase_released", crash)
        outbox.append("fork", ConversationDeleted())
        await outbox.deliver(store)
        async with applier._engine.begin() as connection:
            answers = [await applier._eraser.erase_released(connection, now=1) for _ in range(2)]

    assert answers == [True, False]
