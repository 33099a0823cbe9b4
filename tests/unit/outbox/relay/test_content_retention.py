"""How the retention of content shares a relay's time."""

import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import cast
from unittest.mock import AsyncMock
from uuid import UUID

import pytest

from letopis.outbox import OutboxFile
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.operations.status import read_status
from letopis.outbox.relay import content_retention
from letopis.outbox.relay.content_retention import CheckpointPruner, ContentTrimmer, Pruned, RetentionSettings
from letopis.outbox.relay.idle_work import LOOK_INTERVAL_SECONDS, StoreTasks
from letopis.outbox.relay.lease import Lease
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.relay.relay import Relay
from letopis.store import ContentRetention, ConversationStore
from tests.support.relays import Hands, Lingering, ToldStore, relay_on, running, say, until

STORE = UUID(int=1)
CONTENT, CHECKPOINTS = ContentRetention(max_age_days=30), ContentRetention(checkpoints_last=1)


@pytest.fixture
async def trimmer(outbox: OutboxFile, tmp_path: Path, hands: Hands) -> AsyncIterator[ContentTrimmer]:
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    async with ConversationStore.open(tmp_path / "history.db") as store:
        yield ContentTrimmer(outbox, store, clock, settings=RetentionSettings(CONTENT), stats=RelayStats())


@pytest.fixture
async def pruner(outbox: OutboxFile, hands: Hands) -> CheckpointPruner:
    clock, store = Clock(now=hands.now, monotonic=hands.monotonic), cast("ConversationStore", ToldStore())
    return CheckpointPruner(outbox, store, clock, settings=RetentionSettings(CHECKPOINTS), stats=RelayStats())


@pytest.mark.parametrize("rests", [True, False])
async def test_a_running_relay_rests_as_its_steps_take_and_one_that_drains_does_not(
    trimmer: ContentTrimmer, hands: Hands, monkeypatch: pytest.MonkeyPatch, rests: bool
) -> None:
    async def trim(_: ContentRetention) -> bool:
        hands.advance(0.02)
        return True

    trimmer._settings.rests = rests
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
        assert not relay._dispatcher.retention.rests
        async with running(relay):
            await until(lambda: relay._dispatcher.retention.rests)


async def test_a_round_is_begun_once_an_hour_however_often_the_relay_is_idle(
    outbox: OutboxFile, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = relay_on(outbox, ToldStore(), hands=hands, retention=CONTENT)
    rounds = AsyncMock(return_value=False)
    monkeypatch.setattr(relay._dispatcher.idle_chores[0], "_trim", rounds)
    await say(outbox, "a")
    for hours in (1, 2):
        for _ in range(5):
            await relay.drain_once()
        assert rounds.await_count == hours
        hands.advance(3_600)


async def test_a_round_prunes_each_thread_and_counts(
    outbox: OutboxFile, pruner: CheckpointPruner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def prune(*_: object, dry_run: bool = False) -> AsyncIterator[Pruned]:
        for name in ("a", "b"):
            yield Pruned(name, ("n",), "default", 3)

    monkeypatch.setattr(content_retention, "prune_checkpoints", prune)
    lease = Lease(outbox, clock=Clock(), holder="relay")
    assert await lease.acquire()
    pruner._settings.rules = CONTENT
    assert not pruner.due(STORE)
    pruner._settings.rules = CHECKPOINTS
    assert pruner.due(STORE)
    assert [await pruner.step(STORE) for _ in range(3)] == [True, True, False]
    await lease.release()
    assert not pruner.due(STORE)
    assert "retention deleted 6 checkpoints" in caplog.text
    assert (await outbox.read(partial(read_status, now_us=outbox.now_us()))).retention.checkpoints == 3 + 3


async def test_pruning_has_ended_when_the_chore_is_closed(
    pruner: CheckpointPruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it goes on beside the next relay, in a file that is being closed."""
    thread = Lingering()

    async def prune(*_: object, dry_run: bool = False) -> AsyncIterator[Pruned]:
        await thread()
        yield Pruned("a", ("n",), "default", 0)

    monkeypatch.setattr(content_retention, "prune_checkpoints", prune)
    assert await pruner.step(STORE)
    await thread.began.wait()
    await pruner.close()
    assert thread.ended.is_set()


async def test_tasks_that_another_relay_left_are_looked_for_now_and_then_and_in_idle_moments_only(hands: Hands) -> None:
    clock = Clock(now=hands.now, monotonic=hands.monotonic)
    tasks = StoreTasks(cast("ConversationStore", ToldStore()), clock)
    for _ in range(2):
        assert [tasks.due(idle=idle) for idle in (True, False)] == [True, False]
        await tasks.step(None, idle=False)
        assert not tasks.due(idle=True)
        hands.advance(LOOK_INTERVAL_SECONDS)
