"""Isolation: send a batch, and where it fails find out whether an event is to blame, and which."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from letopis.outbox.diversity import ALONE_AFTER, EVENT_AFTER, STORE_AFTER, Diversity
from letopis.store.codec import EncodedEvent
from letopis.store.errors import Closed, HistoryDiverged, LetopisError, OriginSuperseded, SequenceGap
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.plan import ApplyResult, Delivery, LaneBatch
from letopis.store.turns import Conflict

Apply = Callable[[Sequence[LaneBatch]], Awaitable[ApplyResult]]

CONFLICT_TRIES: Final = 4
"""How often a batch is sent at once again that met another transaction."""
UNKNOWN_TRIES: Final = 2
"""How often a batch is sent at once again whose commit may have taken effect."""
LOST_TRIES: Final = 2
"""How often a batch is sent when the store is away: a connection that was cut while it lay idle is no outage yet."""
AT_ONCE: Final = 1.0
"""Seconds; what took longer to fail is not tried again at once."""

OF_THE_STORE: Final = frozenset({FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.UNKNOWN_OUTCOME})
"""Classes of faults that are the store's, whatever was being delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One event that the history store did not take; those before it in its conversation were taken.

    :ivar fault: a sentence of ours with class and code.
    :ivar charged: whether it counts as an attempt of the event. It does not where the event may be innocent.
    :ivar final: trying again is pointless.
    """

    conversation_id: str
    sequence: int
    event: EncodedEvent
    fault_class: str
    fault: str
    charged: bool = True
    final: bool = False


@dataclass(slots=True)
class Sent:
    """What became of a batch.

    :ivar delivered: conversation id to the last sequence that the history store holds for certain.
    :ivar superseded: verdicts of the store on what was delivered, by conversation and sequence.
    :ivar gaps: conversation id to the sequence up to which the store holds a lane that it lacks events of.
    :ivar fault: of the store as a whole; what had not been sent by then was not tried.
    :ivar faults: all faults met, by class, those that were overcome included.
    """

    delivered: dict[str, int] = field(default_factory=dict)
    superseded: dict[str, dict[int, Conflict]] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    fault: StoreFault | None = None
    faults: Counter[str] = field(default_factory=Counter)
    inserted: int = 0
    duplicates: int = 0

    @property
    def answered(self) -> bool:
        """Whether the store did what it is for: it took something, or refused something for what it is."""
        return bool(
            self.delivered
            or self.gaps
            or any(one.final or one.fault_class == FaultClass.POISON for one in self.refusals)
        )


class Isolation:
    """Sends batches and parts those that fail: by halves down to the conversation, then down to the event.

    Everything else of the batch gets through, the bad event's predecessors too; what comes after it in its own
    conversation is not sent. One bad event among ``n`` costs about ``2 log n`` tries.

    :param apply: the history store's; anything it raises is sorted here, only ``Closed`` goes on.
    :param deadline: seconds after which a try is given up, with unknown outcome.
    :param sleep: seconds to wait; injected for tests.
    """

    def __init__(
        self,
        apply: Apply,
        *,
        diversity: Diversity,
        deadline: float,
        uniform: Callable[[float, float], float],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._apply = apply
        self._diversity = diversity
        self._deadline = deadline
        self._uniform = uniform
        self._monotonic = monotonic
        self._sleep = sleep

    async def send(self, batches: Sequence[LaneBatch], *, suspects: Iterable[str] = ()) -> Sent:
        """Send one batch a lane, at most once each in this order, and say what became of them.

        :param suspects: conversations to be sent on their own, after the others.
        """
        apart = {one.conversation_id for one in batches if self._diversity.blame(one.conversation_id) >= ALONE_AFTER}
        apart.update(suspects)
        sent = Sent()
        unsure: list[Refusal] = []
        together = [one for one in batches if one.conversation_id not in apart]
        groups = [together] if together else []
        groups += [[one] for one in batches if one.conversation_id in apart]
        for group in groups:
            if not await self._send(group, sent, unsure):
                break
        self._judge(sent, unsure)
        return sent

    async def _send(self, lanes: Sequence[LaneBatch], sent: Sent, unsure: list[Refusal]) -> bool:
        """Send lanes in one transaction, or in parts; whether it is worth going on."""
        found = await self._try(lanes, sent)
        if isinstance(found, ApplyResult):
            return await self._record(lanes, found, sent)
        if found.fault_class in OF_THE_STORE and not self._is_event(lanes):
            self._fail(found, lanes, sent)
            return False
        if len(lanes) == 1:
            return await self._narrow(lanes[0], found, sent, unsure)
        middle = len(lanes) // 2
        return await self._send(lanes[:middle], sent, unsure) and await self._send(lanes[middle:], sent, unsure)

    async def _narrow(self, lane: LaneBatch, fault: StoreFault, sent: Sent, unsure: list[Refusal]) -> bool:
        """Find the one event of a lane that is refused, by halves; what comes before it gets through."""
        rest: Sequence[Delivery] = lane.deliveries
        while len(rest) > 1:
            half = LaneBatch(conversation_id=lane.conversation_id, deliveries=tuple(rest[: len(rest) // 2]))
            found = await self._try([half], sent)
            if isinstance(found, ApplyResult):
                # No acquittal: that what comes before the bad event gets through says nothing for the conversation.
                if not await self._record([half], found, sent, acquit=False):
                    return False
                if sent.delivered.get(lane.conversation_id) != half.deliveries[-1].sequence:
                    return True  # refused for what the store holds: nothing of the lane can follow
                rest = rest[len(half.deliveries) :]
            elif found.fault_class in OF_THE_STORE and not self._is_event([half]):
                self._fail(found, [half], sent)
                return False
            else:
                rest, fault = half.deliveries, found
        culprit = next(iter(rest))
        refusal = Refusal(
            conversation_id=lane.conversation_id,
            sequence=culprit.sequence,
            event=culprit.event,
            fault_class=str(fault.fault_class),
            fault=str(fault),
        )
        if fault.fault_class is FaultClass.POISON:
            sent.refusals.append(refusal)
            return True
        self._diversity.failed([lane.conversation_id])
        unsure.append(refusal)
        if self._diversity.failing >= STORE_AFTER:
            sent.fault = fault  # different ones fail, none gets through: it is the store
            return False
        return True

    def _judge(self, sent: Sent, unsure: Sequence[Refusal]) -> None:
        """Charge those that failed while others got through; let the rest wait, uncharged."""
        if sent.fault is not None:
            return  # they wait with everybody else
        for one in unsure:
            others = sent.delivered.keys() - {one.conversation_id}
            guilty = one.fault_class != FaultClass.CONFLICT and (
                bool(others) or self._diversity.blame(one.conversation_id) > 0
            )
            sent.refusals.append(
                Refusal(
                    conversation_id=one.conversation_id,
                    sequence=one.sequence,
                    event=one.event,
                    fault_class=one.fault_class,
                    fault=one.fault,
                    charged=guilty,
                )
            )

    def _is_event(self, lanes: Sequence[LaneBatch]) -> bool:
        """Whether a fault that looks like the store's is this conversation's own: it fails, the others do not."""
        return len(lanes) == 1 and self._diversity.blame(lanes[0].conversation_id) >= EVENT_AFTER

    def _fail(self, fault: StoreFault, lanes: Sequence[LaneBatch], sent: Sent) -> None:
        sent.fault = fault
        if fault.fault_class is not FaultClass.MISCONFIGURED:
            self._diversity.failed(one.conversation_id for one in lanes)

    async def _record(
        self, lanes: Sequence[LaneBatch], result: ApplyResult, sent: Sent, *, acquit: bool = True
    ) -> bool:
        """Note what was taken, and what the store refused because of what it holds; whether to go on."""
        by_id = {one.conversation_id: one for one in lanes}
        for applied in result.applied:
            sent.inserted += applied.inserted
            sent.duplicates += applied.duplicates
            if applied.superseded:
                sent.superseded.setdefault(applied.conversation_id, {}).update(applied.superseded)
            sent.delivered[applied.conversation_id] = by_id[applied.conversation_id].deliveries[-1].sequence
        if acquit:
            self._diversity.succeeded([applied.conversation_id for applied in result.applied])
        for refused in result.refused:
            lane = by_id[refused.conversation_id]
            if isinstance(refused, SequenceGap):
                sent.gaps[refused.conversation_id] = refused.head
                continue
            sequence = refused.sequence if isinstance(refused, HistoryDiverged) else lane.deliveries[0].sequence
            before = tuple(one for one in lane.deliveries if one.sequence < sequence)
            if before:
                part = LaneBatch(conversation_id=lane.conversation_id, deliveries=before)
                found = await self._try([part], sent)
                if not isinstance(found, ApplyResult):
                    self._fail(found, [part], sent)
                    return False
                if not await self._record([part], found, sent):
                    return False
                if sent.delivered.get(lane.conversation_id) != before[-1].sequence:
                    continue  # refused anew, further up
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

    async def _try(self, lanes: Sequence[LaneBatch], sent: Sent) -> ApplyResult | StoreFault:
        """Apply once, and again at once after what passes by itself."""
        allowed = {
            FaultClass.CONFLICT: CONFLICT_TRIES,
            FaultClass.UNKNOWN_OUTCOME: UNKNOWN_TRIES,
            FaultClass.UNAVAILABLE: LOST_TRIES,
        }
        tries = 0
        while True:
            tries += 1
            start = self._monotonic()
            found = await self._once(lanes)
            if isinstance(found, ApplyResult):
                return found
            sent.faults[str(found.fault_class)] += 1
            slow = found.fault_class is FaultClass.UNAVAILABLE and self._monotonic() - start > AT_ONCE
            if slow or tries >= allowed.get(found.fault_class, 1):
                return found
            await self._sleep(self._uniform(0.005, 0.02 * 2**tries))

    async def _once(self, lanes: Sequence[LaneBatch]) -> ApplyResult | StoreFault:
        try:
            async with asyncio.timeout(self._deadline):
                return await self._apply(lanes)
        except StoreFault as fault:
            return fault
        except TimeoutError:
            return StoreFault(
                fault_class=FaultClass.UNKNOWN_OUTCOME,
                code="deadline",
                reason=f"the history store did not finish within {self._deadline:g} s; it is tried again by itself",
            )
        except OriginSuperseded as superseded:
            return StoreFault(fault_class=FaultClass.MISCONFIGURED, code="origin-superseded", reason=str(superseded))
        except Closed:
            raise
        except Exception as error:  # a fault of ours must not end the relay; who is to blame is judged like the rest
            reason = str(error) if isinstance(error, LetopisError) else "an error that Letopis does not know"
            return StoreFault(fault_class=FaultClass.UNCLASSIFIED, code=type(error).__name__, reason=reason)
