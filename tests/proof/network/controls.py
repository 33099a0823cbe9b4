"""Controls: promises taken away on purpose, so that the same faults must lose or double something."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from letopis.store.errors import LetopisError, SequenceGap
from letopis.store.plan import ApplyResult, Compared, Delivery, LaneApplied, LaneBatch, Origin
from tests.proof.network.bots import Watched

UNGUARDED: Final = {
    "asyncpg": ("DROP INDEX uq_letopis_events_event_id",),
    "asyncmy": ("DROP INDEX uq_letopis_events_event_id ON letopis_events",),
}
"""The index that would still refuse a double, by driver."""
TOO_SOON: Final = 0.02
"""Seconds after which a hasty store says yes."""


@contextmanager
def no_duplicate_check() -> Iterator[None]:
    """Have an apply write all that it is given, whatever it holds: a plain INSERT."""

    def compare(lane: LaneBatch, head: int) -> Compared:
        if lane.deliveries[0].sequence > head + 1:
            raise SequenceGap(conversation_id=lane.conversation_id, head=head, first=lane.deliveries[0].sequence)
        return Compared(lane=lane, head=head, known=(), fresh=lane.deliveries)

    def absorb(compared: Compared, stored: Any) -> tuple[Delivery, ...]:
        return compared.fresh

    with mock.patch("letopis.store.apply.compare", compare), mock.patch("letopis.store.apply.absorb", absorb):
        yield


class Hasty(Watched):
    """A history store that says yes before it knows."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._promised: set[asyncio.Task[None]] = set()

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        task = asyncio.create_task(self._really(origin, batch))
        self._promised.add(task)
        task.add_done_callback(self._promised.discard)
        await asyncio.wait((task,), timeout=TOO_SOON)
        return ApplyResult(
            applied=tuple(
                LaneApplied(
                    conversation_id=lane.conversation_id,
                    head=lane.deliveries[-1].sequence,
                    inserted=len(lane.deliveries),
                    duplicates=0,
                )
                for lane in batch
            ),
            refused=(),
        )

    async def close(self) -> None:
        await asyncio.gather(*self._promised)
        await super().close()

    async def _really(self, origin: Origin, batch: Sequence[LaneBatch]) -> None:
        try:
            await super().apply(origin, batch)
        except LetopisError:
            self.false_promises += 1  # nobody waits for the answer any more
