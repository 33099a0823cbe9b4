"""Have the history store carry out long rewinds and deletions, and build its search index, between two deliveries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.relay.outcome import log_context, logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound
from letopis.store.read.task_marks import PendingTasks
from letopis.store.rules.apply_plan import LaneBatch

LOOK_INTERVAL_SECONDS: Final = 60.0
"""Time between two looks for tasks that another relay left, and until a failed step is retried."""
REPORT_INTERVAL_SECONDS: Final = 10.0
"""Time between two log records about work in progress."""
INDEX_EVENTS_PER_STEP: Final = 50
"""Events that an idle relay reads into a search index before it looks for new ones to deliver."""
_LONG_TYPES: Final = (ConversationRewound.type, ConversationDeleted.type)


class TaskLook:
    """When tasks that other relays left are looked for next; relays of one process on one store may share it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deadline = clock.after(0)

    @property
    def due(self) -> bool:
        """Whether a look is due."""
        return self._deadline.remaining(self._clock) == 0

    def done(self) -> None:
        """Note that tasks were looked for."""
        self._deadline = self._clock.after(LOOK_INTERVAL_SECONDS)


class StoreTasks:
    """What one relay knows of the pending tasks of its history store.

    :ivar pending: as of the last look or step.
    :ivar worked: whether a step was taken since this was last set to ``False``.
    """

    def __init__(self, store: ConversationStore, clock: Clock, *, look: TaskLook | None = None) -> None:
        self._store = store
        self._clock = clock
        self._look = look or TaskLook(clock)
        self._report_due = clock.after(REPORT_INTERVAL_SECONDS)
        self._expected = False
        self._searched = self._unindexed = False
        self.pending = PendingTasks()
        self.worked = False

    def expect(self, batches: Sequence[LaneBatch]) -> None:
        """Look for tasks in the next step if what was delivered may have left some."""
        if any(one.event.type in _LONG_TYPES for batch in batches for one in batch.deliveries):
            self._expected = True
        self._unindexed = self._searched

    def due(self, *, idle: bool) -> bool:
        """Return True if a step may have something to do."""
        return self.pending.tasks > 0 or self._expected or (idle and (self._look.due or self._unindexed))

    async def step(self, store_id: UUID | None, *, idle: bool) -> bool:
        """Take a step of a pending task, or of the search index; return True if the next is worth taking at once.

        A step that fails is logged and retried later: it delays no delivery.
        """
        known = self.pending.tasks > 0
        self._expected = False
        self._look.done()
        try:
            with expect_store(store_id):
                if not await self._store.run_pending_tasks():
                    self.pending = PendingTasks()
                    if idle:
                        await self._index()
                else:
                    self.worked = True
                    self.pending = await self._store.pending_tasks()
        except Exception as error:  # a step that fails must not keep the relay from delivering
            self.pending, self._unindexed = PendingTasks(), False
            # Without known tasks an outage is reported by deliveries, if there are any.
            logger.log(
                logging.WARNING if known else logging.DEBUG,
                "a step of a long rewind or deletion failed, next try in %.0f s: %s",
                LOOK_INTERVAL_SECONDS,
                error if isinstance(error, StoreFault) else type(error).__name__,
                extra=log_context(),
            )
            return False
        self._report(known)
        return self.pending.tasks > 0 or self._unindexed

    async def _index(self) -> None:
        left = await self._store.outbox_access.keep_index(INDEX_EVENTS_PER_STEP)
        self._searched, self._unindexed = left is not None, bool(left)
        if left and self._report_due.remaining(self._clock) == 0:
            self._report_due = self._clock.after(REPORT_INTERVAL_SECONDS)
            logger.info("the search index is being built: %d events left", left, extra=log_context())

    def _report(self, known: bool) -> None:
        pending = self.pending
        if pending.tasks and (not known or self._report_due.remaining(self._clock) == 0):
            self._report_due = self._clock.after(REPORT_INTERVAL_SECONDS)
            logger.info(
                "the history store carries out long rewinds and deletions: %d tasks, %d rows left, %d of them erasures",
                pending.tasks,
                pending.rows,
                pending.erasing,
                extra=log_context(),
            )
        elif known and not pending.tasks:
            logger.info("the history store has carried out all long rewinds and deletions", extra=log_context())
