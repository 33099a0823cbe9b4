"""Decide which incidents open, change and resolve after one observation, without a file or a wall clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise

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

    All times are seconds on the monotonic clock.

    :ivar monotonic: the clock at the last observation.
    :ivar ran: seconds watched so far.
    :ivar elapsed: seconds since the observation before.
    :ivar samples: (seconds watched, newest position): an event at or before the position is at least that old.
    :ivar heard: seconds watched when a relay last showed life; ``None`` before the first time.
    :ivar dead: seconds without a sign of life while something was deliverable.
    :ivar stalled: seconds without progress while something was deliverable and the store not known to be down.
    :ivar steady: seconds with the store up and the relay at work, without a break.
    :ivar held: seconds counted for a pending outage.
    :ivar calm: seconds since the cause of an open incident went away, by kind.
    """

    monotonic: float | None = None
    ran: float = 0.0
    elapsed: float = 0.0
    samples: tuple[tuple[float, int], ...] = ()
    relay: RelayView | None = None
    heard: float | None = None
    dead: float = 0.0
    stalled: float = 0.0
    steady: float = 0.0
    held: float = 0.0
    calm: Mapping[IncidentKind, float] = field(default_factory=dict)


def tick(memory: Memory, *, monotonic: float, rules: Rules) -> Memory:
    """Return the memory at the start of a new observation; call it first, with the monotonic clock."""
    passed = 0.0 if memory.monotonic is None else monotonic - memory.monotonic
    elapsed = min(max(passed, 0.0), rules.longest_step)
    return replace(memory, monotonic=monotonic, elapsed=elapsed, ran=memory.ran + elapsed)


def late_before(memory: Memory, rules: Rules) -> int:
    """Return the position up to which every event is known to be at least ``stuck_after`` old; 0 if none is."""
    return max((position for ran, position in memory.samples if ran <= memory.ran - rules.stuck_after), default=0)


def evaluate(memory: Memory, seen: Observation, rules: Rules) -> tuple[Memory, tuple[Change, ...]]:
    """Return the next memory and the incidents that change. Neither holds before the changes are stored."""
    memory = _note_relay(memory, seen, rules)
    open_incidents = {(incident.kind, incident.conversation_id): incident for incident in seen.open}
    changes: list[Change] = []
    down = _store_is_down(memory, seen, rules)
    silent = seen.deliverable > 0 and max(memory.dead, memory.stalled) >= rules.silent_after
    found: dict[IncidentKind, IncidentRecord | None] = {}
    for kind, bad in ((IncidentKind.STORE_DOWN, down), (IncidentKind.RELAY_SILENT, silent)):
        before = after = open_incidents.get((kind, None))
        if before is not None:
            memory, after = _follow_global(before, bad, memory, seen, rules)
        else:
            memory = replace(memory, calm={key: value for key, value in memory.calm.items() if key is not kind})
            if bad and (kind is IncidentKind.STORE_DOWN or rules.watch_relay):
                after = _open_wide(kind, memory, seen, rules)
        if after is not None and after is not before:
            changes.append(Change(before=before, after=after))
        found[kind] = after

    store = found[IncidentKind.STORE_DOWN]
    pending = store is not None and store.state is IncidentState.PENDING
    troubled = bool(down) or silent or any(incident is not None and incident.fires for incident in found.values())
    memory = replace(
        memory, steady=0.0 if troubled else memory.steady + memory.elapsed, held=memory.held if pending else 0.0
    )
    if not (down and (store is None or pending)):
        changes.extend(Change(before=None, after=_open_lane(lane, seen)) for lane in seen.blocked)
    if memory.steady >= rules.stuck_after:
        changes.extend(Change(before=None, after=_open_lane(lane, seen)) for lane in seen.late if not lane.blocked)
    for incident in seen.open:
        if incident.kind is IncidentKind.CONVERSATION_BLOCKED:
            after = _follow_lane(incident, seen.lanes.get(incident.conversation_id or ""), seen.now, rules)
        elif incident.kind is IncidentKind.HISTORY_INCOMPLETE:
            after = _remind(incident, _touched(incident, seen.now), worse=False, now=seen.now, rules=rules)
        else:
            continue
        if after is not incident:
            changes.append(Change(before=incident, after=after))
    return memory, tuple(changes)


