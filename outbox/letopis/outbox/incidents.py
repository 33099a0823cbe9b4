"""Decide when something is an incident, when people hear of it, and when it is over, without touching a clock or file.

An incident goes ``pending -> firing -> notified -> resolved``. There are three kinds:

``store_down``
    The relay's breaker is not closed and something is owed. It waits for 30 seconds of it before it fires; if the
    store is back before, nobody hears of it. A store that refuses us (``misconfigured``) fires at once.
``relay_silent``
    Something can be delivered, and for two minutes nothing shows a relay at work.
``conversation_blocked``
    A lane is blocked, or its oldest event has been owed for five minutes while the store was up and the relay at work.

Every wait is counted in seconds that a process has really watched, on the monotonic clock: a clock that jumps neither
fires nor hides anything, and no order or age is taken from a timestamp. Timestamps here are for people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Final
from uuid import UUID

from letopis.store.errors import InvalidInput
from letopis.store.identifiers import uuid7
from letopis.store.numbers import check_number


class Kind(StrEnum):
    """What an incident is about."""

    STORE_DOWN = "store_down"
    """The history store: one incident an outage."""
    CONVERSATION_BLOCKED = "conversation_blocked"
    """One conversation: one incident each."""
    RELAY_SILENT = "relay_silent"
    """Nothing delivers this outbox."""


class State(StrEnum):
    """How far an incident has come."""

    PENDING = "pending"
    """It may still be over before anybody needs to know."""
    FIRING = "firing"
    """People are to be told."""
    NOTIFIED = "notified"
    """Somebody was told."""
    RESOLVED = "resolved"
    """It is over."""


WIDE: Final = (Kind.STORE_DOWN, Kind.RELAY_SILENT)
"""The kinds that are about every conversation at once."""

LATE: Final = "late"
"""The reason of a conversation that is not blocked but owed for too long."""

_CLASS: Final = re.compile(r".*\[(\w+)[^\]]*\]|\s*(\w+)(?:\s+\w+)?\s*$", re.DOTALL)
# A person sees no difference between them: the store is away, and waiting mends it.
_AWAY: Final = frozenset({"", "unavailable", "unknown_outcome", "conflict", "unclassified"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How patient people are; all times in seconds.

    :ivar hold: an outage of the store that is shorter alerts nobody.
    :ivar stuck_after: what is owed for longer is stuck.
    :ivar silent_after: a relay that shows nothing for longer is silent.
    :ivar resolve_after: the store and the relay have to be well for so long before it counts as over.
    :ivar repeat: operators are reminded so long after an incident fired, then every last of these again.
    :ivar growth: a group alert waits for nothing when it is about so many times more conversations than the last.
    :ivar group_interval: else two group alerts of the same kind are so far apart.
    :ivar watch_relay: raise ``relay_silent`` here; for every process but the relay's own.
    """

    hold: float = 30.0
    stuck_after: float = 300.0
    silent_after: float = 120.0
    resolve_after: float = 60.0
    repeat: tuple[float, ...] = (3_600.0, 14_400.0, 86_400.0)
    growth: int = 10
    group_interval: float = 900.0
    watch_relay: bool = True

    longest_step: float = 30.0
    """Of the time between two observations no more is counted: what happened in a longer pause nobody has watched."""

    def __post_init__(self) -> None:
        for name in (
            *("hold", "stuck_after", "silent_after", "resolve_after"),
            *("growth", "group_interval", "longest_step"),
        ):
            check_number(getattr(self, name), name)
        if not isinstance(self.repeat, tuple):
            raise InvalidInput("repeat", f"must be a tuple of seconds, not {type(self.repeat).__name__}")
        for seconds in self.repeat:
            check_number(seconds, "repeat")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView:
    """The relay's breaker.

    :ivar state: ``closed``, ``open`` or ``half_open``.
    :ivar since: when it took this state; for people.
    :ivar reason: a sentence of ours with fault class and code; no driver text.
    """

    state: str = "closed"
    since: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayView:
    """What a relay leaves behind in the outbox file. Only *that* these move matters, never what they say."""

    incarnation: int
    heartbeat_at: int
    progress_at: int
    delivered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneView:
    """One conversation's lane.

    :ivar reason: of a blocked lane: a sentence of ours with fault class and code.
    :ivar since: when the oldest owed event was appended; for people.
    """

    conversation_id: str
    owner_id: str | None
    blocked: bool
    reason: str | None
    head: int
    delivered: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An incident as it is kept.

    :ivar ran: seconds that it was watched in this state (``firing`` and ``notified`` are one).
    :ivar number: the operators' alert that is due: 0 while pending, 1 once it fires, one more for each further one.
    :ivar repeats: how many of them were reminders.
    :ivar why: ``opened``, ``repeat`` or ``worse``: the reason for the last one.
    :ivar mark: a conversation's last sequence that belongs to it; for the others the last position, once resolved.
    :ivar outcome: ``saved`` or ``skipped`` once resolved.
    :ivar revision: one more with each change that is kept.
    """

    incident_id: UUID
    kind: Kind
    conversation_id: str | None = None
    owner_id: str | None = None
    state: State = State.PENDING
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one look at the outbox file showed.

    :ivar breaker: of the relay that holds the lease; ``None`` when none ever did.
    :ivar live: the breaker is of a relay in this process, so it is known to be true now.
    :ivar relay: what that relay left behind; ``None`` when none ever ran.
    :ivar events: owed now, in all lanes.
    :ivar conversations: lanes that owe something.
    :ivar deliverable: lanes among them that a relay could serve (neither blocked nor paused).
    :ivar newest: the position of the newest event.
    :ivar blocked: blocked lanes that have no open incident; not necessarily all of them.
    :ivar late: lanes without one whose oldest owed event stands at or before :func:`late_before`; the same.
    :ivar open: the open incidents; of a great many conversations perhaps only some.
    :ivar lanes: the lanes of the open incidents that are about a conversation; one that is missing does not exist.
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
    open: tuple[Case, ...] = ()
    lanes: Mapping[str, LaneView] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is carried from one observation to the next; it is not kept, a new process starts with an empty one.

    :ivar monotonic: of the last observation.
    :ivar ran: seconds watched so far.
    :ivar elapsed: seconds since the observation before.
    :ivar samples: (seconds watched, newest position): whatever stands at or before it is at least that old.
    :ivar heard: seconds watched when a relay last showed life; ``None`` before the first time.
    :ivar dead: seconds without a sign of life while something was deliverable.
    :ivar stalled: seconds without progress while something was deliverable and the store not known to be down.
    :ivar steady: seconds with the store up and the relay at work, without a break.
    :ivar calm: an incident's id to the seconds since its cause went away.
    :ivar clocks: an incident's id to the seconds counted for it, ahead of what is kept.
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
    calm: Mapping[UUID, float] = field(default_factory=dict)
    clocks: Mapping[UUID, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An incident to be kept: new when ``before`` is ``None``, else only if it is still at ``before.revision``."""

    before: Case | None
    after: Case

    @property
    def turned(self) -> bool:
        """Whether the state is another one, and not only what is known about it."""
        return self.before is None or self.before.state is not self.after.state


