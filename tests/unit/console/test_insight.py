"""What pages about a history read: growth by minute, the log in brief, forks, what is stuck, and what operators did."""

import itertools
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis.console.figures import MessageFigures
from letopis.console.insight import Insight
from letopis.outbox import History
from letopis.outbox.alerting.incident_table import write_changes
from letopis.outbox.alerting.incidents import Change, IncidentKind, IncidentRecord, IncidentState
from letopis.outbox.operations import admin as operations
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import Selection
from letopis.outbox.operations.repair import NotRepairable
from letopis.store import InvalidInput, Message
from letopis.store.model.identifiers import uuid7
from tests.support.console_story import plant_blocked
from tests.support.peers import refused_port
from tests.support.relays import sql

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def opened(folder: Path, **options: Any) -> History:
    return History(folder / "bot.outbox.db", watch=False, **options)


async def test_growth_is_what_counting_finds(store_url: str, tmp_path: Path) -> None:
    moments, chance, said = [NOON], random.Random(7), []
    async with opened(tmp_path, store=store_url, now=lambda: moments[-1]) as history:
        for _ in range(40):
            now = moments[-1] + timedelta(seconds=chance.randrange(90))
            moments.append(now)
            await history.append("c1", Message.user("hello"), Message.user("again"))
            said += [now, now] if said else [now] * 3  # the first append begins the conversation
            assert await history.drained(20)
        edges = [NOON + timedelta(minutes=minute) for minute in range(60)]
        insight = Insight(history)
        first = await insight.activity(edges)
        again = await insight.activity([*edges[5:], edges[-1] + timedelta(minutes=1)])

    counted = [sum(low <= one < high for one in said) for low, high in itertools.pairwise(edges)]
    assert first.saved is not None and again.saved is not None
    assert sum(first.saved) == 81  # recorded by the store's own clock, which is the history's here
    assert list(first.appended) == list(first.saved) == counted
    assert list(again.saved)[: len(counted) - 5] == counted[5:]


async def test_the_log_in_brief_is_counted_as_the_history_counts(store_url: str, tmp_path: Path) -> None:
    async with opened(tmp_path, store=store_url) as history:
        for number in range(6):
            name = f"c{number % 2}"
            message = Message.assistant("world", tokens=number, metadata={"model": "m"})
            await history.append(name, Message.user("hello"), message, owner=f"o{number % 2}")
            await history.chat(name).edit(message.id, "earth")
        await history.chat("c1").undo()
        assert await history.drained(20)
        insight = Insight(history)
        found = await insight.heads()
        assert found is not None
        [head] = found.heads
        figures = MessageFigures()
        for after in range(0, head, 4):
            rows = await insight.log_in_brief(partition=0, after=after, limit=4)
            assert rows is not None
            figures.take(rows)
        kept = await history.statistics(by="model")
        identity = (await history.status()).store.store_id

    total = figures.total()
    assert found.identity.store_id == identity
    assert (total.messages, total.questions, total.tokens) == (kept.messages, kept.questions, kept.tokens)
    assert dict(figures.by_model())["m"].answers == kept.by["m"].answers
    assert {name: tally.messages for name, tally in figures.by_owner(limit=5)} == {"o0": 6, "o1": 6}


async def test_forks_and_ids_are_found(store_url: str, tmp_path: Path) -> None:
    async with opened(tmp_path, store=store_url, relay=False) as history:
        for name in ("tea", "tea-1"):
            await history.append(name, Message.user("pending"))
        async with History(tmp_path / "other.outbox.db", store=store_url, watch=False) as other:
            for name in ("tea-1", "tea-2", "Tea-3", "teb", "t", "чай-1", "tea\U0010fffe"):
                await other.append(name, Message.user("stored"))
            await other.chat("teb").fork("f1", title="one")
            await other.chat("teb").fork("f2")
            await other.chat("f2").delete()
            assert await other.drained(20)
        insight = Insight(history)
        assert await insight.conversation_ids("tea", limit=10) == ["tea", "tea-1", "tea-2", "tea\U0010fffe"]
        assert await insight.conversation_ids("tea", limit=2) == ["tea", "tea-1"]
        assert await insight.conversation_ids("чай", limit=10) == ["чай-1"]
        assert await insight.conversation_ids("%", limit=10) == []
        assert [(one.conversation_id, one.title) for one in await insight.forks("teb") or ()] == [("f1", "one")]