def _note_relay(memory: Memory, seen: Observation, rules: Rules) -> Memory:
    """Count how long no relay has shown life or progress, and note how old the events are by now."""
    before, after = memory.relay, seen.relay
    lives = moves = False
    if before is not None and after is not None:
        lives = (before.incarnation, before.heartbeat_at) != (after.incarnation, after.heartbeat_at)
        moves = (before.progress_at, before.delivered) != (after.progress_at, after.delivered)
    elif after is not None:
        lives = memory.elapsed > 0  # the first relay ever; at the first look it may be the row of a dead one
    heard = memory.ran if lives or moves else memory.heard
    waits = seen.deliverable > 0
    refused = seen.breaker is not None and seen.breaker.state != "closed"
    dead = 0.0 if lives or moves or not waits else memory.dead + memory.elapsed
    stalled = 0.0 if moves or refused or not waits else memory.stalled + memory.elapsed
    samples = _pruned((*memory.samples, (memory.ran, seen.newest)), memory.ran - rules.stuck_after)
    return replace(memory, relay=after, heard=heard, dead=dead, stalled=stalled, samples=samples)


def _pruned(samples: tuple[tuple[float, int], ...], limit: float) -> tuple[tuple[float, int], ...]:
    """Drop the samples older than the last one at or before ``limit``."""
    first = 0
    for index, (_, (ran, _)) in enumerate(pairwise(samples), start=1):
        if ran <= limit:
            first = index
    return samples[first:]


def _store_is_down(memory: Memory, seen: Observation, rules: Rules) -> bool | None:
    """Return True if the store is down; ``None`` when no relay that would know has shown life lately."""
    known = seen.live or (memory.heard is not None and memory.ran - memory.heard < rules.silent_after)
    if seen.breaker is None or not known:
        return None
    if seen.breaker.state == "closed":
        return False
    return seen.events > 0 or fault_class(seen.breaker.reason) != "away"


def _open_wide(kind: IncidentKind, memory: Memory, seen: Observation, rules: Rules) -> IncidentRecord:
    reason, since, hold = None, seen.now - timedelta(seconds=max(memory.dead, memory.stalled)), 0.0
    if kind is IncidentKind.STORE_DOWN and seen.breaker is not None:
        reason, since = seen.breaker.reason, seen.breaker.since or seen.now
        hold = rules.hold if fault_class(reason) == "away" else 0.0
    incident = IncidentRecord(
        incident_id=uuid7(),
        kind=kind,
        reason=reason,
        events=seen.events,
        conversations=seen.conversations,
        opened_at=since,
        changed_at=seen.now,
    )
    return incident if hold > 0 else _fired(incident, seen.now)


def _open_lane(lane: LaneView, seen: Observation) -> IncidentRecord:
    incident = IncidentRecord(
        incident_id=uuid7(),
        kind=IncidentKind.CONVERSATION_BLOCKED,
        conversation_id=lane.conversation_id,
        owner_id=lane.owner_id,
        reason=lane.reason if lane.blocked else LATE,
        events=lane.head - lane.delivered,
        conversations=1,
        mark=lane.head,
        opened_at=lane.since,
        changed_at=seen.now,
    )
    return _fired(incident, seen.now)


def _fired(incident: IncidentRecord, now: datetime) -> IncidentRecord:
    return replace(incident, state=IncidentState.FIRING, number=1, why="opened", changed_at=now)


def _resolved(incident: IncidentRecord, now: datetime) -> IncidentRecord:
    outcome = incident.outcome or "saved"
    return replace(_touched(incident, now), state=IncidentState.RESOLVED, outcome=outcome, resolved_at=now)


