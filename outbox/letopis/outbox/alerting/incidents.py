"""Describe incidents, what is observed of an outbox, and the thresholds that turn one into the other.

An incident goes ``pending -> firing -> notified -> resolved``. There are four kinds:

``store_down``
    The relay's breaker is not closed and events are pending. It fires after 30 seconds; a store that is back earlier
    alerts no one. A store that refuses us (``misconfigured``) fires at once.
``relay_silent``
    Something can be delivered, and for two minutes nothing shows a relay at work.
``conversation_blocked``
    A lane is blocked, or its oldest event has been pending for five minutes while the store was up and the relay at
    work.
``history_incomplete``
    Events were deleted from the store's log. The relay opens and resolves it; operators are reminded of it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from letopis.store.errors import InvalidInput
from letopis.store.model.validation import check_number


class IncidentKind(StrEnum):
    """What an incident is about."""

    STORE_DOWN = "store_down"
    """The history store: one incident per outage."""
    CONVERSATION_BLOCKED = "conversation_blocked"
    """One conversation: one incident each."""
    RELAY_SILENT = "relay_silent"
    """Nothing delivers this outbox."""
    HISTORY_INCOMPLETE = "history_incomplete"
    """The history store lacks events that it counts. Opened and resolved by the relay, which is what notices it."""


class IncidentState(StrEnum):
    """How far an incident has come."""

    PENDING = "pending"
    """It may be over before anyone needs to know."""
    FIRING = "firing"
    """Recipients are to be notified."""
    NOTIFIED = "notified"
    """At least one recipient was notified."""
    RESOLVED = "resolved"
    """It is over."""


GLOBAL_KINDS: Final = (IncidentKind.STORE_DOWN, IncidentKind.RELAY_SILENT)
"""The kinds that concern every conversation at once."""

LATE: Final = "late"
"""The reason of a conversation that is not blocked but pending for too long."""

_CLASS: Final = re.compile(r".*\[(\w+)[^\]]*\]|\s*(\w+)(?:\s+[\w-]+)?\s*$", re.DOTALL)
# Users and operators see no difference between them: the store is unavailable, and waiting helps.
_UNAVAILABLE: Final = frozenset({"", "unavailable", "unknown_outcome", "conflict", "unclassified"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Thresholds for incidents and alerts, in seconds.

    All but the reminders are counted on the monotonic clock while a process watches: a wall clock that jumps neither
    fires nor hides an incident. Reminders follow the wall clock.

    :ivar hold: an outage of the store that is shorter raises no alert.
    :ivar stuck_after: an event that is pending for longer is stuck.
    :ivar silent_after: a relay that shows nothing for longer is silent.
    :ivar resolve_after: how long the store and the relay must be well before an incident is over.
    :ivar repeat: operators are reminded this long after they were notified, then every last of these again.
    :ivar group_interval: least time between two alerts to one channel about blocked conversations.
    :ivar watch_relay: raise ``relay_silent`` here; for every process but the relay's own.
    """

    hold: float = 30.0
    stuck_after: float = 300.0
    silent_after: float = 120.0
    resolve_after: float = 60.0
    repeat: tuple[float, ...] = (3_600.0, 14_400.0, 86_400.0)
    group_interval: float = 900.0
    watch_relay: bool = True

    longest_step: float = 30.0
    """At most this much of the time between two observations counts: a longer pause was not watched."""

    def __post_init__(self) -> None:
        for name in ("hold", "stuck_after", "silent_after", "resolve_after", "group_interval", "longest_step"):
            check_number(getattr(self, name), name)
        if not isinstance(self.repeat, tuple):
            raise InvalidInput("repeat", f"must be a tuple of seconds, not {type(self.repeat).__name__}")
        for seconds in self.repeat:
            check_number(seconds, "repeat")

    def reminders_after(self, age: timedelta) -> int:
        """Return how many reminders are due within ``age`` of the first notification."""
        seconds = age.total_seconds()
        due = sum(seconds >= one for one in self.repeat)
        if self.repeat and due == len(self.repeat) and self.repeat[-1] > 0:
            due += int((seconds - self.repeat[-1]) // self.repeat[-1])
        return due


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView:
    """The relay's breaker.

    :ivar state: ``closed``, ``open`` or ``half_open``.
    :ivar since: when it took this state, for display.
    :ivar reason: a sentence of ours with fault class and code; no driver text.
    """

    state: str = "closed"
    since: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayView:
    """What a relay leaves in the outbox file. Only changes of these values matter, never the values."""

    incarnation: int
    heartbeat_at: int
    progress_at: int
    delivered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneView:
    """One conversation's lane.

    :ivar reason: of a blocked lane: a sentence of ours with fault class and code.
    :ivar since: when the oldest pending event was appended, for display.
    """

    conversation_id: str
    owner_id: str | None
    blocked: bool
    reason: str | None
    head: int
    delivered: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentRecord:
    """A stored incident.

    :ivar ran: seconds that a pending incident has been observed; at ``Rules.hold`` it fires.
    :ivar number: which operators' alert is due: 0 while pending, 1 once it fires, one more for each further one.
    :ivar repeats: how many reminders were due.
    :ivar why: ``opened``, ``repeat`` or ``worse``: the reason for the last alert.
    :ivar mark: a conversation's last sequence that belongs to it; for the others the last position, once resolved.
    :ivar outcome: ``saved`` or ``skipped`` once resolved.
    :ivar revision: one more with each stored change.
    """

    incident_id: UUID
    kind: IncidentKind
    conversation_id: str | None = None
    owner_id: str | None = None
    state: IncidentState = IncidentState.PENDING
    reason: str | None = None
    events: int = 0
    conversations: int = 0
    ran: float = 0.0
    number: int = 0
    repeats: int = 0
    why: str | None = None
    mark: int = 0
    outcome: str | None = None
    opened_at: datetime
    changed_at: datetime
    notified_at: datetime | None = None
    resolved_at: datetime | None = None
    revision: int = 0

    @property
    def fires(self) -> bool:
        """True while it is open and recipients are or were to be notified."""
        return self.state in (IncidentState.FIRING, IncidentState.NOTIFIED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one look at the outbox file showed.

    :ivar breaker: of the relay that holds the lease; ``None`` when none ever did.
    :ivar live: the breaker belongs to a relay in this process, so its state is current.
    :ivar relay: what that relay left in the file; ``None`` when none ever ran.
    :ivar events: pending events in all lanes.
    :ivar conversations: lanes with pending events.
    :ivar deliverable: those of them that a relay could serve (neither blocked nor paused).
    :ivar newest: the position of the newest event.
    :ivar blocked: blocked lanes that have no open incident; not necessarily all of them.
    :ivar late: lanes without one whose oldest pending event lies at or before :func:`late_before`; likewise.
    :ivar open: the open incidents; with very many conversations perhaps only some.
    :ivar lanes: the lanes of the open incidents about a conversation; one that is missing does not exist.
    """

    now: datetime
    breaker: BreakerView | None = None
    live: bool = False
    relay: RelayView | None = None
    events: int = 0
    conversations: int = 0
    deliverable: int = 0
    newest: int = 0
    blocked: tuple[LaneView, ...] = ()
    late: tuple[LaneView, ...] = ()
    open: tuple[IncidentRecord, ...] = ()
    lanes: Mapping[str, LaneView] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An incident to be stored: new when ``before`` is ``None``, otherwise only if still at ``before.revision``."""

    before: IncidentRecord | None
    after: IncidentRecord

    @property
    def state_changed(self) -> bool:
        """True when the state differs, and not only what is known about the incident."""
        return self.before is None or self.before.state is not self.after.state


def fault_class(reason: str | None) -> str:
    """Return the class in a reason such as ``... [misconfigured 42P01]`` or ``poison 22021``.

    ``away`` stands for all classes in which the store is merely unavailable.
    """
    found = _CLASS.match((reason or "").lower())
    word = (found[1] or found[2]) if found else ""
    return "away" if word in _UNAVAILABLE else word