async def test_without_the_store_it_says_so(tmp_path: Path) -> None:
    url = f"postgresql://127.0.0.1:{await refused_port()}/nowhere"
    async with opened(tmp_path, store=url, relay=False) as history:
        await history.append("c1", Message.user("hello"))
        insight = Insight(history)
        now = datetime.now(UTC)
        activity = await insight.activity([now - timedelta(hours=1), now + timedelta(minutes=1)])

        assert (activity.appended, activity.saved) == ((2,), None)  # with the event that begins the conversation
        assert await insight.heads() is None
        assert await insight.forks("c1") is None
        assert await insight.log_in_brief(partition=0, after=0, limit=10) is None


async def test_what_is_stuck_is_paged_and_grouped(tmp_path: Path) -> None:
    async with opened(tmp_path, relay=False) as history:
        await plant_blocked(history, 5)
        await history.append("fine", Message.user("hello"))
        await OutboxAdmin(history.outbox).pause(Selection(conversation_ids=("fine",)))
        insight = Insight(history)
        first = await insight.stuck(limit=2, state="blocked")
        second = await insight.stuck(limit=9, state="blocked", after=first[-1].conversation_id)
        groups = await insight.stuck_groups()
        pending = await insight.pending(Selection(states=("blocked",), fronts=True), limit=9)

        assert [one.conversation_id for one in (*first, *second)] == [f"many-{number:02}" for number in range(5)]
        assert {one.event_id for one in (*first, *second)} == {one.event_id for one in pending}
        counts = [(one.state, one.fault_class, one.conversations) for one in groups]
        assert counts == [("blocked", "poison", 5), ("paused", None, 1)]
        assert (await insight.event(pending[0].event_id) or (None,))[0] == pending[0]
        assert await insight.event(uuid7()) is None


async def test_every_change_is_in_the_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, relay=False) as history:
        await plant_blocked(history, 3)
        admin, insight = OutboxAdmin(history.outbox, by="ann", via="command"), Insight(history)
        [one, two, _] = await admin.pending(Selection(states=("blocked",), fronts=True))
        await admin.skip(one.event_id, reason=" not wanted ")
        with pytest.raises(NotRepairable):
            await admin.skip(one.event_id, reason="again")
        with pytest.raises(InvalidInput):
            await admin.fix(two.event_id, None, reason="nothing changed")
        await admin.retry(Selection(states=("blocked",)))
        assert await admin.retry(Selection(states=("blocked",))) == []
        await admin.record("verify", outcome="refused: busy", conversations=0)
        found = await insight.audit(limit=10)

        verify, retry, skip = found
        assert (verify.action, verify.outcome, verify.conversations) == ("verify", "refused: busy", 0)
        assert (retry.action, retry.outcome, retry.conversations) == ("retry", "done", 2)
        assert (skip.action, skip.event_id, skip.reason) == ("skip", one.event_id, "not wanted")
        assert {(entry.actor, entry.via) for entry in found} == {("ann", "command")}
        assert await admin.audit(limit=1, before=retry.entry_id) == [skip]
        monkeypatch.setattr(operations, "MAX_ENTRIES", 2)
        await admin.pause_relay()
        assert len(await insight.audit(limit=10)) == 2


async def test_incidents_come_with_who_was_told(tmp_path: Path) -> None:
    async with opened(tmp_path, relay=False) as history:
        kind = {"kind": IncidentKind.CONVERSATION_BLOCKED, "opened_at": NOON}
        firing = IncidentRecord(incident_id=uuid7(), conversation_id="c1", state=IncidentState.FIRING, **kind)
        ended = IncidentRecord(
            incident_id=uuid7(), conversation_id="c2", state=IncidentState.RESOLVED, resolved_at=NOON, **kind
        )
        changes = [Change(before=None, after=one) for one in (firing, ended)]
        await history.outbox.write(lambda connection: write_changes(connection, changes))
        told = (
            "INSERT INTO letopis_outbox_notifications"
            " (incident_id, recipient, kind, escalations, number, state, told_at, attempts, changed_at, revision)"
            " VALUES (?, ?, 'stuck', 0, 1, 'sent', 0, 1, 0, 1)"
        )
        for recipient in ("channel:abc", "user:owner:42", "user:conversation:c1"):
            await sql(history.outbox, told, (firing.incident_id.bytes, recipient))
        [first, second] = await Insight(history).incidents()

    assert (first.incident.conversation_id, second.incident.conversation_id) == ("c1", "c2")
    assert [(one.kind, one.name, one.about, one.state) for one in first.recipients] == [
        (kind, name, "stuck", "sent") for kind, name in (("channel", "abc"), ("conversation", "c1"), ("user", "42"))
    ]
    assert (first.recipient_count, second.recipient_count, second.recipients) == (3, 0, ())
