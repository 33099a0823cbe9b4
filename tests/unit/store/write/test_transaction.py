"""A store notes when it last heard of an outbox, once an hour, and takes nothing once it was moved."""

from pathlib import Path

import pytest

from letopis.store import ConversationStore, FaultClass, Message
from letopis.store.relocation.mover import move
from letopis.store.testing.outbox import Outbox
from letopis.testing import ManualClock
from tests.support.sayings import new_outbox, raises_fault, send
from tests.support.sqlite_rows import rows


@pytest.mark.parametrize(("seconds", "noted"), [(3_599, False), (3_601, True)])
async def test_last_seen_is_written_once_an_hour(seconds: int, noted: bool, tmp_path: Path) -> None:
    clock, outbox, seen = ManualClock(), Outbox(), []
    async with ConversationStore.open(tmp_path / "history.db", now=clock.now) as store:
        for _ in range(2):
            await send(store, outbox, "c", Message.user("words"))
            seen += rows(tmp_path / "history.db", "SELECT last_seen_at FROM letopis_origins")[0]
            clock.advance(seconds)

    assert seen[1] - seen[0] == noted * seconds * 1_000_000


async def test_moved_store_refuses_events_that_it_holds(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox = await new_outbox(store, "c", Message.user("words"))
        await move(tmp_path / "history.db", tmp_path / "new.db")
        with raises_fault(FaultClass.WRONG_STORE, "moved", match=r"new\.db: deliver there"):
            await store.apply(outbox.origin, [outbox.batch("c")])
