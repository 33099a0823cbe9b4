"""Describe incidents, and decide which open, change and resolve after one look at an outbox; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from letopis.store.model.events import from_microseconds
from letopis.store.model.identifiers import check_number, uuid7


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
    ERASURES_MISSING = "erasures_missing"
    """The history store was restored from before erasures that the outbox has carried out. Likewise."""


class IncidentState(StrEnum):
    """How far an incident has come."""

    PENDING = "pending"
    """It may be over before anyone needs to know."""
    FIRING = "firing"
    """Recipients are notified."""
    RESOLVED = "resolved"
    """It is over."""


LATE: Final = "late"  # the reason of a conversation that is not blocked but pending for too long

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
    :ivar longest_step: at most this much of the time between two looks counts: a longer pause was not watched.
    """

    hold: float = 30.0
    stuck_after: float = 300.0
    silent_after: float = 120.0
    resolve_after: float = 60.0
    repeat_interval: float = 86_400.0
    watch_relay: bool = True
    longest_step: float = 30.0

    def __post_init__(self) -> None:
        for name in ("hold", "stuck_after", "silent_after", "resolve_after", "repeat_interval", "longest_step"):
            check_number(getattr(self, name), name)


class BreakerView(NamedTuple):
    state: str = "closed"
    since: datetime | None = None
    reason: str | None = None


class RelayView(NamedTuple):
    """What a relay leaves in the outbox file. Only changes of these values matter, never the values."""

    incarnation: int
    heartbeat_at: int
    progress_at: int
    delivered: int


class LaneView(NamedTuple):
    conversation_id: str
    owner_id: str | None
    blocked: bool
    reason: str | None
    head: int
    delivered: int
    since_us: int


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
    """What one look at the outbox file showed."""

    now: datetime
    breaker: BreakerView | None = None  # of the relay that holds the lease; None when none ever did
    live: bool = False  # that relay is in this process, so its breaker is current
    relay: RelayView | None = None
    events: int = 0
    deliverable: int = 0  # lanes that a relay could serve
    newest: int = 0
    blocked: tuple[LaneView, ...] = ()  # some of those without an open incident, as `late`
    late: tuple[LaneView, ...] = ()  # their oldest pending event lies at or before `late_before()`
    open: tuple[IncidentRecord, ...] = ()  # that concern all, or a conversation whose lane has changed
    lanes: Mapping[str, LaneView] = field(default_factory=dict)  # of the latter


class Change(NamedTuple):
    """An incident to be stored: new when ``before`` is ``None``, otherwise only if still at its revision."""

    before: IncidentRecord | None
    after: IncidentRecord