def _touched(incident: IncidentRecord, now: datetime) -> IncidentRecord:
    return replace(incident, changed_at=now, revision=incident.revision + 1)


def _follow_global(
    incident: IncidentRecord, bad: bool | None, memory: Memory, seen: Observation, rules: Rules
) -> tuple[Memory, IncidentRecord]:
    """Return the memory and the next state of the incident; the same object when nothing has to be stored."""
    calm = 0.0 if bad else memory.calm.get(incident.kind, 0.0) + (memory.elapsed if bad is False else 0.0)
    memory = replace(memory, calm={**memory.calm, incident.kind: calm})
    if bad is False and calm >= rules.resolve_after:
        over = _resolved(incident, seen.now)
        return memory, replace(over, mark=seen.newest, events=seen.events, conversations=seen.conversations)
    reason = incident.reason
    if bad and incident.kind is IncidentKind.STORE_DOWN and seen.breaker is not None:
        # Between faults that need an operator a store is often merely unavailable: neither that nor its end is news.
        reason = (
            incident.reason if fault_class(seen.breaker.reason) == "away" and incident.fires else seen.breaker.reason
        )
    fresh = _touched(incident, seen.now)
    fresh = replace(fresh, reason=reason, events=seen.events, conversations=seen.conversations)
    if incident.state is IncidentState.PENDING:
        # Two processes count the same seconds, so the greater count is taken and not the sum; stored, so that a bot
        # that restarts all the time still gets there.
        held = max(incident.ran, memory.held + (memory.elapsed if bad else 0.0))
        memory = replace(memory, held=held)
        if bad and held >= (rules.hold if fault_class(reason) == "away" else 0.0):
            return memory, replace(_fired(fresh, seen.now), ran=0.0)
        return memory, replace(fresh, ran=held) if held > incident.ran else incident
    worse = bool(bad) and fault_class(reason) not in {fault_class(incident.reason), "away"}
    if bad is False:
        return memory, incident
    return memory, _remind(incident, fresh, worse=worse, now=seen.now, rules=rules)


def _follow_lane(incident: IncidentRecord, lane: LaneView | None, now: datetime, rules: Rules) -> IncidentRecord:
    """Return the next state of a conversation's incident; the same object when nothing has to be stored."""
    if lane is None or (lane.delivered >= incident.mark and not lane.blocked):
        return replace(_resolved(incident, now), events=lane.head - lane.delivered if lane else 0)
    fresh = replace(
        _touched(incident, now),
        reason=lane.reason if lane.blocked else incident.reason,
        events=lane.head - lane.delivered,
        mark=lane.head if lane.delivered >= incident.mark else incident.mark,
        owner_id=lane.owner_id,
    )
    worse = lane.blocked and fault_class(fresh.reason) != fault_class(incident.reason)
    return _remind(incident, fresh, worse=worse, now=now, rules=rules)


def _remind(
    incident: IncidentRecord, fresh: IncidentRecord, *, worse: bool, now: datetime, rules: Rules
) -> IncidentRecord:
    """Make the next alert of an incident that has fired due: as a reminder, or because it got worse."""
    # After a wall clock was set back, times in its future count for nothing: a reminder must not wait until then.
    first = incident.notified_at if incident.notified_at is not None and incident.notified_at <= now else None
    repeats = rules.reminders_after(now - (first or incident.changed_at))
    if first is not None and now >= incident.changed_at:
        repeats = max(repeats, incident.repeats)  # one was due before the first notification arrived
    if worse or repeats > incident.repeats:
        return replace(fresh, number=incident.number + 1, repeats=repeats, why="worse" if worse else "repeat")
    fresh = replace(fresh, repeats=repeats)
    changed = (fresh.repeats, fresh.mark, fresh.reason) != (incident.repeats, incident.mark, incident.reason)
    return fresh if changed or now < incident.changed_at else incident
