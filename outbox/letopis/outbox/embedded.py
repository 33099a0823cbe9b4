"""Embedded: what every part of a history shares: the outbox, the store, and a read that lays one over the other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import sqlalchemy as sa

from letopis.outbox.breaker import Breaker
from letopis.outbox.file import OutboxFile
from letopis.outbox.incidents import BreakerView
from letopis.outbox.overlay import Overtaken
from letopis.outbox.reach import Reach
from letopis.outbox.receipts import Deliveries
from letopis.outbox.relay import Relay
from letopis.outbox.watch import breaker_view
from letopis.store.codec import Limits
from letopis.store.history import ConversationStore
from letopis.store.upcasters import Upcasters

T = TypeVar("T")
V = TypeVar("V")


class Embedded:
    """The ground of a history; its parts add what is said and what is read.

    :ivar outbox: the outbox file.
    :ivar store: the history store.
    :ivar relay: the relay of this process; ``None`` where another process delivers.
    """

    def __init__(
        self,
        *,
        outbox: OutboxFile,
        store: ConversationStore,
        relay: Relay | None,
        limits: Limits,
        upcasters: Upcasters,
        read_timeout: float,
    ) -> None:
        self.outbox = outbox
        self.store = store
        self.relay = relay
        self._limits = limits
        self._upcasters = upcasters
        self._deliveries = Deliveries(outbox)
        self._reach = Reach(store, breaker=self._breaker, deadline=read_timeout)

    async def _read(
        self,
        ask: Callable[[ConversationStore], Coroutine[Any, Any, V]],
        lay: Callable[[sa.Connection, V | None], T],
    ) -> T:
        """Read the store, then lay over it what the outbox holds beyond."""
        for _ in range(3):
            found = await self._reach.read(ask)
            try:
                return await self.outbox.read(lambda connection, held=found: lay(connection, held))  # type: ignore[misc]
            except Overtaken:
                continue
        # The store has lost events that the outbox does not hold any more either: a restored backup. What is here:
        return await self.outbox.read(lambda connection: lay(connection, None))

    def _breaker(self) -> Breaker | None:
        return self.relay.breaker if self.relay is not None and self.relay.lease.held else None

    def _breaker_view(self) -> BreakerView | None:
        breaker = self._breaker()
        return None if breaker is None else breaker_view(breaker)
