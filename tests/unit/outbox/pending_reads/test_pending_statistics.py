"""Statistics count what is pending, and heed what pending events erase."""

from __future__ import annotations

from letopis import History, Message
from tests.support.relays import deliver_all


async def say(history: History, name: str, kind: str, message_id: str = "") -> None:
    await history.append(name, Message.user("hi", id=message_id, metadata={"k": kind}))


async def counted(history: History) -> dict[object, int]:
    return {kind: figures.messages for kind, figures in (await history.statistics(by="k")).by.items()}


async def test_a_pending_redaction_erases_in_its_own_conversation_only(history: History) -> None:
    await say(history, "a", "v", "m")
    await say(history, "b", "v", "m")
    await deliver_all(history)
    await history.chat("a").redact("m")
    await say(history, "b", "w")
    assert await counted(history) == {None: 1, "v": 1, "w": 1}


async def test_the_last_of_several_pending_resets_counts(history: History) -> None:
    for _ in range(2):
        await say(history, "a", "v")
        await deliver_all(history)
    for _ in range(2):
        await say(history, "a", "v")
        await history.chat("a").reset()
    await say(history, "a", "w")
    assert await counted(history) == {None: 4, "w": 1}
