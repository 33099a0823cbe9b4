"""How the retention of content shares a relay's time."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from letopis.outbox import OutboxFile
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.relay.content_retention import ContentTrimmer
from letopis.outbox.relay.outcome import RelayStats
from letopis.store import ContentRetention, ConversationStore
from letopis.store.model.events import from_microseconds

STORE = UUID(int=1)


class Time:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: from_microseconds(round(self.seconds * 1_000_000)), monotonic=lambda: self.seconds)


@pytest.mark.parametrize("rests", [True, False])
async def test_a_running_relay_rests_as_its_steps_take_and_one_that_drains_does_not(
    outbox: OutboxFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rests: bool
) -> None:
    time = Time()

    async def trim(_: ContentRetention) -> bool:
        time.seconds += 0.02
        return True

    async with ConversationStore.open(f"sqlite:///{tmp_path / 'history.db'}") as store:
        content = ContentRetention(max_age_days=30)
        trimmer = ContentTrimmer(outbox, store, time.clock, retention=content, stats=RelayStats())
        trimmer.rests = rests
        monkeypatch.setattr(trimmer, "_trim", trim)
        assert trimmer.due(STORE)
        assert await trimmer.step(STORE)
        time.seconds += 0.08  # its events are delivered, and the tasks of the store carried out
        assert trimmer.due(STORE) is not rests
        time.seconds += 9.8
        assert trimmer.due(STORE) is not rests
        time.seconds += 0.2
        assert trimmer.due(STORE)
        # However long one was held up, as by an outage.
        await trimmer.step(STORE)
        time.seconds += 3_600
        assert trimmer.due(STORE) is not rests
        time.seconds += 60
        assert trimmer.due(STORE)
