"""Combine the breaker of a history store with one for an outbox that belongs to another store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.relay.reporting import log_context, logger
from letopis.outbox.retry.circuit_breaker import OPERATOR_CLASSES, Breaker
from letopis.store.database.faults import FaultClass, StoreFault


class Breakers:
    """The two breakers of one relay.

    The first is shared by all outboxes that deliver to the store. The second opens if the store is not the one of this
    outbox: the others may well belong to it.
    """

    def __init__(
        self,
        shared: Breaker,
        *,
        clock: Clock,
        uniform: Callable[[float, float], float],
        wrong_store: Breaker | None = None,
    ) -> None:
        self._shared = shared
        self._wrong_store = wrong_store or Breaker(clock=clock, uniform=uniform)

    @property
    def current(self) -> Breaker:
        """The breaker that decides: the shared one, unless the store is the wrong one."""
        return self._shared if self._wrong_store.closed else self._wrong_store

    @property
    def wrong_store(self) -> Breaker:
        """The breaker for a store that is not this outbox's."""
        return self._wrong_store

    @property
    def wrong_store_reason(self) -> str | None:
        """Why nothing is delivered to this store; ``None`` if it is not the wrong one."""
        return None if self._wrong_store.closed else str(self._wrong_store.outage)

    def release_wrong_store(self) -> None:
        """Forget that this is the wrong store: another relay works on the outbox and reports about its own."""
        self._wrong_store.record_success()

    def record_success(self) -> bool:
        """Record that the store accepted a delivery; return True if that ends an outage."""
        shared, wrong_store = self._shared.record_success(), self._wrong_store.record_success()
        outage = wrong_store if shared is None else shared
        if outage is None:
            return False
        logger.info("the history store is back after %.1f s", outage, extra=log_context())
        return True

    def trip(self, fault: StoreFault, conversation_ids: Collection[str]) -> None:
        """Open the breaker that a fault concerns, and log it.

        :param conversation_ids: what was being delivered, and so may be the cause.
        """
        before = None if self.current.outage is None else self.current.outage.code
        wrong_store = fault.fault_class is FaultClass.WRONG_STORE
        if not wrong_store:
            self._shared.trip(fault, conversation_ids)
        if wrong_store or not self._wrong_store.closed:
            self._wrong_store.trip(fault, conversation_ids)
        new = fault.fault_class in OPERATOR_CLASSES and before != fault.code
        logger.log(
            logging.ERROR if new else logging.WARNING,
            "the history store cannot be delivered to, next try in %.1f s: %s",
            self.current.remaining(),
            fault,
            extra=log_context(),
        )
