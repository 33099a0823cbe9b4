"""What a deletion retains for forks is stripped as soon as none reads it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    Message,
    ReactionAdded,
)
from letopis.store.testing.outbox import Outbox
from letopis.store.write.applier import Applier
from tests.support.statements import over


@pytest.mark.parametrize("retained", [1, 2])
async def test_erase_released_tells_whether_it_stripped_an_event(
    retained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(_: Applier, marks: object) -> None:
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
        answers = [
            await over(store, lambda connection: applier._eraser.erase_released(connection, now=1)) for _ in range(2)
        ]

    assert answers == [True, False]


async def test_what_a_fork_read_that_begins_and_ends_with_its_parent_is_stripped(tmp_path: Path) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("parent", Message.user("secret"))
        await outbox.deliver(store)
        outbox.append("fork", ConversationStarted(forked_from={"conversation_id": "parent", "version": 1}))
        outbox.append("fork", ConversationDeleted())
        outbox.append("parent", ConversationDeleted())
        await outbox.deliver(store)
    with closing(sqlite3.connect(tmp_path / "history.db")) as connection:
        stored = connection.execute("SELECT data FROM letopis_events").fetchall()

    assert len(stored) == 4
    assert "secret" not in repr(stored)


async def test_reactions_to_messages_off_the_path_are_erased(tmp_path: Path) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("c", Message.user("stays", id="s"), Message.user("popped", id="m"))
        outbox.append("c", ReactionAdded(message_id="m", key="like", value="secret"))
        outbox.append("c", ConversationRewound(to_message_id="s"))
        await outbox.deliver(store)
        outbox.append("c", ConversationDeleted())
        await outbox.deliver(store)
    with closing(sqlite3.connect(tmp_path / "history.db")) as connection:
        stored = connection.execute("SELECT * FROM letopis_messages").fetchall()

    assert len(stored) == 2
    assert "secret" not in repr(stored)
