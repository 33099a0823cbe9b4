"""How the retention of content shares a relay's time."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast
from unittest.mock import AsyncMock
from uuid import UUID

import pytest

from letopis.outbox import OutboxFile
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.operations.status import read_status
from letopis.outbox.relay.content_retention import ContentTrimmer
from letopis.outbox.relay.idle_work import LOOK_INTERVAL_SECONDS, StoreTasks
from letopis.outbox.relay.lease import Lease
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.relay.relay import Relay
from letopis.store import ContentRetention, ConversationStore
from letopis.store.maintenance.due_checkpoints import FIRST_PLACE, CheckpointPlace, DueCheckpoints
from letopis.store.rules.retention import RetentionRule
from tests.support.relays import Hands, Lingering, ToldStore, relay_on, running, say, until

STORE = UUID(int=1)
CONTENT, CHECKPOINTS = ContentRetention(max_age_days=30), ContentRetention(checkpoints_last=1)


@pytest.fixture
async def trimmer(outbox: OutboxFile, tmp_path: Path, hands: Hands) -> AsyncIterator[ContentTrimmer]:
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    async with ConversationStore.open(tmp_path / "history.db") as store:
        yield ContentTrimmer(outbox, store, clock, retention=CHECKPOINTS, stats=RelayStats())


@pytest.mark.parametrize("rests", [True, False])
async def test_a_running_relay_rests_as_its_steps_take_and_one_that_drains_does_not(
    trimmer: ContentTrimmer, hands: Hands, monkeypatch: pytest.MonkeyPatch, rests: bool
) -> None:
    async def trim(_: ContentRetention) -> bool:
        hands.advance(0.02)
        return True

    trimmer.retention, trimmer.rests = CONTENT, rests
    monkeypatch.setattr(trimmer, "_trim", trim)
    assert trimmer.due(STORE) and await trimmer.step(STORE)
    # Its events are delivered meanwhile, and the tasks of the store carried out.
    for seconds, rested in ((0.08, False), (9.8, False), (0.2, True)):
        hands.advance(seconds)
        assert trimmer.due(STORE) is (rested or not rests)
    # However long one was held up, as by an outage.
    await trimmer.step(STORE)
    for seconds, rested in ((3_600, False), (60, True)):
        hands.advance(seconds)
        assert trimmer.due(STORE) is (rested or not rests)


async def test_a_relay_that_runs_rests_and_one_that_drains_does_not(outbox: OutboxFile, tmp_path: Path) -> None:
    async with ConversationStore.open(f"sqlite:///{tmp_path / 'history.db'}") as store:
        relay = Relay(outbox, store, retention=CONTENT)
        await relay.drain()
        assert not relay._dispatcher.trimmer.rests
        async with running(relay):
            await until(lambda: relay._dispatcher.trimmer.rests)


async def test_a_round_is_begun_once_an_hour_however_often_the_relay_is_idle(
    outbox: OutboxFile, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = relay_on(outbox, ToldStore(), hands=hands, retention=CONTENT)
    rounds = AsyncMock(return_value=False)
    monkeypatch.setattr(relay._dispatcher.trimmer, "_trim", rounds)
    await say(outbox, "a")
    for hours in (1, 2):
        for _ in range(5):
            await relay.drain_once()
        assert rounds.await_count == hours
        hands.advance(3_600)


async def test_a_round_prunes_checkpoints_from_the_first_page_to_the_last(
    outbox: OutboxFile, trimmer: ContentTrimmer, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = (1, STORE)
    pages = list[CheckpointPlace]()
    due = DueCheckpoints(conversation_id="a", namespace=("n",), rule=RetentionRule(checkpoints_last=1), put_after=None)

    async def page(_: object, place: CheckpointPlace) -> tuple[Sequence[DueCheckpoints], CheckpointPlace | None]:
        pages.append(place)
        return [due], second if place == FIRST_PLACE else None

    trimmer.prune = AsyncMock(return_value=3)
    monkeypatch.setattr(trimmer._store.outbox_access, "due_checkpoints", page)
    lease = Lease(outbox, clock=Clock(), holder="relay")
    assert await lease.acquire()
    while await trimmer.step(None):
        assert len(pages) <= 2
    await lease.release()
    assert pages == [FIRST_PLACE, second]
    assert (await outbox.read(partial(read_status, now_us=outbox.now_us()))).retention.checkpoints == 3 + 3


async def test_a_page_of_checkpoints_has_ended_when_the_trimmer_is_closed(
    trimmer: ContentTrimmer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it goes on beside the next relay, in a file that is being closed."""
    page = Lingering()
    trimmer.prune = AsyncMock()
    monkeypatch.setattr(trimmer._store.outbox_access, "due_checkpoints", page)
    assert await trimmer.step(None)
    await page.began.wait()
    await trimmer.close()
    assert page.ended.is_set()


async def test_tasks_that_another_relay_left_are_looked_for_now_and_then_and_in_idle_moments_only(hands: Hands) -> None:
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    tasks = StoreTasks(cast("ConversationStore", ToldStore()), clock)
    for _ in range(2):
        assert [tasks.due(idle=idle) for idle in (True, False)] == [True, False]
        await tasks.step(None, idle=False)
        assert not tasks.due(idle=True)
        hands.advance(LOOK_INTERVAL_SECONDS)