def tick(memory: Memory, *, monotonic: float, rules: Rules) -> Memory:
    """Return the memory at the start of a new observation; call it first, with the monotonic clock."""
    passed = 0.0 if memory.monotonic is None else monotonic - memory.monotonic
    elapsed = min(max(passed, 0.0), rules.longest_step)
    return replace(memory, monotonic=monotonic, elapsed=elapsed, ran=memory.ran + elapsed)


def late_before(memory: Memory, rules: Rules) -> int:
    """Return the position up to which every event is known to be at least ``stuck_after`` old; 0 if none is."""
    return max((position for ran, position in memory.samples if ran <= memory.ran - rules.stuck_after), default=0)


def evaluate(memory: Memory, seen: Observation, rules: Rules) -> tuple[Memory, tuple[Change, ...]]:
    """Return what is remembered and which incidents change. Nothing has changed until the changes are kept."""
    memory = _hear(memory, seen, rules)
    open_cases = {(case.kind, case.conversation_id): case for case in seen.open}
    kept = frozenset(case.incident_id for case in seen.open)
    calm = {key: value for key, value in memory.calm.items() if key in kept}
    clocks = {key: value for key, value in memory.clocks.items() if key in kept}
    changes: list[Change] = []

    down = _store_is_down(memory, seen, rules)
    silent = seen.deliverable > 0 and max(memory.dead, memory.stalled) >= rules.silent_after
    wide: dict[Kind, Case | None] = {}
    for kind, bad in ((Kind.STORE_DOWN, down), (Kind.RELAY_SILENT, silent)):
        before = open_cases.get((kind, None))
        after = before
        if before is not None:
            after = _follow(before, bad=bad, memory=memory, calm=calm, clocks=clocks, seen=seen, rules=rules)
        elif bad and (kind is Kind.STORE_DOWN or rules.watch_relay):
            after = _open_wide(kind, memory, seen, rules)
        if after is not None and after is not before:
            changes.append(Change(before=before, after=after))
        wide[kind] = after

    troubled = bool(down) or silent or any(case is not None and _fires(case) for case in wide.values())
    memory = replace(memory, steady=0.0 if troubled else memory.steady + memory.elapsed)
    store = wide[Kind.STORE_DOWN]
    if not (down and (store is None or store.state is State.PENDING)):
        changes.extend(Change(before=None, after=_open_lane(lane, seen)) for lane in seen.blocked)
    if memory.steady >= rules.stuck_after:
        changes.extend(Change(before=None, after=_open_lane(lane, seen)) for lane in seen.late if not lane.blocked)
    for case in seen.open:
        if case.kind is Kind.CONVERSATION_BLOCKED:
            lane = seen.lanes.get(case.conversation_id or "")
            after = _follow_lane(case, lane, memory=memory, clocks=clocks, now=seen.now, rules=rules)
            if after is not case:
                changes.append(Change(before=case, after=after))
    return replace(memory, calm=calm, clocks=clocks), tuple(changes)


