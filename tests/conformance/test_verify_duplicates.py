"""What two outboxes deliver once is no gap to `db verify`, and a gap behind it is found all the same."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from letopis.store import ConversationStore, Message
from letopis.store.database.schema import events, lanes
from letopis.store.maintenance.integrity import find_problems
from letopis.store.testing.outbox import Outbox

CHAT = "chat"


async def problems(store: ConversationStore) -> list[str]:
    return [problem async for problem in find_problems(store._runtime.callers_engine)]


async def twice_said(store: ConversationStore) -> Outbox:
    """Two outboxes that have the first and the third message in common; return the second one."""
    one, two = Outbox("one"), Outbox("two")
    for number in (1, 3):
        one.append(CHAT, Message.user("the same", id=f"m-{number}"))
    await one.deliver(store)
    for number in (1, 2, 3):
        two.append(CHAT, Message.user("the same", id=f"m-{number}"))
        await two.deliver(store)
        assert await problems(store) == []
    return two


async def duplicates(store: ConversationStore, outbox: Outbox) -> int:
    counted = sa.select(lanes.c.duplicates).where(lanes.c.origin_id == outbox.origin.origin_id)
    async with store._runtime.callers_engine.connect() as connection:
        return int((await connection.execute(counted)).scalar_one())


async def test_a_message_of_two_outboxes_is_no_problem(store: ConversationStore) -> None:
    two = await twice_said(store)
    assert await duplicates(store, two) == 2
    two.append(CHAT, Message.user("alone", id="m-4"))
    await two.deliver(store)
    await store.apply(two.origin, [two.batch(CHAT)])  # all of it once more, as after a lost acknowledgement

    assert await problems(store) == []
    assert await duplicates(store, two) == 2


@pytest.mark.parametrize("lost", ["m-2", "m-1"])
async def test_a_lost_event_of_such_a_lane_is_found(store: ConversationStore, lost: str) -> None:
    await twice_said(store)
    async with store._runtime.callers_engine.begin() as connection:
        await connection.execute(sa.delete(events).where(events.c.data.contains(f'"{lost}"')))

    assert any("the counter of an outbox does not match" in problem for problem in await problems(store))


async def test_a_gap_without_a_duplicate_is_found(store: ConversationStore) -> None:
    outbox = Outbox("one")
    outbox.append(CHAT, *(Message.user("hello", id=f"m-{number}") for number in (1, 2, 3)))
    await outbox.deliver(store)
    async with store._runtime.callers_engine.begin() as connection:
        await connection.execute(sa.delete(events).where(events.c.sequence == 2))

    found = await problems(store)
    assert f"conversation {CHAT!r}, version 3: sequence 3 of its outbox follows 1" in found
    assert f"conversation {CHAT!r}: the counter of an outbox does not match its lane" in found
