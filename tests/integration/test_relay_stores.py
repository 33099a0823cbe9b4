"""The relay into real history stores, and what may happen to them meanwhile."""

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.retry.circuit_breaker import BreakerState
from letopis.store.conversation_store import ConversationStore
from tests.support.relays import drained, lane, relay_on, running, say, until
from tests.support.verdicts import assert_whole


async def test_everything_arrives_once_in_order(outbox: OutboxFile, store: ConversationStore, store_url: str) -> None:
    async with running(relay_on(outbox, store, batch=50)):
        for number in range(200):
            await say(outbox, f"c{number % 7}", 1 + number % 3)
        await drained(outbox)
    await assert_whole(outbox, store_url, 200 * 2 - 1 + 7)
    texts = [one.text for one in await store.messages("c3")]
    assert len(texts) == sum(1 + number % 3 for number in range(3, 200, 7))


async def test_missing_schema_waits_and_charges_nobody(outbox: OutboxFile, fresh_postgresql_url: str) -> None:
    await say(outbox, "a", 5)
    store = ConversationStore(fresh_postgresql_url)  # made without migrate=True: a server is migrated by an operator
    relay = relay_on(outbox, store)
    try:
        async with running(relay):
            await until(lambda: relay.breaker.state is BreakerState.OPEN)
            assert (relay.breaker.reason or "").startswith("misconfigured")
            async with ConversationStore.open(fresh_postgresql_url, migrate=True):
                pass
            await drained(outbox)
    finally:
        await store.close()

    assert (await lane(outbox, "a")).attempts == 0
    assert relay.stats.delivered == 6
