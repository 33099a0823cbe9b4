"""Incidents and notifications in the outbox file: what is kept, and that only one of two processes notifies."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from letopis.outbox.alerting.incident_table import note_skipped, prune_incidents, read_observation, write_changes
from letopis.outbox.alerting.incidents import (
    Change,
    IncidentKind,
    IncidentRecord,
    IncidentState,
    Memory,
    Rules,
    evaluate,
)
from letopis.outbox.alerting.notification_table import claim, pending_for_channel, pending_for_users, record_outcome
from letopis.outbox.alerting.notifications import CLAIM_TIMEOUT, NotificationKind, PendingNotification
from letopis.outbox.event_log import schema
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.model.events import to_microseconds
from letopis.store.model.identifiers import uuid7
from tests.support.outboxes import open_incidents

START = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
CHANNEL = "channel:0123456789ab"
FAULT = "x [poison 1]"
BLOCKED, STORE_DOWN = IncidentKind.CONVERSATION_BLOCKED, IncidentKind.STORE_DOWN
POLICY = RetryPolicy(base=5, cap=600, jitter="none", attempts=2)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'bot.outbox.db'}")
    schema.metadata.create_all(engine)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def add_lane(
    connection: sa.Connection,
    name: str,
    *,
    owner: str | None = None,
    head: int = 1,
    delivered: int = 0,
    state: str = "ready",
    fault: str | None = None,
) -> int:
    """Add a lane with its pending events; return the position of the first. One with a fault is blocked."""
    stamp = to_microseconds(START)
    lane = sa.insert(schema.lanes).values(
        conversation_id=name,
        owner_id=owner,
        head=head,
        delivered=delivered,
        pruned=delivered,
        state="blocked" if fault else state,
        attempts=0,
        due_at=0,
        pending_since=stamp if delivered < head else None,
        fault_class="poison" if fault else None,
        fault=fault,
    )
    (number,) = connection.execute(lane).inserted_primary_key or (0,)
    event = {"lane": number, "type": "custom.x", "schema_version": 1, "data": "{}", "digest": bytes(32)}
    event |= {"occurred_at": stamp, "appended_at": stamp}
    positions = []
    for sequence in range(delivered + 1, head + 1):
        added = sa.insert(schema.events).values(event_id=uuid7().bytes, sequence=sequence, **event)
        positions.extend(connection.execute(added).inserted_primary_key or ())
    return min(positions, default=0)


def set_lane(connection: sa.Connection, name: str, **values: object) -> None:
    connection.execute(sa.update(schema.lanes).where(schema.lanes.c.conversation_id == name).values(**values))


def fire(
    connection: sa.Connection, kind: IncidentKind = STORE_DOWN, name: str | None = None, **values: object
) -> IncidentRecord:
    """Keep an incident that has just fired."""
    firing = IncidentState.FIRING
    case = IncidentRecord(incident_id=uuid7(), kind=kind, conversation_id=name, state=firing, opened_at=START)
    case = replace(case, **values)  # type: ignore[arg-type]
    assert len(write_changes(connection, [Change(before=None, after=case)])) == 1
    return case


def end(connection: sa.Connection, case: IncidentRecord, *, mark: int = 0) -> IncidentRecord:
    """Keep that an incident, whatever became of it meanwhile, is over."""
    (now,) = (one for one in open_incidents(connection) if one.incident_id == case.incident_id)
    over = replace(now, state=IncidentState.RESOLVED, resolved_at=START, mark=mark or now.mark)
    assert len(write_changes(connection, [Change(before=now, after=over)])) == 1
    return over


def users(connection: sa.Connection, *, late_before: int = 0, now: datetime = START) -> list[PendingNotification]:
    return pending_for_users(connection, now=now, policy=POLICY, late_before=late_before)


def operators(connection: sa.Connection, *, now: datetime = START) -> list[PendingNotification]:
    return pending_for_channel(connection, CHANNEL, now=now, policy=POLICY, repeat=DAY)


def tell(
    connection: sa.Connection, pending: list[PendingNotification], *, told: bool | None = True, now: datetime = START
) -> None:
    assert list(claim(connection, pending, now=now)) == pending
    record_outcome(connection, pending, told=told, now=now, policy=POLICY)


def test_an_incident_is_shown_with_what_is_pending_now(connection: sa.Connection) -> None:
    for name, owner in (("a", "1"), ("b", "2")):
        add_lane(connection, name, owner=owner, head=3, delivered=1, fault=FAULT)
        fire(connection, BLOCKED, name, mark=3)
    add_lane(connection, "c", head=5)
    fire(connection)
    shown = [(one.conversation_id, one.owner_id, one.events, one.conversations) for one in open_incidents(connection)]
    assert shown == [(None, None, 9, 3), ("a", "1", 2, 2), ("b", "2", 2, 2)]

    set_lane(connection, "a", owner_id="9", delivered=2)
    (a,) = (one for one in open_incidents(connection) if one.conversation_id == "a")
    assert (a.owner_id, a.events) == ("9", 1)


def test_a_key_has_one_open_incident(connection: sa.Connection) -> None:
    first = fire(connection, BLOCKED, "a")
    second = replace(first, incident_id=uuid7())
    assert write_changes(connection, [Change(before=None, after=second)]) == ()
    end(connection, first)
    assert len(write_changes(connection, [Change(before=None, after=second)])) == 1


def test_a_change_that_was_decided_on_something_else_is_not_kept(connection: sa.Connection) -> None:
    case = fire(connection, reason="poison", mark=7)
    one = Change(before=case, after=replace(case, escalations=1))
    other = Change(before=case, after=replace(case, state=IncidentState.RESOLVED, resolved_at=START))
    assert write_changes(connection, [one]) == (one,)
    assert write_changes(connection, [other]) == ()
    assert open_incidents(connection) == (replace(one.after, revision=1),), "and comes back as it was kept"


def test_a_look_shows_what_is_owed_and_what_is_blocked(connection: sa.Connection) -> None:
    add_lane(connection, "ok", head=3, delivered=3)
    first = add_lane(connection, "owed", head=4, delivered=1)
    assert [lane.conversation_id for lane in read_observation(connection, now=START, late_before=first).late] == [
        "owed"
    ]
    add_lane(connection, "bad", owner="1", head=2, fault="the data was refused [poison 22021]")
    add_lane(connection, "odd", head=2, fault="no code here")
    add_lane(connection, "rest", head=2, state="paused")
    seen = read_observation(connection, now=START, late_before=0)

    assert (seen.events, seen.deliverable, seen.newest) == (9, 1, 9)
    assert {(lane.conversation_id, lane.owner_id, lane.reason) for lane in seen.blocked} == {
        ("bad", "1", "the data was refused [poison 22021]"),
        ("odd", None, "no code here [poison]"),
    }
    assert (seen.late, seen.breaker, seen.relay, seen.open) == ((), None, None, ())


def test_an_operator_who_skips_an_event_is_remembered(connection: sa.Connection) -> None:
    add_lane(connection, "bad", fault=FAULT)
    case = fire(connection, BLOCKED, "bad", mark=1)
    assert note_skipped(connection, "bad")
    assert not note_skipped(connection, "other")
    set_lane(connection, "bad", delivered=1, state="ready")
    _, changes = evaluate(Memory(), read_observation(connection, now=START, late_before=0), Rules())

    assert [(change.after.incident_id, change.after.outcome) for change in changes] == [(case.incident_id, "skipped")]


def test_a_claim_is_given_once_and_none_of_what_is_over(connection: sa.Connection) -> None:
    case = fire(connection)
    (one,) = operators(connection)
    assert claim(connection, [one], now=START) == (one,)
    assert claim(connection, [one], now=START) == ()
    assert operators(connection) == []
    end(connection, case)
    case = fire(connection)
    (one,) = operators(connection)
    end(connection, case)
    assert claim(connection, [one], now=START) == (), "it ended between the look and the claim"


@pytest.mark.parametrize("told", [True, None, False], ids=["reached", "perhaps reached", "not reached"])
def test_whoever_heard_of_it_hears_the_end_and_then_nothing(connection: sa.Connection, told: bool | None) -> None:
    case = fire(connection)
    tell(connection, operators(connection), told=told)
    assert open_incidents(connection)[0].notified_at == (None if told is False else START)
    assert operators(connection) == []

    end(connection, case)
    pending = operators(connection)
    assert [one.notification.kind for one in pending] == [NotificationKind.RECOVERED] * (told is not False)
    tell(connection, pending)
    assert operators(connection) == []


def test_an_outcome_that_comes_after_the_next_claim_changes_nothing(connection: sa.Connection) -> None:
    """A process was stopped while it sent the first alert, and another one died while it sent the reminder."""
    case = fire(connection)
    pending = operators(connection)
    claim(connection, pending, now=START)
    tomorrow = START + DAY
    assert len(claim(connection, operators(connection, now=tomorrow), now=tomorrow)) == 1
    record_outcome(connection, pending, told=False, now=tomorrow, policy=POLICY)
    end(connection, case)

    (one,) = operators(connection, now=tomorrow + CLAIM_TIMEOUT)
    assert one.notification.kind is NotificationKind.RECOVERED


def test_operators_are_tried_again_reminded_and_told_when_it_gets_worse_and_users_are_not(
    connection: sa.Connection,
) -> None:
    def due(now: datetime) -> list[tuple[int, int, bool]]:
        assert users(connection, late_before=position, now=now) == []
        following = [one.notification for one in operators(connection, now=now)]
        return [(one.number, one.attempts, one.reminder) for one in following]

    position = add_lane(connection, "a", owner="1")
    case = fire(connection)
    tell(connection, users(connection, late_before=position))
    tell(connection, operators(connection), told=False)
    moment = START + timedelta(seconds=5)
    assert (due(moment - timedelta(seconds=1)), due(moment)) == ([], [(1, 2, False)])
    tell(connection, operators(connection, now=moment), now=moment)
    assert write_changes(connection, [Change(before=case, after=replace(case, escalations=1))])
    assert due(moment) == [(1, 1, False)]
    tell(connection, operators(connection, now=moment), now=moment)
    tomorrow = moment + DAY
    assert (due(tomorrow - timedelta(seconds=1)), due(tomorrow)) == ([], [(2, 1, True)])
    tell(connection, operators(connection, now=tomorrow), now=tomorrow)
    assert due(tomorrow + timedelta(hours=23)) == []


def test_a_reminder_is_about_all_that_is_stuck_for_half_a_day(connection: sa.Connection) -> None:
    for hours, name in ((0, "a"), (8, "b"), (18, "c")):
        add_lane(connection, name, fault=FAULT)
        fire(connection, BLOCKED, name, mark=1)
        tell(connection, operators(connection), now=START + timedelta(hours=hours))
    pending = operators(connection, now=START + DAY)
    assert [one.conversation_id for one in pending] == ["a", "b"]

    tell(connection, pending, now=START + DAY)
    pending = operators(connection, now=START + timedelta(hours=42))
    assert [one.conversation_id for one in pending] == ["a", "b", "c"], "and from now on together"


def test_an_outage_reaches_each_user_once_whose_messages_are_late(connection: sa.Connection) -> None:
    add_lane(connection, "a1", owner="1", head=2)
    add_lane(connection, "a2", owner="1")
    add_lane(connection, "nobody's")
    add_lane(connection, "bad", owner="9", fault=FAULT)
    late = add_lane(connection, "b", owner="2")
    add_lane(connection, "too new", owner="3")
    fire(connection)
    fire(connection, IncidentKind.RELAY_SILENT)
    pending = users(connection, late_before=late)

    assert {(one.recipient, one.events) for one in pending} == {
        ("user:owner:1", 3),
        ("user:owner:2", 1),
        ("user:conversation:nobody's", 1),
    }
    assert len(pending) == 3, "also with two incidents at once"
    tell(connection, pending)
    assert users(connection, late_before=late) == []


def test_users_hear_of_the_end_once_their_own_messages_have_arrived(connection: sa.Connection) -> None:
    add_lane(connection, "a1", owner="1")
    add_lane(connection, "a2", owner="1")
    late = add_lane(connection, "b", owner="2")
    case = fire(connection)
    tell(connection, users(connection, late_before=late))
    add_lane(connection, "c", owner="2")
    end(connection, case, mark=late)
    assert users(connection) == []

    for name in ("b", "a1"):
        set_lane(connection, name, delivered=1)
        assert [one.recipient for one in users(connection)] == ["user:owner:2"], "what came after is another story"
    set_lane(connection, "a2", delivered=1)
    tell(connection, users(connection))

    assert users(connection) == []


def test_a_user_who_knows_of_the_outage_is_not_told_of_one_conversation_too(connection: sa.Connection) -> None:
    late = add_lane(connection, "a", owner="1")
    outage = fire(connection)
    tell(connection, users(connection, late_before=late))
    set_lane(connection, "a", state="blocked", fault=FAULT, fault_class="poison")
    blocked = fire(connection, BLOCKED, "a", mark=1)
    end(connection, outage, mark=late)
    assert users(connection, late_before=late) == [], "they wait for the same reply still"
    assert [one.incident.incident_id for one in operators(connection)] == [blocked.incident_id]

    set_lane(connection, "a", state="ready", delivered=1)
    end(connection, blocked)
    (one,) = users(connection)
    assert (one.notification.kind, one.incident.kind) == (NotificationKind.RECOVERED, STORE_DOWN)


def test_a_user_who_knows_of_a_conversation_hears_its_own_end(connection: sa.Connection) -> None:
    """The end of the outage does not wait for a conversation that was blocked before, nor the other way round."""
    bad = add_lane(connection, "bad", owner="1", fault=FAULT)
    blocked = fire(connection, BLOCKED, "bad", mark=1)
    tell(connection, users(connection))
    late = add_lane(connection, "a", owner="1")
    outage = fire(connection)
    (one,) = users(connection, late_before=late)
    assert (one.incident.incident_id, one.events) == (outage.incident_id, 1)
    tell(connection, [one])
    end(connection, outage, mark=max(bad, late))
    set_lane(connection, "a", delivered=1)
    (one,) = users(connection)
    assert one.incident.incident_id == outage.incident_id
    tell(connection, [one])

    set_lane(connection, "bad", delivered=1, state="ready")
    end(connection, blocked)
    assert [one.incident.incident_id for one in users(connection)] == [blocked.incident_id]


def test_one_who_gets_an_owner_meanwhile_is_not_told_twice(connection: sa.Connection) -> None:
    add_lane(connection, "a", fault=FAULT)
    fire(connection, BLOCKED, "a")
    tell(connection, users(connection))
    set_lane(connection, "a", owner_id="1")
    assert users(connection) == []


def test_a_user_who_was_not_reached_in_one_outage_hears_of_the_next(connection: sa.Connection) -> None:
    late = add_lane(connection, "a", owner="1")
    first = fire(connection)
    tell(connection, users(connection, late_before=late), told=False)
    end(connection, first, mark=late)
    second = fire(connection)
    assert [one.incident.incident_id for one in users(connection, late_before=late)] == [second.incident_id]


def test_what_is_long_over_is_forgotten(connection: sa.Connection) -> None:
    case = fire(connection)
    tell(connection, operators(connection))
    end(connection, case)
    fire(connection)

    assert prune_incidents(connection, now=START + timedelta(days=29)) == 0
    assert prune_incidents(connection, now=START + timedelta(days=31)) == 1
    assert connection.scalar(sa.select(sa.func.count()).select_from(schema.notifications)) == 0
    assert len(open_incidents(connection)) == 1
