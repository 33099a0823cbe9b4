"""`db verify` finds an active conversation that was changed by hand, and none that a delivery has moved."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.store import ConversationStore, Message
from letopis.store.database.schema import owners
from letopis.store.maintenance.integrity import find_problems
from letopis.store.model.identifiers import uuid7
from tests.conformance.talk import deliver

Bots = tuple[History, History]


async def problems(store: ConversationStore) -> list[str]:
    return [problem async for problem in find_problems(store._runtime.callers_engine)]


def of(owner: str) -> str:
    return f"the active conversation of owner {owner!r} is not the one that was activated last"


async def filled(bots: Bots) -> None:
    """Two owners with two conversations each; of ann's the first is active, bo's active one was archived."""
    one, other = bots
    for owner in ("ann", "bo"):
        for number in (1, 2):
            await one.start(owner, conversation_id=f"{owner}-{number}")
    await deliver(one)
    await other.chat("ann-1").activate(owner="ann")
    await deliver(other)
    await one.chat("bo-2").archive()
    await deliver(one)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        pytest.param({"active_conversation_id": "ann-2"}, ["ann"], id="another conversation"),
        pytest.param({"active_conversation_id": None, "active_partition": None}, ["ann"], id="none"),
        pytest.param({"activated_by": uuid7()}, ["ann"], id="another outbox"),
        pytest.param({"activated_order": 900}, ["ann"], id="another order"),
        pytest.param({"activated_by": None, "activated_order": None}, ["ann"], id="no activation"),
    ],
)
async def test_an_active_conversation_that_was_changed_by_hand_is_found(
    store: ConversationStore, bots: Bots, values: dict[str, Any], found: list[str]
) -> None:
    await filled(bots)
    assert await problems(store) == []
    async with store._runtime.callers_engine.begin() as connection:
        await connection.execute(sa.update(owners).where(owners.c.owner_id == "ann").values(values))

    assert await problems(store) == [of(owner) for owner in found]


async def test_what_deliveries_have_moved_is_no_problem(store: ConversationStore, bots: Bots) -> None:
    one, other = bots
    await filled(bots)
    await one.append("plain", Message.user("hello"), owner="cy")  # never activated
    await one.chat("bo-2").restore()
    await other.chat("ann-1").archive()
    await deliver(one, other)
    assert await problems(store) == []

    # Deleted, with the marker on it; the last one leaves; another is active again.
    await one.chat("bo-2").activate(owner="bo")
    await deliver(one)
    await other.chat("bo-2").delete()
    await deliver(other)
    await one.chat("bo-1").archive()
    await one.chat("ann-2").activate(owner="ann")
    await deliver(one)

    assert await problems(store) == []
