"""Drain: one step of delivery, from reading what is due to writing back what became of it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import sqlalchemy as sa

from letopis.outbox.account import Mark, RelayStats, context, logger, tell_mark, tell_rewound
from letopis.outbox.backoff import RetryPolicy
from letopis.outbox.breaker import Breaker
from letopis.outbox.clock import Clock, Waits
from letopis.outbox.diversity import Diversity
from letopis.outbox.file import OutboxFile
from letopis.outbox.isolation import OF_THE_STORE, Isolation, Refusal, Sent
from letopis.outbox.lanes import Due, Lane, next_batch, tails
from letopis.outbox.lease import Beat, Lease, beat
from letopis.outbox.marks import Acknowledged, Rewound, acknowledge, block, holds, retry_later, rewind
from letopis.store.errors import LetopisError, OutboxFull, OutboxUnavailable
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.history import ConversationStore
from letopis.store.plan import ApplyResult, LaneBatch

HEARTBEAT: Final = 10.0
"""Seconds between two stamps of a relay that has nothing to write back."""
PAGE: Final = 500
"""Lanes compared with the history store at a time."""
ASIDE_EVERY: Final = 50
"""So many deliveries in a row are followed by what is otherwise done in quiet moments."""
TIDY: Final = 5.0
"""Seconds between two quiet moments that are used to tidy the outbox file."""
CHORE_AGAIN: Final = 60.0
"""Seconds until a chore that failed is tried again."""
RAMP_PAUSE: Final = 0.1
"""Seconds, at most, between two batches after an outage, so that many relays do not come back in step."""
FIRST_LOOK: Final = ""
AT_ONCE: Final = 2
"""Batches that a long backlog has under way at once, each on a connection of its own; one more is read meanwhile."""
STRETCH: Final = 8
"""Batches delivered one after the other before anything else is looked at; less than a second's work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step came to.

    :ivar more: whether the next one is worth making at once.
    :ivar wait: seconds until something that waits now is due; ``None`` where nothing does.
    :ivar fenced: whether another relay has taken over.
    """

    delivered: int = 0
    more: bool = False
    wait: float | None = None
    fenced: bool = False

    def and_then(self, other: Step) -> Step:
        """Return what this one and the next came to together."""
        waits = [one for one in (self.wait, other.wait) if one is not None]
        return Step(
            delivered=self.delivered + other.delivered,
            more=self.more and other.more,
            wait=min(waits, default=None),
            fenced=self.fenced or other.fenced,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What writing back changed."""

    acknowledged: Acknowledged
    marked: tuple[bool, ...]
    rewound: Mapping[str, Rewound]


