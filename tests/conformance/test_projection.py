"""What the store keeps of conversations and messages is what folding its own log gives."""

from __future__ import annotations

from letopis.store import (
    ConversationAnnotated,
    ConversationStore,
    Message,
    ReactionAdded,
)
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.state import StateConformance


class TestState(StateConformance):
    """The published contract."""


async def test_what_adds_up_to_more_than_a_statement_may_hold_stays_in_the_log_alone(store: ConversationStore) -> None:
    """MariaDB cuts the connection at 16 MB, which looked like an outage of the store and delayed every conversation."""
    outbox = Outbox()
    outbox.append("chat", Message.user("words", id="m"))
    for number in range(20):
        outbox.append("chat", ConversationAnnotated(metadata={f"key-{number}": "x" * 1_000_000}))
        outbox.append("chat", ReactionAdded(message_id="m", key=f"{number}", value="y" * 1_000_000))
        await outbox.deliver(store)
    outbox.append("chat", ConversationAnnotated(metadata={"key-0": None, "small": 1}))
    await outbox.deliver(store)

    found = await store.conversation("chat")
    assert found is not None
    assert (found.version, set(found.metadata)) == (42, {"key-1", "key-2", "key-3", "small"})
    (message,) = await store.messages("chat")
    assert [one.key for one in message.reactions] == ["0"]
    assert [one async for one in store.rebuild(check=True) if one.difference_count] == []