def fault_class(reason: str | None) -> str:
    """Return the class in a reason such as ``... [misconfigured 42P01]`` or ``poison 22021``."""
    match = _CLASS.match((reason or "").lower())
    name = (match[1] or match[2]) if match else ""
    return "unavailable" if name in _UNAVAILABLE else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a process carries from one observation to the next; ``_at`` is a reading of ``watched``, not of a clock."""

    monotonic: float | None = None
    watched: float = 0.0  # seconds, without pauses of the process
    elapsed: float = 0.0  # seconds since the observation before
    samples: tuple[tuple[float, int], ...] = ()  # an event at or before the position is at least that old
    relay: RelayView | None = None
    alive_at: float | None = None  # when a relay last showed life
    progress_at: float = 0.0  # when a relay last delivered, or had no store to deliver to
    idle_at: float = 0.0  # when nothing was deliverable last
    troubled_at: Mapping[IncidentKind, float] = field(default_factory=dict)  # its cause was there, or not known gone
    outage_seconds: float = 0.0  # how long the store of a pending incident has been down

    @property
    def silence(self) -> float:
        """Seconds for which something was deliverable, and no relay showed life, or none delivered."""
        return self.watched - max(self.idle_at, min(self.alive_at or 0.0, self.progress_at))


def tick(memory: Memory, *, monotonic: float, rules: Rules) -> Memory:
    """Return the memory at the start of a new observation; call it first, with the monotonic clock."""
    passed = 0.0 if memory.monotonic is None else monotonic - memory.monotonic
    elapsed = min(max(passed, 0.0), rules.longest_step)
    return replace(memory, monotonic=monotonic, elapsed=elapsed, watched=memory.watched + elapsed)


def late_before(memory: Memory, rules: Rules) -> int:
    """Return the position up to which every event is known to be at least ``stuck_after`` old; 0 if none is."""
    return max((position for at, position in memory.samples if at <= memory.watched - rules.stuck_after), default=0)


def evaluate(memory: Memory, seen: Observation, rules: Rules) -> tuple[Memory, tuple[Change, ...]]:
    """Return the next memory and the incidents that change. Neither holds before the changes are stored."""
    memory = _note_relay(memory, seen, rules)
    down = _store_is_down(memory, seen, rules)
    silent = seen.deliverable > 0 and memory.silence >= rules.silent_after
    trouble = {IncidentKind.STORE_DOWN: down, IncidentKind.RELAY_SILENT: silent}
    incidents = {incident.kind: incident for incident in seen.open if incident.kind in trouble}
    outage = incidents.get(IncidentKind.STORE_DOWN)
    lasted = memory.outage_seconds + (memory.elapsed if down else 0.0)
    well = {kind: memory.troubled_at.get(kind, 0.0) for kind, bad in trouble.items() if bad is False}
    memory = replace(
        memory,
        troubled_at=dict.fromkeys(trouble, memory.watched) | well,
        outage_seconds=lasted if outage is not None and outage.state is IncidentState.PENDING else 0.0,
    )
    changes: list[Change] = []
    for kind, bad in trouble.items():
        before = after = incidents.get(kind)
        if before is not None:
            after = _follow_global(before, bad, memory, seen, rules)
        elif bad and (kind is IncidentKind.STORE_DOWN or rules.watch_relay):
            after = _open_global(kind, memory, seen, rules)
        if after is not None and after != before:
            changes.append(Change(before=before, after=after))
            incidents[kind] = after

    # A short outage may be what blocks them.
    outage = incidents.get(IncidentKind.STORE_DOWN)
    stuck = () if down and (outage is None or outage.state is IncidentState.PENDING) else seen.blocked
    if memory.watched - max(memory.troubled_at.values()) >= rules.stuck_after:
        stuck += tuple(lane for lane in seen.late if not lane.blocked)
    changes.extend(Change(before=None, after=_open_lane(lane)) for lane in stuck)
    for incident in seen.open:
        if incident.kind is IncidentKind.CONVERSATION_BLOCKED:
            followed = _follow_lane(incident, seen.lanes.get(incident.conversation_id or ""), seen)
            if followed != incident:
                changes.append(Change(before=incident, after=followed))
    return memory, tuple(changes)


def _note_relay(memory: Memory, seen: Observation, rules: Rules) -> Memory:
    before, after, watched = memory.relay, seen.relay, memory.watched
    alive = progressed = False
    if before is not None and after is not None:
        progressed = (before.progress_at, before.delivered) != (after.progress_at, after.delivered)
        alive = progressed or (before.incarnation, before.heartbeat_at) != (after.incarnation, after.heartbeat_at)
    elif after is not None:
        alive = watched > 0  # the first relay ever; at the first look it may be the row of a dead one
    unavailable = seen.breaker is not None and seen.breaker.state != "closed"
    old = [sample for sample in memory.samples if sample[0] <= watched - rules.stuck_after]
    return replace(
        memory,
        relay=after,
        samples=(*old[-1:], *memory.samples[len(old) :], (watched, seen.newest)),
        alive_at=watched if alive else memory.alive_at,
        progress_at=watched if progressed or unavailable else memory.progress_at,
        idle_at=memory.idle_at if seen.deliverable else watched,
    )


def _store_is_down(memory: Memory, seen: Observation, rules: Rules) -> bool | None:
    """Return True if the store is down; ``None`` when no relay that would know has shown life lately."""
    known = seen.live or (memory.alive_at is not None and memory.watched - memory.alive_at < rules.silent_after)
    if seen.breaker is None or not known:
        return None
    if seen.breaker.state == "closed":
        return False
    return seen.events > 0 or fault_class(seen.breaker.reason) != "unavailable"


def _open_global(kind: IncidentKind, memory: Memory, seen: Observation, rules: Rules) -> IncidentRecord:
    reason, since = None, seen.now - timedelta(seconds=memory.silence)
    if kind is IncidentKind.STORE_DOWN and seen.breaker is not None:
        reason, since = seen.breaker.reason, seen.breaker.since or seen.now
    incident = IncidentRecord(incident_id=uuid7(), kind=kind, reason=reason, opened_at=since, events=seen.events)
    return _fired(incident, memory, rules)


def _fired(incident: IncidentRecord, memory: Memory, rules: Rules) -> IncidentRecord:
    """Return a pending incident as firing, unless it is an outage that may still be a short one."""
    may_be_short = incident.kind is IncidentKind.STORE_DOWN and fault_class(incident.reason) == "unavailable"
    if may_be_short and memory.outage_seconds < rules.hold:
        return incident
    return replace(incident, state=IncidentState.FIRING)


def _open_lane(lane: LaneView) -> IncidentRecord:
    return IncidentRecord(
        incident_id=uuid7(),
        kind=IncidentKind.CONVERSATION_BLOCKED,
        conversation_id=lane.conversation_id,
        owner_id=lane.owner_id,
        state=IncidentState.FIRING,
        reason=lane.reason if lane.blocked else LATE,
        events=lane.head - lane.delivered,
        mark=lane.head,
        opened_at=from_microseconds(lane.since_us),
    )


def _resolved(incident: IncidentRecord, seen: Observation) -> IncidentRecord:
    return replace(incident, state=IncidentState.RESOLVED, outcome=incident.outcome or "saved", resolved_at=seen.now)


def _with_reason(incident: IncidentRecord, reason: str | None) -> IncidentRecord:
    """Return an incident with the reason that it has now; one of another class is worth a further alert."""
    escalated = incident.state is IncidentState.FIRING and fault_class(reason) != fault_class(incident.reason)
    return replace(incident, reason=reason, escalations=incident.escalations + escalated)


def _follow_global(
    incident: IncidentRecord, bad: bool | None, memory: Memory, seen: Observation, rules: Rules
) -> IncidentRecord:
    if bad is False and memory.watched - memory.troubled_at[incident.kind] >= rules.resolve_after:
        return replace(_resolved(incident, seen), mark=seen.newest)
    if bad and incident.kind is IncidentKind.STORE_DOWN and seen.breaker is not None:
        reason = seen.breaker.reason
        # Between faults that need an operator a store is often merely unavailable: neither that nor its end is news.
        if incident.state is IncidentState.PENDING or fault_class(reason) != "unavailable":
            incident = _with_reason(incident, reason)
    return _fired(incident, memory, rules) if bad and incident.state is IncidentState.PENDING else incident


def _follow_lane(incident: IncidentRecord, lane: LaneView | None, seen: Observation) -> IncidentRecord:
    if lane is None or (lane.delivered >= incident.mark and not lane.blocked):
        return _resolved(incident, seen)
    followed = _with_reason(incident, lane.reason) if lane.blocked else incident
    return replace(followed, mark=lane.head) if lane.delivered >= incident.mark else followed
