"""Take content away that the rules of retention keep no longer, in idle moments: append what says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.idle_work import TaskLook
from letopis.outbox.relay.outcome import RelayStats, log_context, logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.store_identity import expect_store
from letopis.store.errors import ConversationGone, LetopisError
from letopis.store.maintenance.due_checkpoints import FIRST_PLACE, CheckpointPlace, DueCheckpoints
from letopis.store.maintenance.retention import DueContent
from letopis.store.rules.retention import ContentRetention

_RECORD: Final = (
    "UPDATE letopis_outbox_relay SET trimmed = trimmed + ?, checkpoints = checkpoints + ?, retained_at = ?,"
    " retention_due = ?"
)
PRUNE_SECONDS: Final = 0.1
"""Time after which a step waits no longer for a page of checkpoints: deliveries go on beside a long one."""

REST: Final = 99.0
"""How many times as long as a step took, with all that it led to, a relay rests: 1 append in 100 meets it."""
MAX_REST_SECONDS: Final = 60.0

PruneCheckpoints = Callable[[DueCheckpoints], Awaitable[int]]
"""Deletes the due checkpoints of a namespace, and returns how many."""


async def append_trims(outbox: OutboxFile, found: Sequence[DueContent]) -> int:
    """Append the events that take content away; return how many were appended."""
    # A process that dies before the places are kept finds the same again, and a second event changes nothing.
    appends = [outbox.append(prepare(due.conversation_id, [due.body])) for due in found]
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, ConversationGone):
            raise outcome
    return sum(not isinstance(outcome, BaseException) for outcome in outcomes)


class ContentTrimmer:
    """Carries out the retention of content for one relay: a round an hour, of bounded steps."""

    # Once an hour, so that a conversation gets one event for what an hour has made due, and not one for each message.
    def __init__(
        self,
        outbox: OutboxFile,
        store: ConversationStore,
        clock: Clock,
        *,
        retention: ContentRetention | None,
        stats: RelayStats,
        look: TaskLook | None = None,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._clock = clock
        self._look = look or TaskLook(clock)
        self._stats = stats
        self._trimmed = self._deleted = 0  # in this round
        self._now: int | None = None  # when this round began, by the clock of the store
        self._place: CheckpointPlace | None = FIRST_PLACE
        self._pruning: asyncio.Task[CheckpointPlace | None] | None = None
        self._began: float | None = None
        self._rest = clock.after(0)
        self.rests = False  # one that only drains does not
        self.retention = retention
        self.prune: PruneCheckpoints | None = None

    def due(self, store_id: UUID | None) -> bool:
        """Return True if a step is due; to be asked when what the last one led to was delivered and carried out."""
        if self._began is not None and self.rests:
            self._rest = self._clock.after(min((self._clock.monotonic() - self._began) * REST, MAX_REST_SECONDS))
        self._began = None
        resting = self._rest.remaining(self._clock) > 0
        return self.retention is not None and store_id is not None and self._look.retention_due and not resting

    async def step(self, store_id: UUID | None) -> bool:
        """Look at some events that have come of age; return True if the next step is worth taking at once.

        A step that fails is logged and repeated in the next round: it delays no delivery.
        """
        retention = self.retention
        if retention is None:
            return False
        more = False
        try:
            with expect_store(store_id):
                if self._pruning is None:
                    began, more = self._clock.monotonic(), await self._trim(retention)
                    self._began = began if more else None
                more = more or await self._prune_some(retention)
        except Exception as error:  # a step that fails must not keep the relay from delivering
            logger.warning(
                "a step of the retention of content failed, it is repeated in the next round: %s",
                error if isinstance(error, LetopisError) else type(error).__name__,
                extra=log_context(),
            )
        if not more:
            self._look.retention_done()
            if self._trimmed:
                logger.info(
                    "retention takes content of %d conversations out of the history", self._trimmed, extra=log_context()
                )
            if self._deleted:
                logger.info("retention deleted %d checkpoints", self._deleted, extra=log_context())
            self._trimmed = self._deleted = 0
            self._place, self._now = FIRST_PLACE, None
        return more

    async def close(self) -> None:
        """Stop in the middle of a page of checkpoints; the next round goes on."""
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.gather(self._pruning, return_exceptions=True)
            self._pruning = None

    async def _trim(self, retention: ContentRetention) -> bool:
        access = self._store.outbox_access
        places = await access.retention_places(retention)
        origin_id = self._outbox.origin.origin_id
        found = await access.due_content(retention, places, origin_id=origin_id, now=self._now)
        self._now = found.now
        trimmed = await append_trims(self._outbox, found.due)
        if found.moved:
            await access.keep_places(retention, found)
        left = await access.retention_behind(retention) if found.more else 0
        self._trimmed += trimmed
        self._stats.trimmed += trimmed
        await self._record(trimmed=trimmed, left=left)
        return found.more

    async def _prune_some(self, retention: ContentRetention) -> bool:
        if self.prune is None or self._place is None or not retention.limits_checkpoints:
            return False
        if self._pruning is None:
            self._pruning = asyncio.create_task(self._prune_page(self.prune, retention, self._place))
        await asyncio.wait((self._pruning,), timeout=PRUNE_SECONDS)
        if self._pruning.done():
            page, self._pruning = self._pruning, None
            self._place = page.result()
        return True  # also after the last page, so that its deletions are delivered

    async def _prune_page(
        self, prune: PruneCheckpoints, retention: ContentRetention, place: CheckpointPlace
    ) -> CheckpointPlace | None:
        found, following = await self._store.outbox_access.due_checkpoints(retention, place)
        for due in found:
            deleted = await prune(due)
            self._deleted += deleted
            self._stats.checkpoints += deleted
            await self._record(checkpoints=deleted)
        return following

    async def _record(self, *, trimmed: int = 0, checkpoints: int = 0, left: int = 0) -> None:
        values = (trimmed, checkpoints, self._clock.now_us(), left)
        await self._outbox.write(lambda connection: connection.exec_driver_sql(_RECORD, values))
