"""A long backlog: two batches are in flight at once, never two of one conversation, and a failure ends that."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox.event_log.lanes import DueBatches
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin
from tests.support.relays import (
    DOWN,
    Hands,
    ToldStore,
    bind_to,
    end,
    figures,
    relay_on,
    say,
    sql,
)

MANY = 120
EACH = 20


class Slow(ToldStore):
    """A slow store that remembers what was in flight at once."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[set[str]] = []
        self.most = 0
        self.shared: set[str] = set()

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        names = {one.conversation_id for one in batch}
        for others in self.under_way:
            self.shared |= names & others
        self.under_way.append(names)
        self.most = max(self.most, len(self.under_way))
        try:
            await asyncio.sleep(0.02)
            return await super().apply(origin, batch)
        finally:
            self.under_way.remove(names)


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[OutboxFile]:
    file = await OutboxFile.open(tmp_path / "bot.outbox.db")
    for number in range(MANY):
        await say(file, f"c{number}", EACH)
    yield file
    await file.close()


def in_order(store: ToldStore) -> bool:
    """Whether each conversation came from its first event to its last one, each once."""
    came: dict[str, list[int]] = {}
    for batch in store.batches:
        for one in batch:
            came.setdefault(one.conversation_id, []).extend(delivery.sequence for delivery in one.deliveries)
    return came == {f"c{number}": list(range(1, EACH + 2)) for number in range(MANY)}


def complete(store: ToldStore) -> bool:
    """Whether it holds all there is, and nothing twice."""
    return [store.held(f"c{number}") for number in range(MANY)] == [EACH + 1] * MANY


async def test_two_batches_are_under_way_and_never_two_of_one_conversation(outbox: OutboxFile) -> None:
    store = Slow()
    assert await relay_on(outbox, store).drain() == MANY * (EACH + 1)
    assert (store.most, store.shared) == (2, set())
    assert in_order(store)
    assert (await figures(outbox)).pending == 0


async def test_a_run_begins_no_batch_after_half_a_second(outbox: OutboxFile, hands: Hands) -> None:
    """The relay's loop turns then, and the file's turn may end."""
    store = ToldStore()

    async def take_long() -> None:
        hands.advance(0.3)
        await asyncio.sleep(0.02)

    store.before = take_long
    relay = relay_on(outbox, store, hands=hands)
    assert await relay._acquire()
    step = await relay._dispatcher.run_batches()
    await relay._release()

    assert step.more
    assert 2 <= len(store.batches) <= 3


async def test_a_run_delivers_as_many_batches_as_it_may(outbox: OutboxFile, hands: Hands) -> None:
    store = ToldStore()
    relay = relay_on(outbox, store, batch=100, hands=hands)
    step = await relay._dispatcher.run_batches(3)

    assert (step.delivered, step.more, len(store.batches)) == (300, True, 3)


async def test_batches_after_an_outage_start_small_and_double(
    outbox: OutboxFile, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the backlog: a store that has just come back is not overloaded."""
    monkeypatch.setattr("letopis.outbox.relay.dispatcher.MAX_RAMP_PAUSE_SECONDS", 0.0)
    store = ToldStore(lambda _: DOWN)
    relay = relay_on(outbox, store, hands=hands)
    await relay._dispatcher.run_batches()
    store.refuse = lambda _: None
    hands.advance(100)

    assert [(await relay._dispatcher.run_batches()).delivered for _ in range(5)] == [1, 8, 16, 32, 64]


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.05])
async def test_a_cancellation_leaves_what_the_next_relay_goes_on_with(outbox: OutboxFile, after: float) -> None:
    store = Slow()
    task = asyncio.create_task(relay_on(outbox, store, stop_timeout=0.0).run())
    await asyncio.sleep(after)
    await end(task)
    assert not store.under_way

    await relay_on(outbox, store).drain()
    assert complete(store)
    assert (await figures(outbox)).pending == 0


async def test_nothing_is_delivered_that_was_read_under_anothers_lease(outbox: OutboxFile) -> None:
    """Its write-back would pass the fence: it is the other relay's number."""
    store = Slow()
    relay = relay_on(outbox, store, locked=False)
    await bind_to(outbox, store)
    await relay.lease.acquire()
    read = relay._dispatcher._claim
    reads = 0

    async def due(**asked: Any) -> DueBatches:
        nonlocal reads
        reads += 1
        found = await read(**asked)
        await sql(outbox, "UPDATE letopis_outbox_relay SET incarnation = 99")
        return found

    relay._dispatcher._claim = due  # type: ignore[method-assign]

    assert (await relay._dispatcher.run_batches()).fenced
    assert reads > 1  # the control: there was a look ahead
    assert len(store.batches) == 1
    assert (await figures(outbox)).pending == MANY * (EACH + 1)


async def test_what_was_read_ahead_is_not_sent_to_a_store_that_went_away(outbox: OutboxFile) -> None:
    store = Slow()
    store.refuse = lambda _: DOWN
    assert await relay_on(outbox, store).drain() == 0
    sent = {one.conversation_id for batch in store.batches for one in batch}
    assert store.most == 2
    assert sent == {f"c{number}" for number in range(100)}  # those of the first two batches
