"""What the tests of a history store do with the outboxes that feed it."""

from letopis.outbox import History
from letopis.outbox.relay.relay import Relay
from tests.support.relays import sql


async def deliver(*histories: History) -> None:
    for history in histories:
        await Relay(history.outbox, history.store).drain_once()


async def path(history: History, conversation_id: str = "chat-1") -> list[str]:
    return [one.id for one in await history.messages(conversation_id, last=None)]


def prune_all(connection: object) -> None:
    """Drop every event that the outbox keeps."""
    cursor = connection.connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("DELETE FROM letopis_outbox_events")
    cursor.execute("DELETE FROM letopis_outbox_event_ids")
    cursor.execute("UPDATE letopis_outbox_lanes SET pruned = head")
    cursor.close()


async def lose_acknowledgements(history: History) -> None:
    """Have an outbox send all events again, as after an answer that was lost."""
    assert await sql(history.outbox, "UPDATE letopis_outbox_lanes SET delivered = 0, pending_since = 1 RETURNING 1")


async def count(history: History, table: str) -> int:
    """Return how many rows a table of the outbox holds, or those ``WHERE`` something is so."""
    [(found,)] = await sql(history.outbox, f"SELECT count(*) FROM {table}")
    return int(found)
