"""The status: figures that agree with what is in the file, and a contract for scripts."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from letopis.console.i18n import language
from letopis.console.stuck_lanes import list_stuck
from letopis.console.verdict import verdict as console_verdict
from letopis.ops.cli.health import _check_files as check_files
from letopis.outbox import History
from letopis.outbox.alerting.incidents import IncidentKind, IncidentRecord
from letopis.outbox.operations.status import BreakerStatus, RelayStatus, Status
from letopis.store.model.identifiers import uuid7
from letopis.store.model.messages import Message
from tests.support.relays import DOWN, ToldStore, relay_on, sql


async def test_it_counts_what_is_pending_and_for_how_long(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 25, tzinfo=UTC)
    async with History(tmp_path / "bot.outbox.db", relay=False, now=lambda: moment) as history:
        await history.append("c1", Message.user("é"), metadata={"k": 1})
        moment += timedelta(seconds=30)
        await history.append("c2", Message.user("two"))
        moment += timedelta(seconds=60)
        await sql(history.outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked' WHERE conversation_id = 'c2'")

        found = await history.status()
        size = "SELECT sum(length(CAST(data AS BLOB)) + coalesce(length(metadata), 0)) FROM letopis_outbox_events"

        assert (found.pending, found.oldest_pending_seconds) == (4, 90.0)
        assert [(found.pending_bytes,)] == await sql(history.outbox, size)
        assert dict(found.lanes) == {"ready": 1, "retrying": 0, "blocked": 1, "paused": 0}
        assert not found.healthy
        assert (found.relay.running, found.relay.holder) == (False, None)
        moment -= timedelta(hours=1)
        assert (await history.status()).oldest_pending_seconds == 0, "an age is never negative, whatever the clock"


NOW = datetime(2026, 11, 25, 12, 3, tzinfo=UTC)
RUNNING = RelayStatus(running=True, holder="bot (pid 1 on host)")
PROGRESSED = replace(RUNNING, last_progress_seconds=29.0)
LATE = replace(RUNNING, last_progress_seconds=120.0)
OUTAGE = BreakerStatus(
    state="open",
    since=NOW,
    reason="unavailable disconnected",
    detail="the connection was lost",
    next_attempt_at=NOW + timedelta(seconds=5),
)
REFUSES = replace(OUTAGE, reason="poison 23514", detail="it breaks a constraint (constraint t.x)", next_attempt_at=None)
FORBIDS = BreakerStatus(state="open", reason="misconfigured 42501", detail="no right")


def status(
    *,
    pending: int = 0,
    blocked: int = 0,
    breaker: BreakerStatus | None = None,
    relay: RelayStatus = RUNNING,
    kinds: tuple[IncidentKind, ...] = (),
    lost: int = 0,
    retrying: int = 0,
    wal_bytes: int = 0,
    oldest: float | None = None,
) -> Status:
    return Status(
        read_at=NOW,
        pending=pending,
        pending_bytes=0,
        wal_bytes=wal_bytes,
        oldest_pending_seconds=oldest,
        delivered=0,
        lanes={"blocked": blocked, "retrying": retrying},
        lost=lost,
        breaker=breaker or BreakerStatus(),
        relay=relay,
        incidents=tuple(IncidentRecord(incident_id=uuid7(), kind=kind, opened_at=NOW) for kind in kinds),
    )


DOWN_NOW = (IncidentKind.STORE_DOWN,)
SINCE = "unreachable since 2026-11-25 12:03:00Z (the connection was lost); "
HEALTHY = [
    (status(), "Everything is in the history store."),
    (status(pending=30), "30 events are being delivered."),
    (status(pending=30, oldest=360.0, relay=PROGRESSED), "being delivered."),
    (status(pending=30, oldest=29.0, relay=LATE), "being delivered."),
]
UNHEALTHY = [
    (
        status(pending=42, oldest=360.0, relay=LATE),
        "late: 42 events are pending, nothing is lost, the oldest for 36",
    ),
    (
        status(pending=30, breaker=OUTAGE, kinds=DOWN_NOW),
        f"{SINCE}30 events are pending, nothing is lost; next",
    ),
    (status(breaker=OUTAGE, relay=RelayStatus(holder="bot")), f"{SINCE}nothing is pending; no relay is running"),
    (status(pending=1, breaker=FORBIDS), "takes no deliveries (no right): run `letopis doctor`; 1 event is pending"),
    (status(pending=3, breaker=REFUSES, kinds=DOWN_NOW), "refuses every delivery since 2026-11-25 12:03:00Z"),
    (status(pending=2, kinds=DOWN_NOW), "2 events are being delivered. The history store is reachable again"),
    (
        status(blocked=2, lost=2),
        "2 conversations have lost events that neither the history store nor",
    ),
    (status(kinds=(IncidentKind.HISTORY_INCOMPLETE,)), "lost events that it counts: restore it from a backup"),
    (status(pending=2, blocked=1, breaker=OUTAGE), "1 conversation is blocked: see `letopis outbox list`. Nothing is"),
    (status(pending=2, kinds=(IncidentKind.CONVERSATION_BLOCKED,)), "1 conversation has waited too long"),
    (status(wal_bytes=488 * 1024**2), "Everything is in the history store. The outbox's WAL has grown to 488 MiB"),
]


@pytest.mark.parametrize(
    ("found", "healthy", "verdict"),
    [*((found, True, said) for found, said in HEALTHY), *((found, False, said) for found, said in UNHEALTHY)],
)
def test_the_verdict_is_what_the_figures_say(found: Status, healthy: bool, verdict: str) -> None:
    assert (found.healthy, verdict in found.verdict) == (healthy, True), found.verdict
    shown = console_verdict(found, language("en"))
    assert (shown.level == "good") == healthy or found.wal_bytes > 0
    assert ("late" in shown.title) == ("late" in verdict)


def test_status_and_console_name_the_same_trouble() -> None:
    """A conversation that is retried is not one that is being delivered."""
    found = status(pending=3, retrying=1)

    assert found.verdict.startswith("1 conversation is being retried: see `letopis outbox list`; 3 events are pending")
    assert console_verdict(found, language("en")).title == "1 conversation is being retried"
    assert console_verdict(found, language("ru")).title == "1 разговор доставляется снова"


async def test_a_health_check_fails_while_a_running_relay_delivers_nothing(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c1", Message.user("hi"))
        relay = relay_on(history.outbox, ToldStore(lambda _: None))
        assert await relay.lease.acquire()
        reasons, statuses = [], []
        for progressed in (1, history.outbox.now_us()):
            for what in ("lanes SET pending_since = 1", f"relay SET progress_at = {progressed}"):
                await history.outbox.write(lambda c, what=what: c.exec_driver_sql(f"UPDATE letopis_outbox_{what}"))
            reasons.append(await asyncio.to_thread(check_files, (str(tmp_path / "*.outbox.db"),)))
            statuses.append(await history.status())
        await relay.lease.release()

    assert reasons[0] is not None and "makes no progress" in reasons[0]
    assert reasons[1] is None
    assert [status.healthy for status in statuses] == [False, True]


async def test_a_next_attempt_never_lies_in_the_past(tmp_path: Path) -> None:
    """A relay that was stopped for a while has reported a past one, and one that ended an attempt that never comes."""
    told = ToldStore(lambda _: DOWN)
    async with History(tmp_path / "bot.outbox.db", store=told.url, relay=False) as history:
        await history.append("c1", Message.user("hi"))
        relay = relay_on(history.outbox, told)
        assert await relay.lease.acquire()
        await relay.drain_once()
        found = await history.status()
        await sql(history.outbox, "UPDATE letopis_outbox_relay SET next_attempt_at = 1")
        running = await history.status()
        await relay.lease.release()
        ended = await history.status()
        await sql(history.outbox, "UPDATE letopis_outbox_lanes SET state = 'retrying', due_at = 1")
        [lane] = await history.outbox.read(lambda connection: list_stuck(connection, limit=5))

    # Not "stuck": the fault in a sentence, and when the relay asks again, as the relay wrote it down.
    assert found.breaker.next_attempt_at is not None
    assert (found.breaker.reason, found.breaker.detail) == (f"{DOWN.fault_class} {DOWN.code}", DOWN.reason)
    assert found.verdict.startswith("The history store is unreachable since ")
    assert "2 events are pending, nothing is lost; " in found.verdict
    assert running.breaker.next_attempt_at == running.read_at
    assert running.verdict.endswith("; trying again now.")
    assert (ended.relay.running, ended.breaker.next_attempt_at) == (False, None)
    assert (lane.state, lane.due_at) == ("retrying", None)
