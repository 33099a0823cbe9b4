"""What a relay does for its history store between two deliveries."""

from typing import cast

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.relay.idle_work import LOOK_INTERVAL_SECONDS, StoreTasks
from letopis.store.conversation_store import ConversationStore
from tests.support.relays import Hands, ToldStore


async def test_tasks_that_another_relay_left_are_looked_for_now_and_then_and_in_idle_moments_only(hands: Hands) -> None:
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    tasks = StoreTasks(cast("ConversationStore", ToldStore()), clock)
    for _ in range(2):
        assert [tasks.due(idle=idle) for idle in (True, False)] == [True, False]
        await tasks.step(None, idle=False)
        assert not tasks.due(idle=True)
        hands.advance(LOOK_INTERVAL_SECONDS)
