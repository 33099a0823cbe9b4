"""When something is an incident, who hears of it, and when it is over: the rules, without a file or a clock."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letopis.outbox.alerting.incidents import (
    LATE,
    BreakerView,
    IncidentKind,
    IncidentRecord,
    IncidentState,
    LaneView,
    Memory,
    Observation,
    RelayView,
    Rules,
    evaluate,
    fault_class,
    late_before,
    tick,
)
from letopis.outbox.alerting.notifications import (
    CLAIM_TIMEOUT,
    NOTIFICATION_POLICY,
    Incident,
    Notification,
    NotificationKind,
    NotificationState,
    PendingNotification,
    build_incident,
    next_notification,
)
from letopis.store.model.events import to_microseconds

STORE_DOWN, BLOCKED, SILENT = IncidentKind.STORE_DOWN, IncidentKind.CONVERSATION_BLOCKED, IncidentKind.RELAY_SILENT
PENDING, FIRING, RESOLVED = IncidentState.PENDING, IncidentState.FIRING, IncidentState.RESOLVED
START = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
AWAY = BreakerView(state="open", reason="the server does not answer [unavailable 08006]")
REFUSED = BreakerView(state="open", reason="the table is missing [misconfigured 42P01]")
REFUSES_ALL = BreakerView(state="open", reason="so it is the history store: it breaks a constraint (x) [poison 23514]")
HALF = BreakerView(state="half_open", reason="the server does not answer [unavailable 08006]")
WELL = BreakerView()


def lane_view(name: str, *, head: int = 1, delivered: int = 0, blocked: bool = False) -> LaneView:
    reason = "poison" if blocked else None
    return LaneView(name, f"owner of {name}", blocked, reason, head, delivered, to_microseconds(START))


@dataclass
class World:
    """An outbox, its relay and its store, watched by one process; the incidents are in `cases`, like in a file."""

    rules: Rules = field(default_factory=Rules)
    cases: dict[UUID, IncidentRecord] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    seconds: float = 0.0
    jump: float = 0.0
    breaker: BreakerView | None = WELL
    live: bool = True
    beats: int | None = 0  # None: no relay has ever run
    delivered: int = 0
    events: int = 0
    newest: int = 0
    lanes: dict[str, LaneView] = field(default_factory=dict)
    states: list[tuple[UUID, IncidentState]] = field(default_factory=list)

    @property
    def turns(self) -> list[tuple[IncidentKind, IncidentState]]:
        return [(self.cases[incident].kind, state) for incident, state in self.states]

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds + self.jump)

    @property
    def open(self) -> list[IncidentRecord]:
        return [case for case in self.cases.values() if case.state is not RESOLVED]

    def alerts(self, kind: IncidentKind) -> list[int]:
        """How many alerts each incident of a kind was worth, reminders aside."""
        fired = {incident for incident, state in self.states if state is FIRING}
        return [1 + case.escalations for key, case in self.cases.items() if case.kind is kind and key in fired]

    def lane(self, name: str, **changes: Any) -> None:
        self.lanes[name] = lane_view(name, **changes)

    def look(self) -> None:
        self.memory = tick(self.memory, monotonic=self.seconds, rules=self.rules)
        old = late_before(self.memory, self.rules)
        owing = {name: lane for name, lane in self.lanes.items() if lane.delivered < lane.head}
        known = {case.conversation_id for case in self.open}
        seen = Observation(
            now=self.now,
            breaker=self.breaker,
            live=self.live,
            relay=None if self.beats is None else RelayView(1, self.beats, self.delivered, self.delivered),
            events=self.events + sum(lane.head - lane.delivered for lane in owing.values()),
            deliverable=sum(not lane.blocked for lane in owing.values()) + (1 if self.events else 0),
            newest=self.newest,
            blocked=tuple(lane for lane in owing.values() if lane.blocked and lane.conversation_id not in known),
            # In this world every lane was last appended to at position 1.
            late=tuple(
                lane for lane in owing.values() if not lane.blocked and old >= 1 and lane.conversation_id not in known
            ),
            open=tuple(self.open),
            lanes=self.lanes,
        )
        self.memory, changes = evaluate(self.memory, seen, self.rules)
        for change in changes:
            assert change.before is None or self.cases[change.after.incident_id] == change.before
            self.cases[change.after.incident_id] = change.after
            if change.before is None or change.before.state is not change.after.state:
                self.states.append((change.after.incident_id, change.after.state))

    def run(
        self, seconds: float, *, step: float = 5.0, beat: bool = True, progress: bool = False, **changes: Any
    ) -> None:
        """Let time pass after some changes, and look every few seconds."""
        vars(self).update(changes)
        end = self.seconds + seconds
        while self.seconds < end:
            self.seconds = min(end, self.seconds + step)
            if beat and self.beats is not None:
                self.beats += 1
            self.delivered += progress
            self.look()


BUSY, DOWN, OWED = {"events": 10}, {"breaker": AWAY}, {"lanes": {"a": lane_view("a")}, "newest": 1}
REFUSED_LANE = {"a": lane_view("a", blocked=True)}
DEAD, WORKS = {"beat": False}, {"progress": True}
WELL_AGAIN = {"breaker": WELL, "events": 0, **WORKS}
BEGINS, FIRES, ENDS = ((STORE_DOWN, state) for state in (PENDING, FIRING, RESOLVED))
NO_RELAY, RELAY_BACK, STUCK_LANE, LANE_ENDS = (
    (kind, state) for kind in (SILENT, BLOCKED) for state in (FIRING, RESOLVED)
)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        # An outage shorter than the hold, and a long one; the store has to be well for a while.
        (BUSY, [(60, WORKS, []), (20, DOWN, [BEGINS]), (300, WELL_AGAIN, [ENDS])]),
        (BUSY, [(1_800, DOWN, [BEGINS, FIRES]), (55, WELL_AGAIN, []), (10, WORKS, [ENDS])]),
        # With nothing pending it is none; a store that refuses is one at once.
        (DOWN, [(600, {}, [])]),
        *(({"breaker": breaker, "events": 1}, [(0, {}, [FIRES])]) for breaker in (REFUSED, REFUSES_ALL)),
        # A clock that jumps neither fires nor hides.
        *(
            (BUSY, [(20, DOWN, [BEGINS]), (5, {"jump": jump}, []), (10, {}, [FIRES])])
            for jump in (-3_600, 86_400, 31_536_000)
        ),
        # A process that was stopped has watched nothing meanwhile; one that starts goes on, and counts anew.
        (OWED, [(21_600, {"step": 21_600.0}, [])]),
        (BUSY | DOWN, [(25, {}, [BEGINS]), (30, {"memory": Memory()}, []), (5, {}, [FIRES])]),
        # A blocked conversation, until it is gone; an outage holds it back for its first half minute.
        ({"lanes": REFUSED_LANE}, [(0, {}, [STUCK_LANE]), (5, {"lanes": {}}, [LANE_ENDS])]),
        (DOWN | {"lanes": {**REFUSED_LANE, "b": lane_view("b")}}, [(20, {}, [BEGINS]), (20, {}, [FIRES, STUCK_LANE])]),
        # What is owed for five minutes is late, unless the store was away: then the backlog has time to drain.
        (OWED, [(290, WORKS, []), (20, WORKS, [STUCK_LANE])]),
        (OWED | DOWN, [(3_600, {}, [BEGINS, FIRES]), (290, WELL_AGAIN, [ENDS])]),
        # A relay that shows no life, and comes back.
        (
            BUSY | {"live": False, "breaker": None},
            [(60, WORKS, []), (115, DEAD, []), (10, DEAD, [NO_RELAY]), (3_000, DEAD, []), (70, WORKS, [RELAY_BACK])],
        ),
        # One that never ran.
        (BUSY | {"live": False, "breaker": None, "beats": None}, [(115, DEAD, []), (10, DEAD, [NO_RELAY])]),
        # One that delivers nothing, that has nothing to do, and that is in the process that watches.
        (BUSY | {"live": False}, [(115, {}, []), (15, {}, [NO_RELAY])]),
        ({"lanes": REFUSED_LANE, "live": False}, [(1_000, DEAD, [STUCK_LANE])]),
        (BUSY | {"rules": Rules(watch_relay=False)}, [(600, DEAD, [])]),
        # What a dead one wrote is no outage, and an outage in which it dies stays as it is.
        (BUSY | DOWN | {"live": False}, [(600, DEAD, [NO_RELAY])]),
        (
            BUSY | DOWN | {"live": False},
            [(120, {}, [BEGINS, FIRES]), (600, DEAD, [NO_RELAY]), (120, WELL_AGAIN, [ENDS, RELAY_BACK])],
        ),
    ],
)
def test_what_happens_is_an_incident_or_none(given: dict[str, Any], steps: list[tuple[float, Any, list[Any]]]) -> None:
    """Each step is some seconds with some changes, and what begins, fires or ends in them."""
    world = World(**given)
    world.look()
    for seconds, changes, turns in steps:
        world.run(seconds, **changes)
        assert world.turns == turns
        world.states.clear()


def test_a_breaker_that_flaps_is_one_incident() -> None:
    """Each time it is open for less than the hold, but together it is an outage."""
    world = World(events=10)
    world.look()
    for _ in range(10):
        for breaker, seconds in ((AWAY, 20), (HALF, 5), (WELL, 30)):
            world.run(seconds, progress=breaker is WELL, breaker=breaker)
    assert (world.alerts(STORE_DOWN), world.turns) == ([1], [BEGINS, FIRES])


def test_another_fault_that_needs_a_person_is_told_of_at_once_and_only_once() -> None:
    world = World(events=10, breaker=AWAY)
    world.run(60)
    assert world.alerts(STORE_DOWN) == [1]
    world.run(60, breaker=REFUSED)
    assert world.alerts(STORE_DOWN) == [2]
    for breaker in (AWAY, REFUSED, AWAY, REFUSED):
        world.run(120, breaker=breaker)
    assert world.alerts(STORE_DOWN) == [2], "it goes back and forth: that is no news"


def test_a_blocked_conversation_is_an_incident_at_once_and_ends_when_it_is_delivered() -> None:
    world = World()
    world.lane("a", head=3, delivered=1, blocked=True)
    world.look()
    (case,) = world.open
    assert (case.kind, case.state, case.conversation_id, case.reason) == (BLOCKED, FIRING, "a", "poison")
    assert (case.owner_id, case.events, case.mark) == ("owner of a", 2, 3)

    world.lane("a", head=4, delivered=1)
    world.run(30, progress=True)
    assert world.open == [case], "somebody said retry; nothing has arrived yet"
    world.lane("a", head=5, delivered=3)
    world.run(5, progress=True)
    assert world.turns == [(BLOCKED, FIRING), (BLOCKED, RESOLVED)]


def test_a_conversation_that_blocks_again_on_the_next_event_is_still_the_same_incident() -> None:
    world = World()
    world.lane("a", head=3, delivered=1, blocked=True)
    world.look()
    for blocked in (True, False):
        world.lane("a", head=4, delivered=3, blocked=blocked)
        world.run(10)
        assert [case.kind for case in world.open] == [BLOCKED]
    world.lane("a", head=4, delivered=4)
    world.run(10)

    assert (world.alerts(BLOCKED), world.open) == ([1], [])


def test_a_conversation_that_is_late_and_then_blocked_is_told_of_again() -> None:
    world = World(newest=1)
    world.lane("a")
    world.run(320, progress=True)
    assert [case.reason for case in world.open] == [LATE]
    world.lane("a", blocked=True)
    world.run(5, progress=True)
    assert (world.alerts(BLOCKED), [case.reason for case in world.open]) == ([2], ["poison"])


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("the service is unavailable [misconfigured 42P01]", "misconfigured"),
        ("poison 22021", "poison"),
        (LATE, "late"),
        *((one, "unavailable") for one in ("a related sentence [unavailable 08006]", "unclassified", None, "")),
    ],
)
def test_the_class_of_a_reason(reason: str | None, expected: str) -> None:
    assert fault_class(reason) == expected


SEED = "⚠️ Не удалось сохранить ответ в историю мультичата. Попробуйте позже."


def a_notification(**changes: object) -> Notification:
    base = Notification(state=NotificationState.SENT, told_at=START, changed_at=START, revision=2)
    return replace(base, **changes)  # type: ignore[arg-type]


def an_incident(state: IncidentState, escalations: int = 0) -> IncidentRecord:
    return IncidentRecord(
        incident_id=UUID(int=1), kind=STORE_DOWN, state=state, escalations=escalations, opened_at=START
    )


def next_at(
    seconds: float, incident: IncidentRecord, previous: Notification | None, *, operator: bool = True
) -> NotificationKind | None:
    now, repeat = START + timedelta(seconds=seconds), DAY if operator else None
    following = next_notification(incident, previous, now=now, policy=NOTIFICATION_POLICY, repeat=repeat)
    return None if following is None else following.kind


RETRYING, SENDING, FAILED = NotificationState.RETRYING, NotificationState.SENDING, NotificationState.FAILED
STUCK, RECOVERED = NotificationKind.STUCK, NotificationKind.RECOVERED
CLAIMED = CLAIM_TIMEOUT.total_seconds()


@pytest.mark.parametrize(
    ("state", "seconds", "previous", "expected"),
    [
        (PENDING, 0, None, None),
        (FIRING, 0, None, STUCK),
        (FIRING, 60, a_notification(), None),
        (FIRING, 4, a_notification(state=RETRYING), None),
        (FIRING, 5, a_notification(state=RETRYING), STUCK),
        (FIRING, 39, a_notification(state=RETRYING, attempts=4), None),
        (FIRING, 40, a_notification(state=RETRYING, attempts=4), STUCK),
        (FIRING, -60, a_notification(state=RETRYING, attempts=4), STUCK),
        (FIRING, 60, a_notification(state=FAILED), None),
        (RESOLVED, 0, None, None),
        (RESOLVED, 0, a_notification(), RECOVERED),
        (RESOLVED, 60, a_notification(state=FAILED, told_at=None), None),
        (RESOLVED, 60, a_notification(state=FAILED), RECOVERED),
        (RESOLVED, CLAIMED - 1, a_notification(state=SENDING), None),
        (RESOLVED, CLAIMED, a_notification(state=SENDING), RECOVERED),
        (RESOLVED, -1, a_notification(state=SENDING), RECOVERED),
        (RESOLVED, 60, a_notification(kind=RECOVERED), None),
        (RESOLVED, 86_400, a_notification(kind=RECOVERED, state=SENDING), None),
        (RESOLVED, 60, a_notification(kind=RECOVERED, state=RETRYING), RECOVERED),
    ],
)
def test_what_a_recipient_is_told_next(
    state: IncidentState, seconds: float, previous: Notification | None, expected: NotificationKind | None
) -> None:
    assert next_at(seconds, an_incident(state), previous) is expected
    assert next_at(seconds, an_incident(state), previous, operator=False) is expected


@pytest.mark.parametrize("state", [NotificationState.SENT, FAILED, SENDING])
@pytest.mark.parametrize(("seconds", "due"), [(86_399, False), (86_400, True), (-86_399, False), (-86_400, True)])
def test_only_operators_are_reminded_and_once_a_day_whatever_the_clock_does(
    seconds: float, state: NotificationState, due: bool
) -> None:
    firing, sent = an_incident(FIRING), a_notification(state=state)
    assert next_at(seconds, firing, sent) is (STUCK if due else None)
    assert next_at(seconds, firing, sent, operator=False) is None


@pytest.mark.parametrize(
    ("incident", "last", "expected"),
    [
        (an_incident(FIRING), None, (0, 1, 1, False)),
        (an_incident(FIRING, 3), None, (3, 1, 1, False)),
        (an_incident(FIRING), a_notification(state=RETRYING, attempts=3), (0, 1, 4, False)),
        (an_incident(FIRING), a_notification(attempts=3), (0, 2, 1, True)),
        (an_incident(FIRING), a_notification(number=2, state=RETRYING), (0, 2, 2, True)),
        (an_incident(FIRING, 1), a_notification(number=2), (1, 1, 1, False)),
        (an_incident(FIRING, 1), a_notification(number=2, state=RETRYING, attempts=3), (1, 1, 1, False)),
        (an_incident(RESOLVED), a_notification(number=2, state=RETRYING, attempts=3), (0, 2, 1, False)),
        (an_incident(RESOLVED, 1), a_notification(number=2, kind=RECOVERED, state=RETRYING), (0, 2, 2, False)),
    ],
)
def test_what_follows_says_which_alert_and_which_attempt_it_is(
    incident: IncidentRecord, last: Notification | None, expected: tuple[int, int, int, bool]
) -> None:
    now = START + DAY
    following = next_notification(incident, last, now=now, policy=NOTIFICATION_POLICY, repeat=DAY)
    assert following is not None
    assert (following.escalations, following.number, following.attempts, following.reminder) == expected
    assert (following.state, following.changed_at) == (SENDING, now)
    assert (following.told_at, following.revision) == ((START, 2) if last else (None, 0))


def built(incident: IncidentRecord, recipient: str = "user:owner:1") -> Incident:
    """What a callback is given about an incident."""
    pending = PendingNotification(incident, recipient, a_notification(), "c", since=START, events=3)
    return build_incident(pending, locale="ru", style="retrying", promise=True)


@pytest.mark.parametrize(("recipient", "owner"), [("user:owner:a:b", "a:b"), ("user:conversation:c", None)])
def test_a_callback_is_given_whom_it_is_about_and_since_when_they_know(recipient: str, owner: str | None) -> None:
    given = built(replace(an_incident(RESOLVED), outcome="skipped"), recipient)
    assert (given.owner_id, given.conversation_id, given.events, given.notified_at) == (owner, "c", 3, START)
    assert (given.state, given.outcome, given.key) == (RESOLVED, "skipped", f"{UUID(int=1)}/{recipient}/stuck")


def test_a_notification_that_fails_is_retried_for_about_a_day() -> None:
    waits = [NOTIFICATION_POLICY.bound(retry) for retry in range(1, NOTIFICATION_POLICY.attempts + 1)]
    assert waits[:4] == [5, 10, 20, 40]
    assert max(waits) == 3_600
    assert 23 <= sum(waits) / 3_600 < 24


def test_an_incident_says_the_truth_in_both_languages() -> None:
    stuck = built(replace(an_incident(FIRING), reason="x [unavailable 08006]"))
    assert "Он не потерян, я продолжаю пытаться. Сообщу, когда сохраню." in stuck.text()
    assert "It is kept, and I keep trying. I will tell you once it is saved." in stuck.text("en-GB")
    assert "I will tell you" not in replace(stuck, promise=False).text("en")
    assert replace(stuck, state=RESOLVED).text() == "✅ Ответ сохранён в истории чата."

    blocked = replace(stuck, kind=BLOCKED, reason="poison 22021")
    assert blocked.needs_operator and "администратора" in blocked.text()
    assert not replace(blocked, reason=LATE).needs_operator
    skipped = replace(blocked, state=RESOLVED, outcome="skipped")
    assert "не удалось сохранить" in skipped.text()
    # The sentence that users of older bots know can be chosen, also where an operator is needed.
    assert replace(stuck, style="failed").text() == replace(blocked, style="failed").text("ru-RU") == SEED


@dataclass
class People:
    """Who was notified of what, kept as in the file, and what each really heard of each incident."""

    notifications: dict[tuple[str, UUID], Notification] = field(default_factory=dict)
    heard: dict[tuple[str, UUID], list[NotificationKind]] = field(default_factory=dict)

    def tell(self, world: World, recipient: str, *, again: bool, works: bool) -> None:
        """Tell a recipient what is due, as a process does that has just claimed it."""
        for one in list(world.cases.values()):
            key = (recipient, one.incident_id)
            before = self.notifications.get(key)
            following = next_notification(
                one, before, now=world.now, policy=NOTIFICATION_POLICY, repeat=DAY if again else None
            )
            if following is None:
                continue
            self.notifications[key] = replace(
                following,
                state=NotificationState.SENT if works else NotificationState.RETRYING,
                told_at=following.told_at or (world.now if works else None),
            )
            if works:
                self.heard.setdefault(key, []).append(following.kind)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("breaker"), st.sampled_from([WELL, AWAY, REFUSED, HALF, None])),
        st.tuples(st.sampled_from(["run", "dead"]), st.integers(1, 400)),
        st.tuples(st.just("events"), st.integers(0, 20)),
        st.tuples(st.sampled_from(["block", "deliver"]), st.sampled_from("abc")),
        st.tuples(st.just("jump"), st.integers(-100_000, 100_000)),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("works"), st.booleans()),
    ),
    max_size=25,
)


@settings(max_examples=50)
@given(STEPS)
def test_nobody_hears_the_same_twice_and_of_the_end_hears_who_heard_of_it(steps: list[tuple[str, Any]]) -> None:
    world, other, people, works = World(events=1, live=False), Memory(), People(), True

    def watch(seconds: int, *, beat: bool) -> None:
        """Two processes look at the same file, one after the other, and notify the same recipients."""
        nonlocal other
        for _ in range(0, seconds, 20):
            world.run(20, step=20, beat=beat, progress=beat)
            mine, world.memory = world.memory, other
            world.look()
            other, world.memory = world.memory, mine
            for recipient in ("user", "operator", "user"):
                people.tell(world, recipient, again=recipient == "operator", works=works)
            keys = [(case.kind, case.conversation_id) for case in world.open]
            assert len(keys) == len(set(keys)), "one open incident a key"

    for name, value in steps:
        match name:
            case "breaker":
                world.breaker = value
            case "run" | "dead":
                watch(value, beat=name == "run")
            case "events":
                world.events = value
            case "block":
                world.lane(value, blocked=True)
            case "deliver":
                world.lane(value, delivered=1)
            case "jump":
                world.jump = value
            case "restart":
                world.memory = Memory()
            case _:
                works = value

    works, world.breaker, world.events = True, WELL, 0
    for name in list(world.lanes):
        world.lane(name, delivered=1)
    watch(400, beat=True)
    world.jump += NOTIFICATION_POLICY.cap  # the longest wait of a retry
    watch(20, beat=True)

    assert world.open == [], "what is mended is over"
    for (recipient, _), words in people.heard.items():
        assert [word for word, _ in groupby(words)] == [STUCK, RECOVERED]
        assert words.count(RECOVERED) == 1, "nobody hears an end twice"
        assert recipient == "operator" or len(words) == 2, "a user hears each once"
