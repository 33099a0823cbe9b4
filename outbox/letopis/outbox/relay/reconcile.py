"""Find events that the history store lost, by comparing it with what the outbox counts as delivered.

A store that was restored from a backup, or failed over to a replica that lagged, answers like any other. The heads of
all lanes are compared at the start and after any connection was made or lost, and some of them at intervals. What the
store lost is sent again as far as the file holds it. In turn with that, a part of the store's log is counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import record_finding
from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.concurrency.clock import Clock, Deadline
from letopis.outbox.event_log.acknowledge import Rewound, is_current_lease, rewind_lane, unblock_recovered
from letopis.outbox.event_log.bound_store import read_binding
from letopis.outbox.event_log.lanes import delivered_positions, delivered_positions_of, lost_lanes
from letopis.outbox.event_log.records.lookups import pruned_lanes
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.outcome import log_context, logger
from letopis.outbox.retry.fault_attribution import STORE_FAULT_CLASSES
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.database.store_identity import expected_store_id
from letopis.store.errors import ErasuresPending, LetopisError, OriginSuperseded
from letopis.store.model.records import is_record_lane
from letopis.store.read.reader import Reader
from letopis.store.rules.apply_plan import LaneBatch

T = TypeVar("T")

RECONCILE_INTERVAL_SECONDS: Final = 30.0
"""Time between two comparisons with a stable store, in turn of the heads of lanes and of the log."""
LANES_PER_REQUEST: Final = 500  # lanes compared with the history store at a time
_INCOMPLETE: Final = (
    "they were deleted, and nothing can send them again; restore the store from a backup, what was delivered since is"
    " sent again [incomplete log]"
)
MAX_RECENT_LANES: Final = 100  # most recently delivered lanes in each comparison at intervals; the rest take turns


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileResult:
    rewound: Mapping[str, Rewound] = field(default_factory=dict)
    fenced: bool = False


@dataclass(slots=True, kw_only=True)
class ReconcileProgress:
    """How far the comparisons with a stable store have come."""

    due: Deadline
    some_after: str = ""
    log_after: int = 0  # the position up to which the log was counted
    log_complete: bool = True  # nothing was missing in this pass over the log so far
    log_next: bool = False  # the last comparison was one of lanes


class Reconciler:
    """Compares one outbox file with one history store, one small request at a time."""

    def __init__(
        self, outbox: OutboxFile, store: ConversationStore, *, clock: Clock, progress: ReconcileProgress | None = None
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._clock = clock
        self.progress = progress or ReconcileProgress(due=clock.after(RECONCILE_INTERVAL_SECONDS))
        self._all_after: str | None = ""  # last lane compared in the pass over all of them
        self._generation = store.runtime.continuity.generation
        self._recent: dict[str, None] = {}

    def schedule_all(self) -> None:
        """Have all lanes compared in the next idle moments."""
        self._all_after = ""

    def delivered(self, conversation_ids: Collection[str]) -> None:
        """Note the lanes that were delivered most recently."""
        for conversation_id in conversation_ids:
            self._recent.pop(conversation_id, None)
            self._recent[conversation_id] = None
        for _ in range(len(self._recent) - MAX_RECENT_LANES):
            del self._recent[next(iter(self._recent))]

    @property
    def due(self) -> bool:
        """Whether there is something to compare now."""
        if (generation := self._store.runtime.continuity.generation) != self._generation:
            self._generation = generation
            self.schedule_all()
        return self._all_after is not None or self.progress.due.remaining(self._clock) == 0

    async def compare(self, incarnation: int) -> ReconcileResult:
        """Send the store one request, and record what follows; an error that is not the store's is only logged."""
        try:
            if (after := self._all_after) is not None:
                page = await self._outbox.read(partial(delivered_positions, after=after, limit=LANES_PER_REQUEST))
                result = await self._compare_lanes(page, incarnation)
                if not result.fenced and self._all_after == after:  # not scheduled from the start meanwhile
                    self._all_after = max(page) if len(page) == LANES_PER_REQUEST else None
                return result
            self.progress.due = self._clock.after(RECONCILE_INTERVAL_SECONDS)
            self.progress.log_next = not self.progress.log_next
            return await (self._compare_some(incarnation) if self.progress.log_next else self._count_log(incarnation))
        except StoreFault as fault:
            if fault.fault_class in STORE_FAULT_CLASSES:
                raise
            self._postpone(str(fault))
        except LetopisError:
            raise
        except Exception as error:  # a comparison that fails must not keep the relay from delivering
            self._postpone(type(error).__name__)
        return ReconcileResult()

    def _postpone(self, reason: str) -> None:
        self._all_after, self.progress.due = None, self._clock.after(RECONCILE_INTERVAL_SECONDS)
        logger.warning("lanes could not be compared with the history store: %s", reason, extra=log_context())

    async def _compare_some(self, incarnation: int) -> ReconcileResult:
        limit = LANES_PER_REQUEST - MAX_RECENT_LANES
        rest = await self._outbox.read(partial(delivered_positions, after=self.progress.some_after, limit=limit))
        self.progress.some_after = max(rest) if len(rest) == limit else ""
        recent = await self._outbox.read(partial(delivered_positions_of, conversation_ids=tuple(self._recent)))
        result = await self._compare_lanes({**recent, **rest}, incarnation)
        if result.rewound:
            self.schedule_all()
        return result

    async def _compare_lanes(self, delivered: Mapping[str, int], incarnation: int) -> ReconcileResult:
        if not delivered:
            return ReconcileResult()
        lost = await self._outbox.read(lost_lanes)
        heads = await _twice(partial(self._store.lane_heads, self._outbox.origin.origin_id, list(delivered)))
        await self._trim_ledgers([name for name in delivered if is_record_lane(name)])
        behind = {name: heads.get(name, 0) for name, position in delivered.items() if heads.get(name, 0) < position}
        recovered = {name: upto for name, upto in lost.items() if name in delivered and heads.get(name, 0) >= upto}
        if not (behind or recovered):
            return ReconcileResult()
        write = partial(
            _settle, behind=behind, recovered=recovered, incarnation=incarnation, now_us=self._clock.now_us()
        )
        rewound = await self._outbox.write(write)
        return ReconcileResult(fenced=True) if rewound is None else ReconcileResult(rewound=rewound)

    async def _trim_ledgers(self, lanes: Collection[str]) -> None:
        """Trim ledgers of records to what is pruned here: no later delivery may do it."""
        if not lanes or not (pruned := await self._outbox.read(partial(pruned_lanes, lanes=lanes))):
            return
        bound = await self._outbox.read(read_binding)
        origin = replace(self._outbox.origin, store_id=expected_store_id(), **bound.last_erasure)
        try:
            stored = await self._store.runtime.read(Reader.lanes, origin.origin_id, list(pruned))
            batch = [
                LaneBatch(conversation_id=name, deliveries=(), pruned=pruned[name])
                for name, lane in stored.items()
                if lane.floor < min(pruned[name], lane.sequence)
            ]
            if batch:
                await self._store.apply(origin, batch)
        except (StoreFault, OriginSuperseded, ErasuresPending) as error:  # tried again, and deliveries report it
            logger.debug("ledgers of records could not be trimmed: %s", error, extra=log_context())

    async def _count_log(self, incarnation: int) -> ReconcileResult:
        count = await _twice(partial(self._store.runtime.continuity.count, self.progress.log_after))
        complete = self.progress.log_complete and not count.missing
        ended = count.next == 0
        self.progress.log_after, self.progress.log_complete = count.next, complete or ended
        if count.missing or (ended and complete):
            problem = f"{count}: {_INCOMPLETE}" if count.missing else None
            write = partial(_note_log, problem=problem, incarnation=incarnation, now_us=self._clock.now_us())
            if (changed := await self._outbox.write(write)) is None:
                return ReconcileResult(fenced=True)
            if changed and problem:
                logger.error("%s", problem, extra=log_context())
            elif changed:
                self.schedule_all()  # a restored backup is older than what was delivered
                logger.info("the log of the history store is whole again", extra=log_context())
        return ReconcileResult()


async def _twice(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask, and again at once after a fault of the store: a connection cut while it was idle is no outage."""
    try:
        return await ask()
    except StoreFault as fault:
        if fault.fault_class not in STORE_FAULT_CLASSES:
            raise
    return await ask()


def _settle(
    connection: sa.Connection, *, behind: Mapping[str, int], recovered: Mapping[str, int], incarnation: int, now_us: int
) -> dict[str, Rewound] | None:
    if not is_current_lease(connection, incarnation):
        return None
    for name, upto in recovered.items():
        unblock_recovered(connection, name, upto, now_us=now_us)
    rewound = {name: rewind_lane(connection, name, head, now_us=now_us) for name, head in behind.items()}
    return {name: lane for name, lane in rewound.items() if lane.events or lane.lost}


def _note_log(connection: sa.Connection, *, problem: str | None, incarnation: int, now_us: int) -> bool | None:
    if not is_current_lease(connection, incarnation):
        return None
    return record_finding(connection, IncidentKind.HISTORY_INCOMPLETE, problem, now_us=now_us)
