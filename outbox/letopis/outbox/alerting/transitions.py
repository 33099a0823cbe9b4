"""Decide which incidents open, change and resolve after one observation, without a file or a wall clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from letopis.outbox.alerting.incidents import (
    LATE,
    Change,
    IncidentKind,
    IncidentRecord,
    IncidentState,
    LaneView,
    Observation,
    RelayView,
    Rules,
    fault_class,
)
from letopis.store.model.identifiers import uuid7


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a process carries from one observation to the next; a new process starts with an empty one.

    Names that end in ``_at`` are readings of ``watched``, which no wall clock and no pause of the process moves.

    :ivar monotonic: the clock at the last observation.
    :ivar watched: seconds watched so far; ``elapsed``: those since the observation before.
    :ivar samples: (seconds watched, newest position): an event at or before the position is at least that old.
    :ivar alive_at: when a relay last showed life; ``None`` before the first time.
    :ivar progress_at: when a relay last delivered, or had no store to deliver to.
    :ivar idle_at: when nothing was deliverable last.
    :ivar troubled_at: by kind, when the cause of such an incident was last there, or not known to be gone.
    :ivar outage_seconds: how long the store of a pending incident has been down.
    """

    monotonic: float | None = None
    watched: float = 0.0
    elapsed: float = 0.0
    samples: tuple[tuple[float, int], ...] = ()
    relay: RelayView | None = None
    alive_at: float | None = None
    progress_at: float = 0.0
    idle_at: float = 0.0
    troubled_at: Mapping[IncidentKind, float] = field(default_factory=dict)
    outage_seconds: float = 0.0

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
    memory = replace(
        memory,
        troubled_at={
            kind: memory.troubled_at.get(kind, 0.0) if bad is False else memory.watched for kind, bad in trouble.items()
        },
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
        opened_at=lane.since,
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
