"""Be a history store that says yes before it knows, for a control."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from letopis.store.errors import LetopisError
from letopis.store.rules.apply_plan import ApplyResult, LaneApplied, LaneBatch, Origin
from tests.proof.network.bots import Watched

TOO_SOON: Final = 0.02  # seconds after which a hasty store says yes


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
            self.false_promises += 1  # the answer is no longer awaited
