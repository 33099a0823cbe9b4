"""Hold the outcome of sending one batch to the history store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.model.codec import EncodedEvent
from letopis.store.rules.preconditions import Conflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One event that the history store refused; the earlier events of its conversation were accepted.

    :ivar fault: a sentence of Letopis with class and code, without driver text.
    :ivar charged: whether it counts as an attempt of the event; not where the event may not be at fault.
    :ivar final: whether retrying is pointless.
    """

    conversation_id: str
    sequence: int
    event: EncodedEvent
    fault_class: str
    fault: str
    charged: bool = True
    final: bool = False


@dataclass(slots=True)
class SendResult:
    """The outcome of sending one batch.

    :ivar delivered: conversation id to the last sequence that the history store holds for certain.
    :ivar superseded: conflicts that the store found in delivered events, by conversation and sequence.
    :ivar gaps: conversation id to the sequence up to which the store holds a lane that it lacks events of.
    :ivar undecided: refusals, with their faults, before they are charged to the event or to the store.
    :ivar fault: of the store as a whole; what had not been sent by then was not tried.
    :ivar suspects: the conversations that met it.
    :ivar cleared: conversations that were refused, but not for what they hold: they are charged with nothing.
    :ivar faults: how often each class of fault occurred, including faults that a retry overcame.
    """

    delivered: dict[str, int] = field(default_factory=dict)
    superseded: dict[str, dict[int, Conflict]] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    undecided: list[tuple[Refusal, StoreFault]] = field(default_factory=list)
    fault: StoreFault | None = None
    suspects: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()
    faults: Counter[str] = field(default_factory=Counter)
    inserted: int = 0
    duplicates: int = 0

    @property
    def answered(self) -> bool:
        """Whether the store works: it accepted something, or refused something for what it is."""
        return bool(
            self.delivered
            or self.gaps
            or any(one.final or one.fault_class == FaultClass.POISON for one in self.refusals)
        )

    @property
    def any_succeeded(self) -> bool:
        """Whether a whole conversation was accepted; the good events before a refused one do not count."""
        return not self.delivered.keys() <= {refusal.conversation_id for refusal, _ in self.undecided}
