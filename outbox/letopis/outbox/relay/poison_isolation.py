"""Send a batch, and isolate the event that makes it fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Final

from letopis.outbox.relay.outcome import Refusal, SendResult
from letopis.outbox.retry.fault_attribution import (
    ISOLATE_AFTER_FAILURES,
    STORE_FAULT_CLASSES,
    TRIAL_CLASSES,
    FaultAttribution,
    as_store_fault,
)
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.database.faults import POOL_TIMEOUT_CODE, FaultClass, StoreFault
from letopis.store.errors import Closed, ErasuresPending, HistoryDiverged, LetopisError, OriginSuperseded, SequenceGap
from letopis.store.rules.apply_plan import ApplyResult, LaneBatch, SequencedEvent
from letopis.store.rules.preconditions import batch_of

Apply = Callable[[Sequence[LaneBatch]], Awaitable[ApplyResult]]
TryOut = Callable[[str], Awaitable[None]]

MAX_UNAVAILABLE_TRIES: Final = 2
"""Tries while the store is unavailable: a connection that was cut while it was idle is no outage yet."""
_MAX_TRIES: Final = {
    FaultClass.CONFLICT: 4,
    FaultClass.UNKNOWN_OUTCOME: 2,  # the commit may have taken effect
    FaultClass.UNAVAILABLE: MAX_UNAVAILABLE_TRIES,
}
"""Tries of a batch, by class of fault, before the fault counts; other faults count at once."""
_IMMEDIATE_RETRIES: Final = RetryPolicy(base=0.04, factor=2.0, cap=0.32)
IMMEDIATE_RETRY_LIMIT_SECONDS: Final = 1.0  # an outage that took longer than this to show is not retried at once


@dataclass(slots=True, eq=False)
class PoisonIsolation:
    """Sends batches, and splits those that fail: by halves down to the conversation, then down to the event.

    A refusal is the store's fault if an ordinary event is refused in the same words, or if conversation after
    conversation is refused and none succeeds. Otherwise it is the event's.
    """

    apply: Apply
    _: KW_ONLY
    try_out: TryOut
    attribution: FaultAttribution
    deadline: float
    uniform: Callable[[float, float], float]
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def send(self, batches: Sequence[LaneBatch], *, suspects: Iterable[str] = ()) -> SendResult:
        """Send one batch a lane, each event at most once and in this order; return the outcome."""
        sent = SendResult()
        for group in self._groups(batches, suspects):
            if not await self._send(group, sent):
                break
        if sent.undecided or sent.fault is not None:
            if sent.fault is None and self._all_refused(sent):
                await self._try_the_rest(batches, sent)
            self._attribute(sent)
        return sent

    def _groups(self, batches: Sequence[LaneBatch], suspects: Iterable[str]) -> Sequence[Sequence[LaneBatch]]:
        charges = self.attribution.charges
        alone = {name for name, count in charges.items() if count >= ISOLATE_AFTER_FAILURES} if charges else set[str]()
        alone.update(suspects)
        if not alone:
            return [batches] if batches else []
        together = [lane for lane in batches if lane.conversation_id not in alone]
        # The most suspicious last: it may be the one that ends the turn of the others.
        isolated = sorted(
            (lane for lane in batches if lane.conversation_id in alone),
            key=lambda lane: charges.get(lane.conversation_id, 0),
        )
        return ([together] if together else []) + [[lane] for lane in isolated]

    async def _send(self, lanes: Sequence[LaneBatch], sent: SendResult) -> bool:
        """Send lanes in one transaction, or in parts; return False if no more must be sent."""
        answer = await self._try(lanes, sent)
        if isinstance(answer, ApplyResult):
            return await self._record(lanes, answer, sent)
        if self._is_store_fault(answer, lanes):
            self._fail(answer, lanes, sent)
            return False
        if len(lanes) == 1:
            return await self._find_failing_event(lanes[0], answer, sent)
        # Every other one, to part failing conversations that stand side by side because they came at the same moment.
        return await self._send(lanes[::2], sent) and await self._send(lanes[1::2], sent)

    async def _find_failing_event(self, lane: LaneBatch, fault: StoreFault, sent: SendResult) -> bool:
        """Deliver the events of a lane before the one that is refused. Return False if no more must be sent."""
        rest: Sequence[SequencedEvent] = list(lane.deliveries)
        while len(rest) > 1:
            half = LaneBatch(conversation_id=lane.conversation_id, deliveries=tuple(rest[: _middle(rest)]))
            answer = await self._try([half], sent)
            if isinstance(answer, ApplyResult):
                # Not a success of the conversation: its good events prove nothing about the failing one.
                if not await self._record([half], answer, sent, is_success=False):
                    return False
                if sent.delivered.get(lane.conversation_id) != half.deliveries[-1].sequence:
                    return True  # refused for what the store holds: no later event of the lane can follow
                rest = rest[len(half.deliveries) :]
            elif self._is_store_fault(answer, [half]):
                self._fail(answer, [half], sent)
                return False
            else:
                rest, fault = list(half.deliveries), answer
        failing_event = rest[0]
        refusal = Refusal(
            conversation_id=lane.conversation_id,
            sequence=failing_event.sequence,
            event=failing_event.event,
            fault_class=str(fault.fault_class),
            fault=str(fault),
        )
        self.attribution.record_refusal(lane.conversation_id)
        sent.undecided.append((refusal, fault))
        if fault.fault_class in TRIAL_CLASSES and (shared := await self._try_ordinary_event(fault, lane)) is not None:
            sent.fault = shared
            return False
        return not self._all_refused(sent)

    async def _try_ordinary_event(self, fault: StoreFault, lane: LaneBatch) -> StoreFault | None:
        """Return the fault that keeps the store from accepting an ordinary event too; ``None`` if it accepts one."""
        try:
            async with asyncio.timeout(self.deadline):
                await self.try_out(lane.conversation_id)
        except StoreFault as answer:
            if answer.fault_class in STORE_FAULT_CLASSES:
                return answer
            # Other words prove nothing: a rule of the database's owner may concern ordinary conversations only.
            return as_store_fault(fault) if str(answer) == str(fault) else None
        except Closed:
            raise
        except Exception:  # too slow, or a fault of ours: that proves nothing, the next delivery does
            return None
        return None

    def _all_refused(self, sent: SendResult) -> bool:
        """Return True if conversation after conversation was refused and none succeeded."""
        return self.attribution.points_to_store and not sent.any_succeeded

    async def _try_the_rest(self, batches: Sequence[LaneBatch], sent: SendResult) -> None:
        """Send the conversations that were not tried yet: if they are refused too, it is the store."""
        tried = {refusal.conversation_id for refusal, _ in sent.undecided} | sent.delivered.keys() | sent.gaps.keys()
        rest = [lane for lane in batches if lane.conversation_id not in tried]
        if rest:
            answer = await self._try(rest, sent)
            if isinstance(answer, ApplyResult):
                await self._record(rest, answer, sent)
                return
            if answer.fault_class in STORE_FAULT_CLASSES:
                self._fail(answer, rest, sent)
                return
        sent.fault = as_store_fault(sent.undecided[-1][1])

    def _attribute(self, sent: SendResult) -> None:
        """Charge the conversations that failed while others succeeded; the rest waits uncharged."""
        undecided, succeeded = sent.undecided, sent.any_succeeded
        if sent.fault is not None:
            if undecided and sent.fault.fault_class not in STORE_FAULT_CLASSES:
                refused = dict.fromkeys(refusal.conversation_id for refusal, _ in undecided)
                sent.suspects = sent.cleared = tuple(refused | dict.fromkeys(self.attribution.refused_alone))
            return
        for refusal, fault in undecided:
            if succeeded:
                self.attribution.charge(refusal.conversation_id)
            charged = self.attribution.is_charged(fault, refusal.conversation_id)
            sent.refusals.append(refusal if charged else replace(refusal, charged=False))

    def _is_store_fault(self, fault: StoreFault, lanes: Sequence[LaneBatch]) -> bool:
        return self.attribution.is_store_fault(fault, [lane.conversation_id for lane in lanes])

    def _fail(self, fault: StoreFault, lanes: Sequence[LaneBatch], sent: SendResult) -> None:
        sent.fault = fault
        sent.suspects = tuple(lane.conversation_id for lane in lanes)
        if fault.fault_class is not FaultClass.WRONG_STORE and fault.code != POOL_TIMEOUT_CODE:
            self.attribution.record_store_fault(sent.suspects)

    async def _record(
        self, lanes: Sequence[LaneBatch], result: ApplyResult, sent: SendResult, *, is_success: bool = True
    ) -> bool:
        """Record what the store accepted or refused for what it holds. Return False if no more must be sent."""
        by_id = {lane.conversation_id: lane for lane in lanes}
        succeeded = list[str]()
        for applied in result.applied:
            succeeded.append(applied.conversation_id)
            sent.inserted += applied.inserted
            sent.duplicates += applied.duplicates
            if applied.superseded:
                sent.superseded.setdefault(applied.conversation_id, {}).update(applied.superseded)
            sent.delivered[applied.conversation_id] = by_id[applied.conversation_id].deliveries[-1].sequence
        if is_success:
            self.attribution.record_success(succeeded)
        for refused in result.refused:
            lane = by_id[refused.conversation_id]
            if isinstance(refused, SequenceGap):
                sent.gaps[refused.conversation_id] = refused.head
                continue
            sequence = refused.sequence if isinstance(refused, HistoryDiverged) else lane.deliveries[0].sequence
            before = tuple(delivery for delivery in lane.deliveries if delivery.sequence < sequence)
            if before:
                part = LaneBatch(conversation_id=lane.conversation_id, deliveries=before)
                answer = await self._try([part], sent)
                if not isinstance(answer, ApplyResult):
                    self._fail(answer, [part], sent)
                    return False
                if not await self._record([part], answer, sent):
                    return False
                if sent.delivered.get(lane.conversation_id) != before[-1].sequence:
                    continue  # an earlier event was refused this time
            sent.refusals.append(
                Refusal(
                    conversation_id=lane.conversation_id,
                    sequence=sequence,
                    event=lane.deliveries[sequence - lane.deliveries[0].sequence].event,
                    fault_class="diverged",
                    fault=str(refused),
                    final=True,
                )
            )
        return True

    async def _try(self, lanes: Sequence[LaneBatch], sent: SendResult) -> ApplyResult | StoreFault:
        """Apply once, and retry at once after faults that usually pass."""
        tries = 0
        while True:
            tries += 1
            start = self.monotonic()
            answer = await self._apply_once(lanes)
            if isinstance(answer, ApplyResult):
                return answer
            kind = answer.fault_class
            sent.faults[str(kind)] += 1
            slow = kind is FaultClass.UNAVAILABLE and self.monotonic() - start > IMMEDIATE_RETRY_LIMIT_SECONDS
            if slow or answer.code == POOL_TIMEOUT_CODE or tries >= _MAX_TRIES.get(kind, 1):
                return answer
            await self.sleep(_IMMEDIATE_RETRIES.delay(tries, uniform=self.uniform))

    async def _apply_once(self, lanes: Sequence[LaneBatch]) -> ApplyResult | StoreFault:
        try:
            async with asyncio.timeout(self.deadline):
                return await self.apply(lanes)
        except StoreFault as fault:
            return fault
        except TimeoutError:
            return StoreFault(
                fault_class=FaultClass.UNKNOWN_OUTCOME,
                code="deadline",
                reason=f"the history store did not finish within {self.deadline:g} s",
            )
        except OriginSuperseded as superseded:
            return StoreFault(fault_class=FaultClass.MISCONFIGURED, code="origin-superseded", reason=str(superseded))
        except (Closed, ErasuresPending):
            raise
        except Exception as error:  # a fault of ours must not end the relay; it is attributed like any other
            reason = str(error) if isinstance(error, LetopisError) else "an error that Letopis does not know"
            return StoreFault(fault_class=FaultClass.UNCLASSIFIED, code=type(error).__name__, reason=reason)


def _middle(deliveries: Sequence[SequencedEvent]) -> int:
    """Return where to divide events: between two appends, as long as there are several."""
    middle = len(deliveries) // 2
    batches = [batch_of(delivery.event) for delivery in deliveries]
    between = [
        index for index in range(1, len(batches)) if batches[index] is None or batches[index] != batches[index - 1]
    ]
    return min(between, key=lambda index: abs(index - middle), default=middle)