def fault_class(reason: str | None) -> str:
    """Return the class in a reason such as ``... [misconfigured 42P01]`` or ``poison 22021``; ``away`` for all of those
    in which the store is merely away."""
    found = _CLASS.match((reason or "").lower())
    word = (found[1] or found[2]) if found else ""
    return "away" if word in _AWAY else word


def _fires(case: Case) -> bool:
    return case.state in (State.FIRING, State.NOTIFIED)


def _hear(memory: Memory, seen: Observation, rules: Rules) -> Memory:
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
    samples = _sampled((*memory.samples, (memory.ran, seen.newest)), memory.ran - rules.stuck_after)
    return replace(memory, relay=after, heard=heard, dead=dead, stalled=stalled, samples=samples)


def _sampled(samples: tuple[tuple[float, int], ...], limit: float) -> tuple[tuple[float, int], ...]:
    """Forget what is older than the last sample at or before ``limit``."""
    first = 0
    for index, (_, (ran, _)) in enumerate(pairwise(samples), start=1):
        if ran <= limit:
            first = index
    return samples[first:]


def _store_is_down(memory: Memory, seen: Observation, rules: Rules) -> bool | None:
    """Say whether the store is down, ``None`` when nobody who would know has been heard of lately."""
    known = seen.live or (memory.heard is not None and memory.ran - memory.heard < rules.silent_after)
    if seen.breaker is None or not known:
        return None
    if seen.breaker.state == "closed":
        return False
    return seen.events > 0 or fault_class(seen.breaker.reason) != "away"


def _open_wide(kind: Kind, memory: Memory, seen: Observation, rules: Rules) -> Case:
    # A relay has been silent for long enough by now.
    reason, since, hold = None, seen.now - timedelta(seconds=max(memory.dead, memory.stalled)), 0.0
    if kind is Kind.STORE_DOWN and seen.breaker is not None:
        reason, since = seen.breaker.reason, seen.breaker.since or seen.now
        hold = rules.hold if fault_class(reason) == "away" else 0.0
    case = Case(
        incident_id=uuid7(),
        kind=kind,
        reason=reason,
        events=seen.events,
        conversations=seen.conversations,
        opened_at=since,
        changed_at=seen.now,
    )
    return case if hold > 0 else _fired(case, seen.now)


def _fired(case: Case, now: datetime) -> Case:
    return replace(case, state=State.FIRING, ran=0.0, number=1, why="opened", changed_at=now)


