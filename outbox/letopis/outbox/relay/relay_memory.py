"""Keep what a relay has learnt of its lanes and its store while the outbox file is closed."""

from __future__ import annotations

from dataclasses import dataclass, field

from letopis.outbox.relay.lane_retries import LaneRetries
from letopis.outbox.relay.reconcile import ReconcileProgress
from letopis.outbox.relay.store_tasks import TaskLook
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.fault_attribution import FaultAttribution


@dataclass(slots=True)
class RelayMemory:
    """What one relay of a file hands on to the next one of the same process; empty for the first.

    :ivar attribution: what failed, and what succeeded beside it.
    :ivar retries: until when refused lanes wait.
    :ivar wrong_store: the breaker for a store that is not the outbox's own.
    :ivar task_look: when the store's tasks are looked for; may be shared with the relays of other files.
    :ivar reconciled: how far the comparisons with the history store have come.
    """

    attribution: FaultAttribution = field(default_factory=FaultAttribution)
    retries: LaneRetries | None = None
    wrong_store: Breaker | None = None
    reconciled: ReconcileProgress | None = None
    task_look: TaskLook | None = None
