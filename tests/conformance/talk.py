"""What the tests of a history store do with the outboxes that feed it."""

from __future__ import annotations

from letopis.outbox import History
from letopis.outbox.relay.relay import Relay


async def deliver(*histories: History) -> None:
    for history in histories:
        await Relay(history.outbox, history.store).drain_once()


async def path(history: History, conversation_id: str = "chat-1") -> list[str]:
    return [one.id for one in await history.messages(conversation_id)]


def prune_all(connection: object) -> None:
    """Drop every event that the outbox keeps."""
    cursor = connection.connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("DELETE FROM letopis_outbox_events")
    cursor.execute("UPDATE letopis_outbox_lanes SET pruned = head")
    cursor.close()