def _follow(
    case: Case,
    *,
    bad: bool | None,
    memory: Memory,
    calm: dict[UUID, float],
    clocks: dict[UUID, float],
    seen: Observation,
    rules: Rules,
) -> Case:
    """Return a wide incident as it is now; the same object when nothing of it has to be kept."""
    key = case.incident_id
    calm[key] = 0.0 if bad else calm.get(key, 0.0) + (memory.elapsed if bad is False else 0.0)
    if bad is False and calm[key] >= rules.resolve_after:
        return replace(
            case,
            state=State.RESOLVED,
            mark=seen.newest,
            events=seen.events,
            conversations=seen.conversations,
            outcome="saved",
            changed_at=seen.now,
            resolved_at=seen.now,
            revision=case.revision + 1,
        )
    reason = case.reason
    if bad and case.kind is Kind.STORE_DOWN and seen.breaker is not None:
        # Between the faults that need a person a store is often just away: that is no news, and so is its return.
        reason = case.reason if fault_class(seen.breaker.reason) == "away" and _fires(case) else seen.breaker.reason
    fresh = replace(
        case,
        reason=reason,
        events=seen.events,
        conversations=seen.conversations,
        changed_at=seen.now,
        revision=case.revision + 1,
    )
    if case.state is State.PENDING:
        hold = rules.hold if fault_class(reason) == "away" else 0.0
        ran = _clock(case, clocks, memory.elapsed if bad else 0.0)
        if bad and ran >= hold:
            clocks.pop(key, None)
            return _fired(fresh, seen.now)
        return replace(fresh, ran=ran) if ran > case.ran else case
    worse = bad and fault_class(reason) not in {fault_class(case.reason), "away"}
    return _remind(case, fresh, worse=bool(worse), paused=bad is False, clocks=clocks, memory=memory, rules=rules)


def _open_lane(lane: LaneView, seen: Observation) -> Case:
    case = Case(
        incident_id=uuid7(),
        kind=Kind.CONVERSATION_BLOCKED,
        conversation_id=lane.conversation_id,
        owner_id=lane.owner_id,
        reason=lane.reason if lane.blocked else LATE,
        events=lane.head - lane.delivered,
        conversations=1,
        mark=lane.head,
        opened_at=lane.since,
        changed_at=seen.now,
    )
    return _fired(case, seen.now)


def _follow_lane(
    case: Case, lane: LaneView | None, *, memory: Memory, clocks: dict[UUID, float], now: datetime, rules: Rules
) -> Case:
    """Return a conversation's incident as it is now; the same object when nothing of it has to be kept."""
    if lane is None or (lane.delivered >= case.mark and not lane.blocked):
        return replace(
            case,
            state=State.RESOLVED,
            events=lane.head - lane.delivered if lane else 0,
            outcome=case.outcome or "saved",
            changed_at=now,
            resolved_at=now,
            revision=case.revision + 1,
        )
    fresh = replace(
        case,
        reason=lane.reason if lane.blocked else case.reason,
        events=lane.head - lane.delivered,
        mark=lane.head if lane.delivered >= case.mark else case.mark,
        owner_id=lane.owner_id,
        changed_at=now,
        revision=case.revision + 1,
    )
    worse = lane.blocked and fault_class(fresh.reason) != fault_class(case.reason)
    return _remind(case, fresh, worse=worse, paused=False, clocks=clocks, memory=memory, rules=rules)


def _remind(
    case: Case,
    fresh: Case,
    *,
    worse: bool,
    paused: bool,
    clocks: dict[UUID, float],
    memory: Memory,
    rules: Rules,
) -> Case:
    """Count an incident that has fired, and make the next alert due: a reminder, or because it got worse."""
    ran = _clock(case, clocks, memory.elapsed)
    due = ran >= _reminder(case.repeats, rules) and not paused
    if worse or due:
        clocks.pop(case.incident_id, None)
        repeats = case.repeats + (1 if due else 0)
        return replace(fresh, ran=ran, number=case.number + 1, repeats=repeats, why="worse" if worse else "repeat")
    # What was counted is kept now and then, so that a restart goes on from there.
    keep = ran - case.ran >= (60.0 if case.kind in WIDE else 600.0) or fresh.mark != case.mark
    return replace(fresh, ran=ran) if keep else case


def _clock(case: Case, clocks: dict[UUID, float], elapsed: float) -> float:
    """Count seconds for an incident. Two processes count the same seconds, so the greater count is taken, not a sum."""
    ran = clocks[case.incident_id] = max(case.ran, clocks.get(case.incident_id, case.ran) + elapsed)
    return ran


def _reminder(repeats: int, rules: Rules) -> float:
    """Return how long after it fired the next reminder of an incident is due."""
    if not rules.repeat:
        return float("inf")
    beyond = max(0, repeats - len(rules.repeat) + 1)
    return rules.repeat[min(repeats, len(rules.repeat) - 1)] + beyond * rules.repeat[-1]
