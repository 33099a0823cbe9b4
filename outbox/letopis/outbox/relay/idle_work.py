"""Do between two deliveries what is no delivery: the file's chores, and the long work of the history store."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Final
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.concurrency.clock import Clock, Deadline
from letopis.outbox.event_log.erasing import erase_delivered
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.outcome import log_context, logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.errors import LetopisError, OutboxFull, OutboxUnavailable
from letopis.store.model.event_types import ConversationDeleted, ConversationRewound
from letopis.store.read.task_marks import PendingTasks
from letopis.store.rules.apply_plan import LaneBatch

TIDY_INTERVAL_SECONDS: Final = 5.0
CHORE_INTERVAL_SECONDS: Final = 5.0
CHORE_RETRY_SECONDS: Final = 60.0  # wait after a chore that failed
LOOK_INTERVAL_SECONDS: Final = 60.0
"""Time between two looks for tasks that another relay left, and until a failed step is retried."""
REPORT_INTERVAL_SECONDS: Final = 10.0  # time between two log records about work in progress
INDEX_EVENTS_PER_STEP: Final = 50
"""Events that an idle relay reads into a search index before it looks for new ones to deliver."""
_TASKS: Final = "tasks"
_LONG_TYPES: Final = (ConversationRewound.type, ConversationDeleted.type)

Chore = Callable[[sa.Connection], bool]


class Chores:
    """Runs chores, and tidies the outbox file, at intervals. A chore that fails is logged and retried later."""

    def __init__(self, outbox: OutboxFile, chores: Sequence[Chore], *, clock: Clock) -> None:
        self._outbox = outbox
        self._chores = chores
        self._clock = clock
        self._due = clock.after(0)
        self._tidy_due = clock.after(TIDY_INTERVAL_SECONDS)
        self._erasing = True  # an earlier relay may have left something

    def erase_soon(self) -> None:
        """Have the rest of what an acknowledgement began to erase erased in steps."""
        self._erasing = True
        self._due = self._clock.after(0)

    async def run(self, *, store_available: bool) -> bool:
        """Run what is due; return True if a chore has more to do at once."""
        if self._tidy_due.remaining(self._clock) == 0:
            wait = TIDY_INTERVAL_SECONDS
            try:
                await self._outbox.maintain()
            except (OutboxFull, OutboxUnavailable) as error:
                wait = CHORE_RETRY_SECONDS
                logger.warning(
                    "the outbox file could not be tidied, next try in %.0f s: %s", wait, error, extra=log_context()
                )
            self._tidy_due = self._clock.after(wait)
        if not store_available or self._due.remaining(self._clock) > 0:
            return False
        return await self._run_chores()

    async def _run_chores(self) -> bool:
        more = False
        wait = CHORE_INTERVAL_SECONDS
        for chore in (*((_erase,) if self._erasing else ()), *self._chores):
            try:
                unfinished = await self._outbox.write(chore)
                more = unfinished or more
                if chore is _erase:
                    self._erasing = unfinished
                    if unfinished:
                        self._outbox.truncate_wal()
            except Exception as error:  # a chore that fails must not keep the relay from delivering
                wait = CHORE_RETRY_SECONDS
                logger.warning(
                    "a chore of the relay failed, next try in %.0f s: %s",
                    wait,
                    error if isinstance(error, LetopisError) else type(error).__name__,
                    extra=log_context(),
                )
        self._due = self._clock.after(0.0 if more else wait)
        return more


def _erase(connection: sa.Connection) -> bool:
    with closing(connection.connection.cursor()) as cursor:
        return erase_delivered(cursor)


class TaskLook:
    """When to look next for work on the history store, by its name; relays on a store may share it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deadlines = defaultdict[str, Deadline](partial(clock.after, 0))

    def due(self, work: str) -> bool:
        return self._deadlines[work].remaining(self._clock) == 0

    def done(self, work: str, seconds: float) -> None:
        self._deadlines[work] = self._clock.after(seconds)


class StoreTasks:
    """What one relay knows of the pending tasks of its history store."""

    def __init__(self, store: ConversationStore, clock: Clock, *, look: TaskLook | None = None) -> None:
        self._store = store
        self._clock = clock
        self._look = look or TaskLook(clock)
        self._report_due = clock.after(REPORT_INTERVAL_SECONDS)
        self._expected = self._failed = False
        self._searched = self._unindexed = False
        self.pending = PendingTasks()
        self.worked = False  # a step was taken since this was last set

    def expect(self, batches: Sequence[LaneBatch]) -> None:
        """Look for tasks in the next step if what was delivered may have left some."""
        for batch in batches:
            for delivery in batch.deliveries:
                if delivery.event.type in _LONG_TYPES:
                    self._expected = True
        self._unindexed = self._searched

    def due(self, *, idle: bool) -> bool:
        pending = self.pending.tasks > 0 and not self._failed
        return pending or self._expected or (idle and (self._look.due(_TASKS) or self._unindexed))

    async def step(self, store_id: UUID | None, *, idle: bool) -> bool:
        """Take a step of a pending task, or of the search index; return True if the next is worth taking at once."""
        known = self.pending.tasks > 0
        self._expected = self._failed = False
        self._look.done(_TASKS, LOOK_INTERVAL_SECONDS)
        try:
            with expect_store(store_id):
                # Asked before the step, so that the status shows a task whose step fails.
                self.pending = await self._store.pending_tasks()
                if self.pending.tasks:
                    await self._store.run_pending_tasks()
                    self.worked = True
                    self.pending = await self._store.pending_tasks()
                elif idle:
                    left = await (await self._store.runtime.prepared()).indexer.keep_up(INDEX_EVENTS_PER_STEP)
                    self._searched, self._unindexed = left is not None, bool(left)
                    if left and self._report_due.remaining(self._clock) == 0:
                        self._report_due = self._clock.after(REPORT_INTERVAL_SECONDS)
                        logger.info("the search index is being built: %d events left", left, extra=log_context())
        except Exception as error:  # a step that fails must not keep the relay from delivering
            self._failed, self._unindexed = True, False
            # Without known tasks an outage is reported by deliveries, if there are any.
            logger.log(
                logging.WARNING if self.pending.tasks else logging.DEBUG,
                "a step of a long rewind or deletion failed, next try in %.0f s: %s",
                LOOK_INTERVAL_SECONDS,
                error if isinstance(error, StoreFault) else type(error).__name__,
                extra=log_context(),
            )
            return False
        self._report(known)
        return self.pending.tasks > 0 or self._unindexed

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
