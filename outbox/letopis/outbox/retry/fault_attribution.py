"""Attribute failed deliveries to an event or to the history store by what happens to other conversations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from letopis.store.database.faults import POOL_TIMEOUT_CODE, FaultClass, StoreFault

STORE_FAULT_CLASSES: Final = frozenset(
    {FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.UNKNOWN_OUTCOME, FaultClass.WRONG_STORE}
)
"""Classes of faults that are the store's, whatever was being delivered."""
TRIAL_CLASSES: Final = frozenset({FaultClass.POISON, FaultClass.UNCLASSIFIED})
"""Classes of faults that an ordinary event would meet too if the store refuses everything."""
STORE_FAULT_AFTER_CONVERSATIONS: Final = 3
"""Different conversations, refused in a row without a success in between, that make it a fault of the store."""
ISOLATE_AFTER_FAILURES: Final = 2
"""Failures while others succeeded after which a conversation is sent on its own, so that it fails no other."""
EVENT_FAULT_AFTER_FAILURES: Final = 3
"""Failures while others succeeded after which even what looks like an outage is the conversation's own fault."""
_MAX_TRACKED_CONVERSATIONS: Final = 10_000


class FaultAttribution:
    """Remembers which conversations failed, and which of them failed while others succeeded.

    A conversation is *charged* once each time it failed and another one succeeded after that; its own success clears
    it. Conversations *refused alone* since the last success, and not charged, are evidence against the store: enough
    of them, and the fault is the store's.

    What looks like an outage and is nevertheless charged needs a store that works: while others meet the same, a
    conversation may fail repeatedly by chance, and its attempts do not count.
    """

    def __init__(self) -> None:
        self._failing: dict[str, None] = {}
        self._refused: dict[str, None] = {}
        self.charges: dict[str, int] = {}  # how often each conversation was charged since its last success
        self._store_faults = 0
        self._store_faults_at: dict[str, int] = {}  # at the first charge or last refusal of each charged one
        self._calm: dict[str, bool] = {}

    def record_store_fault(self, conversation_ids: Iterable[str]) -> None:
        """Record the conversations of a delivery that failed by a fault of the store."""
        failed = tuple(conversation_ids)
        own = [name for name in failed if self._store_faults_at.get(name) == self._store_faults]
        self._store_faults += 1
        self._store_faults_at.update(dict.fromkeys(own, self._store_faults))  # no fault of another conversation
        self.record_failure(failed)

    def record_failure(self, conversation_ids: Iterable[str]) -> None:
        self._failing.update(dict.fromkeys(conversation_ids))

    def record_refusal(self, conversation_id: str) -> None:
        """Record a conversation that failed on its own, at one event."""
        self.record_failure([conversation_id])
        if len(self._refused) < _MAX_TRACKED_CONVERSATIONS:
            self._refused[conversation_id] = None
        if conversation_id in self.charges:
            self._calm[conversation_id] = self._store_faults_at.get(conversation_id) == self._store_faults
            self._store_faults_at[conversation_id] = self._store_faults

    def record_success(self, conversation_ids: Collection[str]) -> None:
        """Record conversations that were delivered, and charge the others that failed before."""
        succeeded = frozenset(conversation_ids)
        if not succeeded:
            return
        for conversation_id in self._failing.keys() - succeeded:
            self.charge(conversation_id)
        self._failing.clear()
        self._refused.clear()
        for conversation_id in succeeded & self.charges.keys():
            self._clear(conversation_id)

    def charge(self, conversation_id: str) -> None:
        """Charge a conversation once: it failed, and another one succeeded."""
        if conversation_id in self.charges or len(self.charges) < _MAX_TRACKED_CONVERSATIONS:
            self.charges[conversation_id] = self.charges.get(conversation_id, 0) + 1
            self._store_faults_at.setdefault(conversation_id, self._store_faults)

    def forget(self, conversation_id: str) -> None:
        """Forget the charges of a conversation that is blocked now."""
        self._failing.pop(conversation_id, None)
        if self._clear(conversation_id):  # one without charges stays evidence against the store
            self._refused.pop(conversation_id, None)

    def _clear(self, conversation_id: str) -> bool:
        """Drop the charges of a conversation; return whether it had any."""
        self._calm.pop(conversation_id, None)
        self._store_faults_at.pop(conversation_id, None)
        return self.charges.pop(conversation_id, None) is not None

    @property
    def failing_conversations(self) -> int:
        """How many different conversations failed since the last success."""
        return len(self._failing)

    @property
    def refused_alone(self) -> tuple[str, ...]:
        """The conversations that were refused on their own since the last success and are not charged."""
        return tuple(name for name in self._refused if name not in self.charges)

    @property
    def points_to_store(self) -> bool:
        """True if enough conversations were refused alone to fault the store, unless one succeeds."""
        return len(self.refused_alone) >= STORE_FAULT_AFTER_CONVERSATIONS

    def is_store_fault(self, fault: StoreFault, conversation_ids: Sequence[str]) -> bool:
        """Return True if a fault is not one of these conversations, unless one of them always fails alone."""
        if fault.fault_class is FaultClass.WRONG_STORE or fault.code == POOL_TIMEOUT_CODE:
            return True
        alone = len(conversation_ids) == 1
        return fault.fault_class in STORE_FAULT_CLASSES and not (
            alone and self.charges.get(conversation_ids[0], 0) >= EVENT_FAULT_AFTER_FAILURES
        )

    def is_charged(self, fault: StoreFault, conversation_id: str) -> bool:
        """Return True if a refusal counts as an attempt of the event."""
        if fault.fault_class is FaultClass.CONFLICT:
            return False
        if fault.fault_class in STORE_FAULT_CLASSES:  # counts if no other conversation met one since the last attempt
            return self._calm.get(conversation_id, False)
        # Poison needs no comparison: the store has just taken an ordinary event.
        return fault.fault_class is FaultClass.POISON or conversation_id in self.charges


def as_store_fault(fault: StoreFault) -> StoreFault:
    """Return the fault of one event in the form reported once every other event meets it too."""
    if fault.fault_class is not FaultClass.POISON:
        return fault
    return StoreFault(
        fault_class=fault.fault_class,
        code=fault.code,
        reason=f"one conversation after another is refused, so it is the history store: {fault.reason}",
    )
