"""Deliver what is due from one outbox file to one history store, a few batches at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.event_log.acknowledge import Rewound
from letopis.outbox.event_log.lanes import DueBatches, next_batch
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.content_retention import CheckpointPruner, ContentTrimmer, RetentionSettings
from letopis.outbox.relay.erasures import ErasureCarrier
from letopis.outbox.relay.idle_work import Chore, Chores, StoreTasks, TaskLook
from letopis.outbox.relay.lease import HeartbeatWriter, Lease, WrittenBack, write_back
from letopis.outbox.relay.outcome import (
    Breakers,
    LaneFailure,
    LaneRetries,
    RelayStats,
    SendResult,
    StepResult,
    damaged,
    log_delivery,
    log_lane_failure,
    log_rewind,
    logger,
)
from letopis.outbox.relay.poison_isolation import PoisonIsolation
from letopis.outbox.relay.reconcile import ReconcileProgress, Reconciler
from letopis.outbox.relay.store_binding import BindingGuard
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.fault_attribution import FaultAttribution
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import StoreIdentity, expect_store
from letopis.store.errors import ErasuresPending, OutboxUnavailable
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, Origin
from letopis.store.rules.retention import ContentRetention

IDLE_WORK_EVERY_BATCHES: Final = 50  # deliveries in a row after which idle work is done although more is due
MAX_RAMP_PAUSE_SECONDS: Final = 0.1
"""Longest pause between two batches after an outage, so that many relays do not resume in step."""
MAX_CONCURRENT_BATCHES: Final = 2
"""Batches of a long backlog in flight at once, each on its own connection; one more is prefetched meanwhile."""
MAX_BATCHES_PER_RUN: Final = 8  # batches delivered before the relay's loop turns
MAX_RUN_SECONDS: Final = 0.5
"""Time after which no further batch of a run is begun: a slow store must not keep other files waiting."""
_FAILOVER_CLASSES: Final = frozenset({FaultClass.UNAVAILABLE, FaultClass.UNKNOWN_OUTCOME})
"""Classes of faults after which another store may answer, even where a retry was enough."""

ApplyBatches = Callable[[Origin, Sequence[LaneBatch]], Awaitable[ApplyResult]]
"""Hands batches to the history store, as :meth:`ConversationStore.apply` does."""


@dataclass(slots=True)
class RelayMemory:
    """What one relay of a file hands on to the next one of the same process; empty for the first."""

    attribution: FaultAttribution = field(default_factory=FaultAttribution)
    retries: LaneRetries | None = None
    wrong_store: Breaker | None = None  # for a store that is not the outbox's own
    reconciled: ReconcileProgress | None = None
    task_look: TaskLook | None = None  # may be shared with the relays of other files


class Dispatcher:
    """Delivers from one outbox file to one history store. Not to be used by two tasks at once.

    No transaction of the outbox is open while the store is called. The outcome of a batch is written back in one
    transaction, fenced by the incarnation under which the batch was read; if that is lost, the batch is sent again and
    the store recognises it.
    """

    def __init__(
        self,
        outbox: OutboxFile,
        store: ConversationStore,
        lease: Lease,
        *,
        policy: RetryPolicy,
        clock: Clock,
        uniform: Callable[[float, float], float],
        breaker: Breaker,
        batch: int,
        deadline: float,
        apply: ApplyBatches | None = None,
        chores: Sequence[Chore] = (),
        memory: RelayMemory | None = None,
        retention: ContentRetention | None = None,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._apply_batches = apply
        self._lease = lease
        self._clock = clock
        self._uniform = uniform
        self._batch = batch
        before = memory or RelayMemory()
        self.breakers = Breakers(breaker, clock=clock, uniform=uniform, wrong_store=before.wrong_store)
        self.binding = BindingGuard(outbox, store)
        self.retries = before.retries or LaneRetries(policy, clock=clock, uniform=uniform)
        self.retries.policy = policy
        self._attribution = before.attribution
        self._isolation = PoisonIsolation(
            self._apply,
            try_out=store.runtime.try_out,
            attribution=self._attribution,
            deadline=deadline,
            uniform=uniform,
            monotonic=clock.monotonic,
        )
        self._task_look = look = before.task_look
        self._tasks = StoreTasks(store, clock, look=look)
        self._heartbeat = HeartbeatWriter(outbox, lease, self.breakers, self._tasks, clock=clock)
        self._chores = Chores(outbox, chores, clock=clock)
        self._erasures = ErasureCarrier(outbox, store)
        self._reconciler = Reconciler(outbox, store, clock=clock, progress=before.reconciled)
        self._in_outage = False
        self._batches = 0
        self._idle_work_at = IDLE_WORK_EVERY_BATCHES
        self.stats = RelayStats()
        self.retention = RetentionSettings(retention)
        self.idle_chores = [
            chore(outbox, store, clock, settings=self.retention, stats=self.stats, look=look)
            for chore in (ContentTrimmer, CheckpointPruner)
        ]

    @property
    def breaker(self) -> Breaker:
        """Whether deliveries are allowed, and why not: the store's breaker, unless it is the wrong store."""
        return self.breakers.current

    @property
    def memory(self) -> RelayMemory:
        """What the next relay of this file is to know, if this one ends."""
        return RelayMemory(
            attribution=self._attribution,
            retries=self.retries,
            wrong_store=self.breakers.wrong_store,
            reconciled=self._reconciler.progress,
            task_look=self._task_look,
        )

    def schedule_reconcile(self) -> None:
        """Have all lanes compared with the history store in the next idle moment: it may have been restored."""
        self._reconciler.schedule_all()
        self.binding.recheck()

    # The trip of a delivery: claim, prefetch, send, write back; idle work where nothing is due.

    async def run_batches(self, limit: int = MAX_BATCHES_PER_RUN) -> StepResult:
        """Deliver what is due, several batches while all goes well; do idle work where nothing is due."""
        if not (breaker := self.breaker).closed:
            return await self._probe(breaker)
        if self._in_outage:
            self._in_outage = False  # another relay of this process closed the breaker
            self.schedule_reconcile()
        if breaker.ramping:
            await asyncio.sleep(self._uniform(0.0, MAX_RAMP_PAUSE_SECONDS))
        due = await self._claim(limit=breaker.batch_limit(self._batch))
        if (ended := await self._check(due)) is not None:
            return ended
        self._batches += 1
        idle = not (due.batches or due.broken)
        more_tasks = False
        if self._tasks.due(idle=idle):
            step = self._tasks.step(self.binding.origin.store_id, idle=idle)
            more_tasks = await self._heartbeat.during(step, "a step of a long rewind or deletion")
        if idle:
            done = await self._idle_work(due)
            bound_to, busy = self.binding.origin.store_id, done.more or more_tasks or done.fenced
            for chore in self.idle_chores:
                if not (busy or more_tasks) and self.breaker.closed and chore.due(bound_to):
                    more_tasks = await self._heartbeat.during(chore.step(bound_to), f"retention of {chore.name}")
            return replace(done, more=done.more or more_tasks)
        if self._batches >= self._idle_work_at:
            self._idle_work_at = self._batches + IDLE_WORK_EVERY_BATCHES
            if (done := await self._idle_work(due)).fenced:
                return done
        if limit > 1 and due.full and self._all_is_well(due):
            return await self._deliver_concurrently(due, limit)
        return await self._deliver(due) if breaker.closed else StepResult(more=True)

    async def _claim(self, *, limit: int, exclude: frozenset[str] = frozenset()) -> DueBatches:
        read = partial(
            next_batch,
            waits=self.retries.timers,
            max_events=limit,
            exclude=exclude,
            partitions=self._store.runtime.known_partitions,
        )
        return await self._outbox.read(read)

    async def _check(self, due: DueBatches) -> StepResult | None:
        """Check that the lease and the store are this outbox's; return the result of the step if they are not."""
        if self._lease.held and due.incarnation != self._lease.incarnation:
            return self._fenced()
        sending = bool(due.batches)
        fault = await self.binding.ensure(due.bound, incarnation=due.incarnation, sending=sending)
        if fault is not None:
            self._open_breaker(fault, ())
            return await self._idle(max(self.breaker.remaining(), 0.05), progress=True)
        if sending and self.binding.origin.store_id is None:
            return self._fenced()
        bound = due.bound
        store = self.binding.store
        if store is None or bound.store_id is None:
            return None
        same = (store.erasures, store.erasure_id) == (bound.erasures, bound.erasure_id)
        return None if same and bound.acknowledged else await self._carry_out_erasures(due, store)

    async def _carry_out_erasures(self, due: DueBatches, store: StoreIdentity) -> StepResult:
        """Carry out the erasures that the file lacks. What was read of it before must not be sent any more."""
        binding, incarnation = self.binding, due.incarnation
        work = self._erasures.carry_out(binding.origin, due.bound, store, incarnation=incarnation)
        try:
            carried_out = await self._heartbeat.during(work, "erasures")
        except ErasuresPending:
            carried_out = True
        except StoreFault as fault:
            self._open_breaker(fault, ())
            return await self._idle(max(self.breaker.remaining(), 0.05), progress=True)
        binding.recheck()
        self._record_answer()
        return StepResult(more=True) if carried_out else self._fenced()

    def _all_is_well(self, due: DueBatches) -> bool:
        """Return True if there was no outage a moment ago, and no lane of the batch was refused before."""
        failed = due.broken or any(lane.attempts for lane in due.lanes.values())
        return not (failed or self.breaker.ramping or self._attribution.failing_conversations) and self.breaker.closed

    async def _deliver_concurrently(self, due: DueBatches, limit: int) -> StepResult:
        """Deliver up to ``limit`` batches, two at a time and the next one prefetched, until something goes wrong."""
        end = self._clock.after(MAX_RUN_SECONDS)
        in_flight: deque[tuple[DueBatches, asyncio.Task[StepResult]]] = deque()
        following: DueBatches | None = due
        result = StepResult(more=True)
        try:
            while True:
                if following is not None and len(in_flight) < MAX_CONCURRENT_BATCHES:
                    in_flight.append((following, asyncio.create_task(self._deliver(following))))
                    following = None
                    limit -= 1
                if end.remaining(self._clock) == 0 or not self.binding.checked:
                    limit = 0
                if following is None and limit > 0 and result.more and self.breaker.closed:
                    following = await self._prefetch(due.incarnation, [batch for batch, _ in in_flight])
                    if following is not None and len(in_flight) < MAX_CONCURRENT_BATCHES:
                        continue
                if not in_flight:
                    return result
                result = result.and_then(await in_flight[0][1])
                in_flight.popleft()
                if not (result.more and self.breaker.closed and self.binding.checked):
                    following = None
        except asyncio.CancelledError:
            for _, task in in_flight:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*(task for _, task in in_flight), return_exceptions=True)

    async def _prefetch(self, incarnation: int, in_flight: Sequence[DueBatches]) -> DueBatches | None:
        """Claim what is due beside the batches in flight; return ``None`` if that is nothing, or needs care."""
        busy = frozenset(name for batch in in_flight for name in batch.lanes)
        due = await self._claim(limit=self._batch, exclude=busy)
        if due.incarnation != incarnation or not due.batches or due.broken:
            return None
        self._batches += 1
        return due

    async def _deliver(self, due: DueBatches) -> StepResult:
        """Send a batch and write back its outcome."""
        sent = SendResult()
        if due.batches:
            # A lane that was refused goes on its own, or each of its retries would split the whole batch.
            suspects = due.suspects
            try:
                sent = await self._heartbeat.during(self._isolation.send(due.batches, suspects=suspects), "a batch")
            except ErasuresPending:
                self.binding.recheck()  # so that the next step learns of them
                return StepResult(more=True)
        self.stats.batches += 1
        self.stats.faults.update(sent.faults)
        self.stats.duplicates += sent.duplicates
        if sent.answered:
            self._record_answer()
        if sent.fault is not None:
            self._open_breaker(sent.fault, sent.suspects)
        failures = list[LaneFailure]()
        if sent.refusals or due.broken:
            failures = [self.retries.refused(due.lanes[refusal.conversation_id], refusal) for refusal in sent.refusals]
            failures += [damaged(lane) for lane in due.broken]
        written = await self._write_back(due, sent, failures)
        if written is None:
            return self._fenced()
        self._update_lanes(sent, failures, written)
        if due.suspects or sent.faults or sent.superseded:
            log_delivery(due, sent, failures)
        if written.rewound:
            self._report_rewinds(written.rewound)
        if sent.delivered:
            await self.binding.note_location(due.bound)
        self._tasks.expect(due.batches)
        self._reconciler.delivered(sent.delivered)
        if sent.gaps or sent.faults.keys() & _FAILOVER_CLASSES:
            self.schedule_reconcile()
        if sent.fault is not None:
            # Without a free connection of this process nothing is wrong: it goes on at once.
            more, wait = self.breaker.closed, self.breaker.remaining()
            return StepResult(delivered=written.acknowledged.events, more=more, wait=wait)
        return StepResult(delivered=written.acknowledged.events, more=True, wait=due.wait)

    def _apply(self, batches: Sequence[LaneBatch]) -> Awaitable[ApplyResult]:
        return (self._apply_batches or self._store.apply)(self.binding.origin, batches)

    async def _write_back(
        self, due: DueBatches, sent: SendResult, failures: Sequence[LaneFailure]
    ) -> WrittenBack | None:
        """Write back the outcome of a batch; return ``None`` if another relay has taken over."""
        write = partial(
            write_back,
            due=due,
            sent=sent,
            failures=failures,
            heartbeat=self._heartbeat.next(progress=True),
            incarnation=self._lease.incarnation,
            now_us=self._clock.now_us(),
        )
        try:
            written = await self._outbox.write(write)
        except OutboxUnavailable:
            self.stats.acks_lost += bool(sent.delivered)
            raise
        if written is None:
            return None
        self._heartbeat.written()
        if written.acknowledged.erased:
            self._outbox.truncate_wal()
            self._chores.erase_soon()
        self.stats.delivered += written.acknowledged.events
        return written

    def _update_lanes(self, sent: SendResult, failures: Sequence[LaneFailure], written: WrittenBack) -> None:
        """Note which lanes wait no longer, and which are blocked now."""
        failed = [failure.lane.conversation_id for failure in failures] if failures else ()
        for conversation_id in sent.cleared:
            self.retries.forget(conversation_id)
        for conversation_id in sent.delivered:
            if conversation_id not in failed:
                self.retries.forget(conversation_id)
        for failure in written.marked:
            log_lane_failure(failure, attempts=self.retries.policy.attempts)
            if failure.blocks:
                self.stats.blocked += 1
                self.retries.forget(failure.lane.conversation_id)
                self._attribution.forget(failure.lane.conversation_id)

    # Around the trip: outages, idle moments, a lost lease.

    async def _probe(self, breaker: Breaker) -> StepResult:
        """Probe an unavailable store, if that is due, with one event, each time of another conversation."""
        if not breaker.begin_probe():
            return await self._idle(max(breaker.remaining(), 0.05))
        self._in_outage = True
        try:
            due = await self._claim_for_probe()
            if (ended := await self._check(due)) is not None:
                return ended
            if due.batches or due.broken:
                return await self._deliver(due)
            try:
                await self._store.prepare()
                await self._store.ping()
            except StoreFault as fault:
                self._open_breaker(fault, ())
            else:
                self._record_answer()
            return await self._idle(self.breaker.remaining(), progress=True)
        finally:
            breaker.end_probe()

    async def _claim_for_probe(self) -> DueBatches:
        for exclude in self.breaker.probe_exclusions():
            due = await self._claim(limit=1, exclude=exclude)
            if due.batches or due.broken:
                return due
        return await self._claim(limit=1)

    def _record_answer(self) -> None:
        if self.breakers.record_success():
            self._in_outage = False
            self.schedule_reconcile()

    def _open_breaker(self, fault: StoreFault, conversation_ids: Sequence[str]) -> None:
        if fault.fault_class is FaultClass.WRONG_STORE:
            self.binding.recheck()
        self.breakers.trip(fault, conversation_ids)

    async def _idle_work(self, due: DueBatches) -> StepResult:
        """Reconcile if that is due, or rest; done when nothing is due, and now and then in busy times."""
        return await (self._reconcile(due) if self._reconciler.due else self._idle(due.wait))

    async def _reconcile(self, due: DueBatches) -> StepResult:
        """Ask the history store whether it still holds what was delivered."""
        try:
            with expect_store(self.binding.origin.store_id):
                compared = await self._reconciler.compare(due.incarnation)
                store = self.binding.store
                if self._erasures.reported or (store is not None and (store.erasures or store.holds)):
                    await self._erasures.report()
        except StoreFault as fault:
            self._open_breaker(fault, ())
            return StepResult(wait=self.breaker.remaining())
        if compared.fenced:
            return self._fenced()
        if compared.rewound:
            self._report_rewinds(compared.rewound)
        self.binding.recheck()  # it may have been moved away since
        return StepResult(more=True, wait=due.wait)

    def _report_rewinds(self, rewound: Mapping[str, Rewound]) -> None:
        self.stats.rewound += sum(lane.events for lane in rewound.values())
        self.stats.blocked += sum(lane.lost > 0 for lane in rewound.values())
        log_rewind(rewound)

    async def _idle(self, wait: float | None, *, progress: bool = False) -> StepResult:
        """Write a heartbeat and run chores, as far as they are due."""
        beat = self._heartbeat.due or (progress and self._lease.held)
        if beat and not await self._heartbeat.write(progress=progress):
            return self._fenced()
        if await self._chores.run(store_available=self.breaker.closed):
            return StepResult(more=True, wait=wait)
        return StepResult(wait=wait, more=wait == 0)

    def _fenced(self) -> StepResult:
        self.stats.acks_fenced += 1
        logger.warning(
            "another relay, or a repair, has taken this outbox over; what was in flight here is sent again, harmlessly"
        )
        return StepResult(fenced=True)
