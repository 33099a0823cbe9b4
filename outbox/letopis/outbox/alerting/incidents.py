"""Describe incidents, what is observed of an outbox, and the thresholds that turn one into the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from letopis.store.model.validation import check_number


class IncidentKind(StrEnum):
    """What an incident is about."""

    STORE_DOWN = "store_down"
    """The relay's breaker is not closed and events are pending, for 30 seconds; at once if the store refuses us. One
    incident per outage."""
    CONVERSATION_BLOCKED = "conversation_blocked"
    """A lane is blocked, or its oldest event has been pending for five minutes while the store was up and the relay at
    work. One incident per conversation."""
    RELAY_SILENT = "relay_silent"
    """Something can be delivered, and for two minutes nothing shows a relay at work."""
    HISTORY_INCOMPLETE = "history_incomplete"
    """The history store lacks events that it counts. Opened and resolved by the relay, which is what notices it."""


class IncidentState(StrEnum):
    """How far an incident has come."""

    PENDING = "pending"
    """It may be over before anyone needs to know."""
    FIRING = "firing"
    """Recipients are notified."""
    RESOLVED = "resolved"
    """It is over."""


LATE: Final = "late"
"""The reason of a conversation that is not blocked but pending for too long."""

_CLASS: Final = re.compile(r".*\[(\w+)[^\]]*\]|\s*(\w+)(?:\s+[\w-]+)?\s*$", re.DOTALL)
# Users and operators see no difference between them: waiting helps.
_UNAVAILABLE: Final = frozenset({"", "unavailable", "unknown_outcome", "conflict", "unclassified"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Thresholds for incidents and alerts, in seconds.

    All but ``repeat_interval`` are counted on the monotonic clock while a process watches: a wall clock that jumps
    neither fires nor hides an incident.

    :ivar hold: an outage of the store that is shorter raises no alert.
    :ivar stuck_after: an event that is pending for longer is stuck.
    :ivar silent_after: a relay that shows nothing for longer is silent.
    :ivar resolve_after: how long the store and the relay must be well before an incident is over.
    :ivar repeat_interval: operators are reminded of what is still stuck this long after the last alert about it.
    :ivar watch_relay: raise ``relay_silent`` here; for every process but the relay's own.
    """

    hold: float = 30.0
    stuck_after: float = 300.0
    silent_after: float = 120.0
    resolve_after: float = 60.0
    repeat_interval: float = 86_400.0
    watch_relay: bool = True

    longest_step: float = 30.0
    """At most this much of the time between two observations counts: a longer pause was not watched."""

    def __post_init__(self) -> None:
        for name in ("hold", "stuck_after", "silent_after", "resolve_after", "repeat_interval", "longest_step"):
            check_number(getattr(self, name), name)


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
    """A stored incident, with what the outbox file shows about it now.

    :ivar owner_id: of the conversation, now.
    :ivar events: pending events, now: of the conversation, or of all.
    :ivar conversations: conversations with pending events now; for ``conversation_blocked`` those that are stuck.
    :ivar escalations: how often its fault changed to another one that needs an operator, after it fired.
    :ivar mark: a conversation's last sequence that belongs to it; for the others the last position, once resolved.
    :ivar outcome: ``saved`` or ``skipped`` once resolved.
    :ivar notified_at: when the first recipient was notified; only in lists of open incidents.
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
    escalations: int = 0
    mark: int = 0
    outcome: str | None = None
    opened_at: datetime
    notified_at: datetime | None = None
    resolved_at: datetime | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one look at the outbox file showed.

    :ivar breaker: of the relay that holds the lease; ``None`` when none ever did.
    :ivar live: the breaker belongs to a relay in this process, so its state is current.
    :ivar relay: what that relay left in the file; ``None`` when none ever ran.
    :ivar events: pending events in all lanes.
    :ivar deliverable: lanes that a relay could serve (pending, and neither blocked nor paused).
    :ivar newest: the position of the newest event.
    :ivar blocked: blocked lanes that have no open incident; not necessarily all of them.
    :ivar late: lanes without one whose oldest pending event lies at or before :func:`late_before`; likewise.
    :ivar open: the open incidents that concern all, and those about a conversation whose lane has changed.
    :ivar lanes: the lanes of the latter; one that is missing does not exist.
    """

    now: datetime
    breaker: BreakerView | None = None
    live: bool = False
    relay: RelayView | None = None
    events: int = 0
    deliverable: int = 0
    newest: int = 0
    blocked: tuple[LaneView, ...] = ()
    late: tuple[LaneView, ...] = ()
    open: tuple[IncidentRecord, ...] = ()
    lanes: Mapping[str, LaneView] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An incident to be stored: new when ``before`` is ``None``, otherwise only if still at its revision."""

    before: IncidentRecord | None
    after: IncidentRecord


def fault_class(reason: str | None) -> str:
    """Return the class in a reason such as ``... [misconfigured 42P01]`` or ``poison 22021``.

    ``unavailable`` stands for all classes in which waiting helps.
    """
    match = _CLASS.match((reason or "").lower())
    name = (match[1] or match[2]) if match else ""
    return "unavailable" if name in _UNAVAILABLE else name