class Drain:
    """Delivers from one outbox file to one history store, a step at a time. Not to be used by two tasks at once.

    In a long backlog two batches of different conversations are under way at once: while the store works on one, the
    other is read, made ready or written back.

    No transaction of the outbox is open while the store is spoken to. What became of a batch is written back in one
    transaction, fenced by the incarnation that the batch was read under; if that is lost, the batch is sent again and
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
        chores: Sequence[Callable[[sa.Connection], bool]] = (),
        chore_interval: float = 5.0,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._lease = lease
        self._policy = policy
        self._clock = clock
        self._uniform = uniform
        self.breaker = breaker
        self._batch = batch
        self._waits = Waits(clock, longest=policy.cap)
        self._diversity = Diversity()
        self._isolation = Isolation(
            self._apply, diversity=self._diversity, deadline=deadline, uniform=uniform, monotonic=clock.monotonic
        )
        self._unsure: Counter[str] = Counter()
        self._chores = chores
        self._chore_interval = chore_interval
        self._chores_due = clock.after(0)
        self._tidy_due = clock.after(TIDY)
        self._beat_due = clock.after(0)
        self._beaten = 0  # of stats.delivered, what the relay's row has been told
        self._look_from: str | None = FIRST_LOOK
        self._was_closed = True
        self._steps = 0
        self._aside_at = ASIDE_EVERY
        self.stats = RelayStats()

    @property
    def policy(self) -> RetryPolicy:
        """How refused events are tried again."""
        return self._policy

    @policy.setter
    def policy(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._waits.longest = policy.cap

    def compare_again(self) -> None:
        """Have all lanes compared with the history store, when there is time: it may have been restored."""
        self._look_from = FIRST_LOOK

    async def stretch(self) -> Step:
        """Do as :meth:`step`, and go on while all goes well and there is more than one batch, for some batches.

        :raises OutboxUnavailable: the outbox file cannot be read or written.
        """
        return await self.step(batches=STRETCH)

    async def step(self, *, batches: int = 1) -> Step:
        """Deliver one batch of what is due; where nothing is, do what is done in quiet moments.

        :param batches: how many may be delivered at most.
        :raises OutboxUnavailable: the outbox file cannot be read or written.
        """
        if not self.breaker.closed:
            if not self.breaker.probe():
                return await self._rest(max(self.breaker.remaining(), 0.05))
            self._was_closed = False
            try:
                return await self._probe()
            finally:
                self.breaker.hold()
        if not self._was_closed:
            self._was_closed = True  # by another relay of this process
            self.compare_again()
        if self.breaker.ramping:
            await asyncio.sleep(self._uniform(0.0, RAMP_PAUSE))
        due = await self._due(limit=self.breaker.limit(self._batch))
        if self._lease.held and due.incarnation != self._lease.incarnation:
            return self._fenced()
        self._steps += 1
        if not (due.batches or due.broken):
            return await self._aside(due)
        if self._steps >= self._aside_at:
            self._aside_at = self._steps + ASIDE_EVERY
            if (aside := await self._aside(due)).fenced:
                return aside
        if batches > 1 and due.full and self._is_easy(due):
            return await self._deliver_on(due, batches)
        return await self._deliver(due) if self.breaker.closed else Step(more=True)

    async def _deliver_on(self, due: Due, batches: int) -> Step:
        """Deliver a batch, and while the store works on it begin with those that follow, of other conversations."""
        under_way: deque[tuple[Due, asyncio.Task[Step]]] = deque()
        following: Due | None = due
        whole = Step(more=True)
        try:
            while True:
                if following is not None and len(under_way) < AT_ONCE:
                    under_way.append((following, asyncio.create_task(self._deliver(following))))
                    following = None
                    batches -= 1
                if following is None and batches > 0 and whole.more and self.breaker.closed:
                    # Read while the others are under way, so that it is there when there is room for it.
                    following = await self._ahead(due.incarnation, [one for one, _ in under_way])
                    if following is not None and len(under_way) < AT_ONCE:
                        continue
                if not under_way:
                    return whole
                whole = whole.and_then(await under_way[0][1])
                under_way.popleft()
                if not (whole.more and self.breaker.closed):
                    following = None  # what is under way is finished
        except asyncio.CancelledError:
            for _, task in under_way:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    async def _ahead(self, incarnation: int, under_way: Sequence[Due]) -> Due | None:
        """Return what is due beside what is under way; ``None`` where that is nothing, or not as easy."""
        busy = frozenset(name for one in under_way for name in one.lanes)
        due = await self._due(limit=self._batch, exclude=busy)
        if due.incarnation != incarnation or not due.batches or due.broken:
            return None
        self._steps += 1
        return due

    def _is_easy(self, due: Due) -> bool:
        """Whether nothing about a batch asks for care: no outage a moment ago, nothing that was refused before."""
        troubled = due.broken or any(lane.attempts for lane in due.lanes.values())
        return self.breaker.closed and not (troubled or self.breaker.ramping or self._diversity.failing)

    async def _aside(self, due: Due) -> Step:
        """Do what is done in quiet moments, and now and then in busy ones."""
        return await (self._rest(due.wait) if self._look_from is None else self._compare(due))

    async def _probe(self) -> Step:
        """Ask a store that was away, with one event, if possible of a conversation that did not fail before."""
        due = await self._due(limit=1, exclude=self.breaker.suspects)
        if not due.batches:
            due = await self._due(limit=1)
        if self._lease.held and due.incarnation != self._lease.incarnation:
            return self._fenced()
        if due.batches or due.broken:
            return await self._deliver(due)
        try:
            await self._store.prepare()
            await self._store.ping()
        except StoreFault as fault:
            self._trip(fault, ())
        else:
            self._succeed()
        return await self._rest(0.0 if self.breaker.closed else self.breaker.remaining(), progress=True)

    async def _due(self, *, limit: int, exclude: frozenset[str] = frozenset()) -> Due:
        return await self._outbox.read(partial(next_batch, waits=self._waits, max_events=limit, exclude=exclude))

    async def _apply(self, batches: Sequence[LaneBatch]) -> ApplyResult:
        return await self._store.apply(self._outbox.origin, batches)

    async def _deliver(self, due: Due) -> Step:
        # A lane that was refused goes on its own, or each of its retries would have the whole batch sent in parts.
        suspects = [lane.conversation_id for lane in due.lanes.values() if lane.attempts]
        sent = await self._isolation.send(due.batches, suspects=suspects) if due.batches else Sent()
        self.stats.batches += 1
        self.stats.faults.update(sent.faults)
        self.stats.duplicates += sent.duplicates
        if sent.answered:
            self._succeed()
        if sent.fault is not None:
            self._trip(sent.fault, [one.conversation_id for one in due.batches])
        marks = [self._mark(due.lanes[one.conversation_id], one) for one in sent.refusals]
        marks += [_damaged(lane) for lane in due.broken]
        written = await self._write_back(due, sent, marks)
        if written is None:
            return self._fenced()
        self._tell(due, sent, marks, written)
        delivered = written.acknowledged.events
        if sent.gaps:
            self.compare_again()
        if sent.fault is not None:
            return Step(delivered=delivered, wait=self.breaker.remaining())
        return Step(delivered=delivered, more=True, wait=due.wait)

    def _mark(self, lane: Lane, refusal: Refusal) -> Mark:
        """Decide what a refused event means for its lane: another try, and when, or the end of them."""
        moved = refusal.sequence - 1 != lane.delivered
        before = 0 if moved else lane.attempts
        lane = replace(lane, delivered=refusal.sequence - 1)
        attempts = before + (refusal.charged or refusal.final)
        mark = Mark(
            lane=lane,
            attempts=attempts,
            fault_class=refusal.fault_class,
            fault=refusal.fault,
            event=refusal.event,
        )
        if refusal.final or attempts > self._policy.attempts:
            return mark
        if not refusal.charged:
            self._unsure[lane.conversation_id] += 1
        retry = attempts if refusal.charged else self._unsure[lane.conversation_id]
        delay = self._policy.delay(retry, uniform=self._uniform)
        return replace(mark, due_at_us=self._waits.set(lane.conversation_id, delay), delay=delay)

    async def _write_back(self, due: Due, sent: Sent, marks: Sequence[Mark]) -> _Written | None:
        what = self._beat(progress=True)
        self._beaten += what.delivered  # two may be written back at once
        write = partial(
            _write_back,
            due=due,
            sent=sent,
            marks=marks,
            what=what,
            incarnation=self._lease.incarnation,
            now_us=self._clock.now_us(),
        )
        try:
            written = await self._outbox.write(write)
        except OutboxUnavailable:
            self._beaten -= what.delivered
            self.stats.acks_lost += bool(sent.delivered)
            raise
        if written is None:
            self._beaten -= what.delivered
            return None
        if written.acknowledged.erased:
            self._outbox.cut_back()
        self._beaten += written.acknowledged.events
        self._beat_due = self._clock.after(HEARTBEAT)
        return written

    def _tell(self, due: Due, sent: Sent, marks: Sequence[Mark], written: _Written) -> None:
        """Count and log what was written back."""
        self.stats.delivered += written.acknowledged.events
        for mark, marked in zip(marks, written.marked, strict=True):
            if marked:
                tell_mark(mark, attempts=self._policy.attempts)
                if mark.due_at_us is None:
                    self._blocked(mark.lane.conversation_id)
        if sent.faults and sent.delivered and not (marks or sent.fault):
            passed = ", ".join(f"{count} {one}" for one, count in sent.faults.items())
            logger.info("delivered after faults that passed: %s", passed, extra=context(None))
        troubled = {mark.lane.conversation_id for mark in marks}
        for conversation_id in sent.delivered:
            lane = due.lanes[conversation_id]
            if conversation_id not in troubled:
                self._unsure.pop(conversation_id, None)
                self._waits.forget(conversation_id)
                if lane.state == "retrying":
                    logger.info(
                        "conversation %r is delivered again after %d refusals",
                        conversation_id,
                        lane.attempts,
                        extra=context(lane),
                    )
        for conversation_id, verdicts in sent.superseded.items():
            logger.info(
                "%d events of conversation %r came after another writer's turn: kept, and put aside",
                len(verdicts),
                conversation_id,
                extra=context(due.lanes[conversation_id]),
            )
        self._rewound(written.rewound)

    def _blocked(self, conversation_id: str) -> None:
        self.stats.blocked += 1
        self._waits.forget(conversation_id)
        self._unsure.pop(conversation_id, None)
        self._diversity.forget(conversation_id)

    def _rewound(self, rewound: Mapping[str, Rewound]) -> None:
        self.stats.rewound += sum(one.events for one in rewound.values())
        self.stats.blocked += sum(one.lost > 0 for one in rewound.values())
        tell_rewound(rewound)

    def _succeed(self) -> None:
        away = self.breaker.succeed()
        if away is not None:
            logger.info("the history store is back after %.1f s", away, extra=context(None))
            self._was_closed = True
            self.compare_again()

    def _trip(self, fault: StoreFault, conversation_ids: Sequence[str]) -> None:
        before = None if self.breaker.trouble is None else self.breaker.trouble.code
        self.breaker.trip(fault, conversation_ids)
        human = fault.fault_class is FaultClass.MISCONFIGURED and before != fault.code
        logger.log(
            logging.ERROR if human else logging.WARNING,
            "the history store cannot be delivered to, next try in %.1f s: %s",
            self.breaker.remaining(),
            fault,
            extra=context(None),
        )

    async def _compare(self, due: Due) -> Step:
        """Compare a page of lanes with the history store, and send again what it lost: a restored backup heals."""
        page = await self._outbox.read(partial(tails, after=self._look_from or FIRST_LOOK, limit=PAGE))
        if page:
            try:
                heads = await self._store.lane_heads(self._outbox.origin.origin_id, list(page))
            except Exception as error:  # a look that fails must not keep the relay from delivering
                if isinstance(error, StoreFault) and error.fault_class in OF_THE_STORE:
                    self._trip(error, ())
                    return Step(wait=self.breaker.remaining())
                self._look_from = None
                what = str(error) if isinstance(error, StoreFault) else type(error).__name__
                logger.warning("lanes could not be compared with the history store: %s", what, extra=context(None))
                return Step(more=True, wait=due.wait)
            behind = {one: heads.get(one, 0) for one, delivered in page.items() if heads.get(one, 0) < delivered}
            if behind:
                rewound = await self._outbox.write(
                    partial(_rewind_all, behind=behind, incarnation=due.incarnation, now_us=self._clock.now_us())
                )
                if rewound is None:
                    return self._fenced()
                self._rewound(rewound)
        self._look_from = max(page) if len(page) == PAGE else None
        return Step(more=True, wait=due.wait)

    async def _rest(self, wait: float | None, *, progress: bool = False) -> Step:
        """Stamp the relay's row and do a chore, when it is time for either."""
        if self._lease.held and (progress or self._beat_due.remaining(self._clock) == 0):
            stamp = partial(
                beat,
                incarnation=self._lease.incarnation,
                what=self._beat(progress=progress),
                now_us=self._clock.now_us(),
            )
            if not await self._outbox.write(stamp):
                return self._fenced()
            self._beat_due = self._clock.after(HEARTBEAT)
        if self._tidy_due.remaining(self._clock) == 0:
            await self._tidy()
        due = self._chores and self.breaker.closed and self._chores_due.remaining(self._clock) == 0
        if due and await self._do_chores():
            return Step(more=True, wait=wait)
        return Step(wait=wait, more=wait == 0)

    async def _do_chores(self) -> bool:
        """Do each chore once; whether one of them has more to do at once."""
        more = False
        again = self._chore_interval
        for chore in self._chores:
            try:
                more = await self._outbox.write(chore) or more
            except Exception as error:  # a chore that fails must not keep the relay from delivering
                again = CHORE_AGAIN
                logger.warning(
                    "a chore of the relay failed, next try in %.0f s: %s",
                    again,
                    error if isinstance(error, LetopisError) else type(error).__name__,
                    extra=context(None),
                )
        self._chores_due = self._clock.after(0.0 if more else again)
        return more

    async def _tidy(self) -> None:
        """Have the outbox file tidied, also while the store is away: then it is what fills the disk."""
        again = TIDY
        try:
            await self._outbox.tidy()
        except (OutboxFull, OutboxUnavailable) as error:
            again = CHORE_AGAIN
            logger.warning(
                "the outbox file could not be tidied, next try in %.0f s: %s", again, error, extra=context(None)
            )
        self._tidy_due = self._clock.after(again)

    def _fenced(self) -> Step:
        self.stats.acks_fenced += 1
        logger.warning(
            "another relay, or a repair, has taken this outbox over; what was under way here is sent again, harmlessly"
        )
        return Step(fenced=True)

    def _beat(self, *, progress: bool) -> Beat:
        return Beat(
            progress=progress,
            breaker=str(self.breaker.state),
            breaker_since_us=self.breaker.since_us,
            reason=self.breaker.reason,
            delivered=self.stats.delivered - self._beaten,
        )


