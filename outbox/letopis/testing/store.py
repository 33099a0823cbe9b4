"""Take a history store away from a bot and give it back, and deliver when a test says so."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy.engine import URL

from letopis.outbox import History, Relay
from letopis.store import ApplyResult, ConversationStore, FaultClass, LaneBatch, Origin, StoreFault

UNREACHABLE: Final = StoreFault(fault_class=FaultClass.UNAVAILABLE, code="08006", reason="taken away by a test")
REFUSED: Final = StoreFault(fault_class=FaultClass.POISON, code="22021", reason="refused by a test")

MAX_IDLE_STEPS: Final = 100
STEP_SECONDS: Final = 0.01


class FaultyStore(ConversationStore):
    """A real history store that can be taken away, given back, or made to refuse conversations.

    Pass it to ``History(..., store=store)``. Its arguments are those of :class:`~letopis.store.ConversationStore`.

    :ivar fault: raised by every read and every delivery; ``None`` while the store answers.
    :ivar refused: ids of conversations whose events the store refuses, until they are stuck.
    """

    def __init__(self, url: str | URL | os.PathLike[str], **options: Any) -> None:
        super().__init__(url, **options)
        self.fault: StoreFault | None = None
        self.refused: Collection[str] = ()
        # Everything that the store does passes one of these two.
        prepared, connected = self.runtime.prepared, self.runtime.connected

        async def prepared_unless_away() -> Any:
            self._check()
            return await prepared()

        async def connected_unless_away(*args: Any, **kwargs: Any) -> Any:
            self._check()
            return await connected(*args, **kwargs)

        vars(self.runtime).update(prepared=prepared_unless_away, connected=connected_unless_away)

    def take_away(self) -> None:
        """Have the store unreachable from now on: appends go on, reads come from the outbox."""
        self.fault = UNREACHABLE

    def give_back(self) -> None:
        """Have the store answer again; a relay notices within seconds, :func:`deliver_all` at once."""
        self.fault = None

    async def apply(self, origin: Origin, batch: Sequence[LaneBatch]) -> ApplyResult:
        """Apply a batch, unless it holds events of a refused conversation."""
        self._check()
        if any(lane.conversation_id in self.refused for lane in batch):
            raise REFUSED.with_traceback(None)
        return await super().apply(origin, batch)

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault.with_traceback(None)  # which would otherwise grow with each time it is raised


async def deliver_all(history: History, store: ConversationStore | None = None, *, batch: int = 500) -> None:
    """Deliver everything that is pending in a history with ``relay=False``, and return once it is stored.

    :param store: where to; by default the history's own store.
    :raises TimeoutError: nothing was delivered for a second: the store is unavailable, or refuses what is pending.
    """
    idle = 0
    while not await history.drained(0):
        if await Relay(history.outbox, store or history.store, batch=batch).drain_once():
            idle = 0
        elif (idle := idle + 1) == MAX_IDLE_STEPS:
            raise TimeoutError("the store has taken nothing of what is pending for a second")
        else:
            await asyncio.sleep(STEP_SECONDS)
