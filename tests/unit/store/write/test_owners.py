"""When the active conversation leaves, the next one is chosen by activity before that."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from letopis.store import ConversationArchived, ConversationStarted, ConversationStore, Event, Message
from letopis.store.model.event_types import Body, ConversationActivated
from letopis.store.testing.outbox import Outbox
from tests.support.sayings import send
from tests.support.sqlite_rows import rows


def at(second: int, what: Message | Body) -> Event:
    return Event.of(what, conversation_id="", occurred_at=datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC))


@pytest.mark.parametrize(
    ("before", "together", "active"),
    [
        (3, [8, 30], "c"),  # c had activity at 10; what b says at 30 is too late
        (3, [15, 30], "b"),
        (12, [30], "b"),
        (3, [30], "c"),
        (20, [], "b"),  # at the very moment
    ],
)
async def test_next_active_conversation_had_the_newest_activity_when_the_other_left(
    before: int, together: list[int], active: str, tmp_path: Path
) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        for number, name in enumerate("abc"):
            outbox.append(name, at(number, ConversationStarted(owner_id="42")))
        outbox.append("a", at(3, ConversationActivated()))
        outbox.append("b", at(before, Message.user("before")))
        await send(store, outbox, "c", at(10, Message.user("activity")))
        outbox.append("a", at(20, ConversationArchived()))
        await send(store, outbox, "b", *(at(second, Message.user("together")) for second in together))

    assert rows(tmp_path / "history.db", "SELECT active_conversation_id FROM letopis_owners") == [(active,)]


async def test_a_conversation_that_began_after_the_other_left_does_not_become_active(tmp_path: Path) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("a", at(1, ConversationStarted(owner_id="42")), at(2, ConversationActivated()))
        outbox.append("b", at(3, ConversationStarted(owner_id="42")))
        await send(store, outbox, "late", at(25, ConversationStarted(owner_id="42")))
        await send(store, outbox, "a", at(20, ConversationArchived()))

    assert rows(tmp_path / "history.db", "SELECT active_conversation_id FROM letopis_owners") == [("b",)]