def _write_back(
    connection: sa.Connection,
    *,
    due: Due,
    sent: Sent,
    marks: Sequence[Mark],
    what: Beat,
    incarnation: int,
    now_us: int,
) -> _Written | None:
    if not holds(connection, due.incarnation):
        return None
    acknowledged = acknowledge(connection, sent.delivered, now_us=now_us, superseded=sent.superseded)
    marked = []
    for mark in marks:
        if mark.due_at_us is None:
            done = block(connection, mark.lane, attempts=mark.attempts, fault_class=mark.fault_class, fault=mark.fault)
        else:
            done = retry_later(
                connection,
                mark.lane,
                attempts=mark.attempts,
                due_at_us=mark.due_at_us,
                fault_class=mark.fault_class,
                fault=mark.fault,
            )
        marked.append(done)
    rewound = {one: rewind(connection, one, head, now_us=now_us) for one, head in sent.gaps.items()}
    # With what this transaction itself acknowledges: there may be no later beat.
    beat(connection, incarnation, replace(what, delivered=what.delivered + acknowledged.events), now_us=now_us)
    return _Written(acknowledged=acknowledged, marked=tuple(marked), rewound=rewound)


def _rewind_all(
    connection: sa.Connection, *, behind: Mapping[str, int], incarnation: int, now_us: int
) -> dict[str, Rewound] | None:
    if not holds(connection, incarnation):
        return None
    return {one: rewind(connection, one, head, now_us=now_us) for one, head in behind.items()}


def _damaged(lane: Lane) -> Mark:
    return Mark(
        lane=lane,
        attempts=lane.attempts,
        fault_class="damaged",
        fault=f"event {lane.delivered + 1} is owed, but the outbox file does not hold it: the file was damaged",
        event=None,
    )
