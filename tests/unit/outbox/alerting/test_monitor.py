"""The watch over a real outbox file with a real relay, a store that goes down, and a clock set by the test."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, AsyncMock

import anyio
import pytest

from letopis.outbox.alerting.channels import Alert, AlertFailed
from letopis.outbox.alerting.incidents import BreakerView, IncidentKind, Rules
from letopis.outbox.alerting.monitor import AlertMonitor, breaker_view
from letopis.outbox.alerting.notifications import Incident
from letopis.outbox.concurrency.callbacks import call_with_timeout
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import OutboxUnavailable
from letopis.testing import FaultyStore
from tests.support.outboxes import open_incidents
from tests.support.relays import Hands, Lingering, end, say, sql

START = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
AWAY = StoreFault(fault_class=FaultClass.UNAVAILABLE, code="08006", reason="the server does not answer")
REFUSED = StoreFault(fault_class=FaultClass.MISCONFIGURED, code="42P01", reason="the table is missing")


@dataclass
class Bot:
    """The users' side: what `on_stuck` and `on_recovered` were called with."""

    heard: list[tuple[str, str | None, IncidentKind]] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)

    async def on_stuck(self, incident: Incident) -> None:
        self.incidents.append(incident)
        self.heard.append(("stuck", incident.owner_id, incident.kind))

    async def on_recovered(self, incident: Incident) -> None:
        self.incidents.append(incident)
        self.heard.append(("recovered", incident.owner_id, incident.kind))

    def of(self, owner: str) -> list[str]:
        return [word for word, owner_id, _ in self.heard if owner_id == owner]


@dataclass
class Pager:
    """The operators' side."""

    name: str = "pager"
    recipient: str = "channel:pager"
    broken: bool = False
    alerts: list[Alert] = field(default_factory=list)

    async def send(self, alert: Alert) -> None:
        if self.broken:
            raise AlertFailed(self.name, "503")
        self.alerts.append(alert)

    @property
    def words(self) -> list[str]:
        return ["recovered" if alert.recovered else "stuck" for alert in self.alerts]


class Town:
    """A bot with its outbox, a daemon with its relay, and a store; both processes watch the file."""

    def __init__(self, outbox: OutboxFile, store: FaultyStore, time: Hands) -> None:
        self.outbox, self.store, self.time = outbox, store, time
        self.bot, self.pager = Bot(), Pager()
        self.rules = Rules()
        self.relay = Relay(outbox, store, now=time.now, monotonic=time.monotonic, random=random.Random(7))
        self.relay_lives = True
        self.watches: list[AlertMonitor] = []

    def watch(self, outbox: Any = None, **options: Any) -> AlertMonitor:
        clocks = {"now": self.time.now, "monotonic": self.time.monotonic}
        return AlertMonitor(outbox or self.outbox, rules=self.rules, **clocks, **options)

    def start_processes(self) -> None:
        """Start the bot's watch and the daemon's again, as after a restart of both."""
        self.watches = [
            self.watch(on_stuck=self.bot.on_stuck, on_recovered=self.bot.on_recovered),
            self.watch(channels=[self.pager]),
        ]

    async def block(self, conversation_id: str, *, owner: str) -> None:
        """Have the store refuse a conversation, and its lane be blocked for that."""
        self.store.refused = {conversation_id}
        await self.say(conversation_id, owner)
        await self.set_lanes("state = 'blocked', fault_class = 'poison'")

    async def set_lanes(self, change: str) -> None:
        await sql(self.outbox, f"UPDATE letopis_outbox_lanes SET {change}")

    async def say(self, conversation: str, owner: str | None = None) -> None:
        await say(self.outbox, conversation, owner=owner)

    async def run(self, seconds: float, *, step: float = 5.0, says: Sequence[tuple[str, str]] = ()) -> None:
        """Let time pass; every few seconds the relay tries and all watches look."""
        if not self.watches:
            self.start_processes()
        for turn in range(round(seconds / step)):
            self.time.advance(step)
            if says and turn * step % 60 == 0:
                await self.say(*says[round(turn * step) // 60 % len(says)])
            if self.relay_lives:
                await self.relay.lease.acquire()
                while await self.relay.drain_once():
                    pass
            for watch in self.watches:
                await watch.observe_once()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    time = Hands(START)
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db", now=time.now)
    store = FaultyStore(tmp_path / "bot.history.db")
    await store.prepare()
    town = Town(outbox, store, time)
    yield town
    await town.relay.lease.release()
    await store.close()
    await outbox.close()


async def test_an_outage_of_half_an_hour_is_told_once_to_everybody(town: Town) -> None:
    await town.run(20, says=[("a", "1")])
    await town.say("b", "2")
    town.store.fault = AWAY
    await town.run(15 * 60, step=15, says=[("a", "1"), ("b", "2"), ("c", "3"), ("b2", "2")])
    town.start_processes()
    await town.run(15 * 60, step=15, says=[("a", "1"), ("d", "4")])
    assert town.pager.words == ["stuck"]
    town.store.fault = None
    await town.run(10 * 60, step=15, says=[("a", "1"), ("e", "5")])

    assert town.pager.words == ["stuck", "recovered"]
    assert [town.bot.of(owner) for owner in "12345"] == [["stuck", "recovered"]] * 4 + [[]]
    assert {kind for *_, kind in town.bot.heard} == {IncidentKind.STORE_DOWN}
    assert await town.outbox.read(open_incidents) == ()
    lanes = await sql(town.outbox, "SELECT sum(head - delivered), max(attempts) FROM letopis_outbox_lanes")
    assert lanes == [(0, 0)], "no attempt"
    stuck, recovered = town.pager.alerts
    assert stuck.title == "Letopis: The history store is down"
    assert "bot.outbox.db" in stuck.text and "unavailable 08006" in stuck.text
    assert "It lasted 3" in recovered.text


async def test_a_blocked_conversation_is_told_and_logged_once_and_ends_by_itself(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "letopis.outbox.watch")
    town.store.refused = {"bad"}
    await town.say("bad", "1")
    await town.say("good", "2")
    await town.run(120)
    assert (town.bot.heard, town.pager.words) == ([("stuck", "1", IncidentKind.CONVERSATION_BLOCKED)], ["stuck"])
    assert "- 'bad'" in town.pager.alerts[0].text and "[poison 22021]" in town.pager.alerts[0].text
    assert town.bot.incidents[0].needs_operator

    town.store.refused = ()
    await town.set_lanes("state = 'ready', attempts = 0, due_at = 0")
    await town.run(30)
    assert town.bot.of("1") == town.pager.words == ["stuck", "recovered"]
    assert town.bot.incidents[-1].text("en") == "✅ The reply is saved in the chat history."
    records = [record for record in caplog.records if record.name == "letopis.outbox.watch"]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("ERROR", "stuck: conversation_blocked"),
        ("INFO", "recovered: conversation_blocked"),
    ]
    assert {(vars(record)["conversation_id"], vars(record)["owner_id"]) for record in records} == {("bad", "1")}


async def test_many_blocked_conversations_are_one_alert(town: Town) -> None:
    for number in range(30):
        await town.say(f"c{number}", f"u{number}")
    block = "state = 'blocked', fault_class = 'poison', fault = 'x [poison 1]'"
    await town.set_lanes(block)
    await town.run(60)
    (alert,) = town.pager.alerts
    assert "30 conversations are stuck" in alert.title and "- and 25 more" in alert.text
    assert len(town.bot.heard) == 30

    await town.say("one more", "x")
    await town.set_lanes(block)
    await town.run(60)
    _, alert = town.pager.alerts
    assert "31 conversations are stuck" in alert.title
    assert [line for line in alert.text.splitlines() if line.startswith("- ")] == ["- 'one more'"]


async def test_the_bot_notices_that_the_relay_is_dead_and_that_it_is_back(town: Town) -> None:
    """The bot has the pager here: a dead daemon sends no alert."""
    town.watches = [town.watch(on_stuck=town.bot.on_stuck, on_recovered=town.bot.on_recovered, channels=[town.pager])]
    await town.run(30, says=[("a", "1")])
    town.relay_lives = False
    await town.say("a", "1")
    await town.run(440)
    assert (town.pager.words, town.bot.heard) == (["stuck"], [("stuck", "1", IncidentKind.RELAY_SILENT)])
    assert "letopis relay" in town.pager.alerts[0].text

    town.relay_lives = True
    await town.run(90)
    assert town.pager.words == town.bot.of("1") == ["stuck", "recovered"]
    assert await town.outbox.read(open_incidents) == ()


async def test_the_relay_in_the_bots_own_process_is_asked_directly(town: Town) -> None:
    assert breaker_view(town.relay.breaker) == BreakerView(state="closed", since=START)
    town.relay.breaker.trip(AWAY, ["a"])
    assert breaker_view(town.relay.breaker).reason == "the server does not answer [unavailable 08006]"


class Failing:
    """An outbox file that cannot be written to at times."""

    def __init__(self, outbox: OutboxFile) -> None:
        self.path, self.read, self.outbox = outbox.path, outbox.read, outbox
        self.broken = False

    async def write(self, fn: Any) -> Any:
        if self.broken:
            raise OutboxUnavailable("the disk is full")
        return await self.outbox.write(fn)


async def test_an_outage_in_which_the_file_cannot_be_written_is_told_of_once_it_can(town: Town) -> None:
    failing = Failing(town.outbox)
    await town.run(10, says=[("a", "1")])
    town.store.fault = AWAY
    await town.say("a", "1")
    failing.broken = True
    town.watches = [town.watch(failing, channels=[town.pager])]
    with pytest.raises(OutboxUnavailable):
        await town.run(10)
    for _ in range(12):
        town.time.advance(5)
        with pytest.raises(OutboxUnavailable):
            await town.watches[0].observe_once()
    assert town.pager.alerts == []
    failing.broken = False
    await town.run(60)

    assert town.pager.words == ["stuck"]


async def test_an_alert_whose_outcome_cannot_be_written_is_not_sent_again_and_its_end_is_told(town: Town) -> None:
    failing = Failing(town.outbox)

    async def send(alert: Alert) -> None:
        town.pager.alerts.append(alert)
        failing.broken = not alert.recovered

    town.pager.send = send  # type: ignore[method-assign]
    town.store.fault = REFUSED
    await town.say("a", "1")
    town.watches = [town.watch(failing, channels=[town.pager])]
    with pytest.raises(OutboxUnavailable):
        await town.run(10)
    failing.broken = False
    await town.run(10 * 60, step=20)
    assert town.pager.words == ["stuck"]
    town.store.fault = None
    await town.run(5 * 60, step=20)

    assert town.pager.words == ["stuck", "recovered"]


async def test_a_bot_that_announces_no_recovery_tells_of_the_next_outage_too(town: Town) -> None:
    town.watches = [town.watch(on_stuck=town.bot.on_stuck)]
    for _ in range(2):
        await town.run(20)
        town.store.fault = AWAY
        await town.say("a", "1")
        await town.run(7 * 60, step=20)
        town.store.fault = None
        await town.run(4 * 60, step=20)

    assert (town.bot.of("1"), town.watches[0].sent) == (["stuck", "stuck"], 2)
    assert "I will tell you" not in town.bot.incidents[0].text("en")


async def test_a_failing_callback_is_called_again_and_logged_without_its_text(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Incident] = []

    async def on_stuck(incident: Incident) -> None:
        calls.append(incident)
        if len(calls) < 3:
            raise RuntimeError("chat 42 said: hello")

    town.store.refused = {"bad"}
    await town.say("bad", "1")
    town.watches = [town.watch(on_stuck=on_stuck)]
    with caplog.at_level(logging.DEBUG):
        await town.run(120)

    assert (len(calls), len({incident.key for incident in calls})) == (3, 1)
    failures = [record for record in caplog.records if "on_stuck failed (RuntimeError)" in record.getMessage()]
    assert len(failures) == 2
    assert all(vars(record)["conversation_id"] == "bad" for record in failures)
    assert "hello" not in caplog.text


async def test_a_callback_may_be_a_plain_function_and_may_block(town: Town) -> None:
    calls: list[str | None] = []
    loop = asyncio.get_running_loop()

    def on_stuck(incident: Incident) -> None:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(60)  # the event loop goes on
        calls.append(incident.owner_id)

    await town.block("bad", owner="1")
    await town.watch(on_stuck=on_stuck).observe_once()
    assert calls == ["1"]


async def test_a_hanging_callback_disturbs_nobody(town: Town) -> None:
    started, ended, release = 0, 0, asyncio.Event()

    async def hangs(incident: Incident) -> None:
        nonlocal started, ended
        started += 1
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue  # it does not even listen
        ended += 1

    town.store.refused = {"bad"}
    await town.say("bad", "1")
    town.watches = [town.watch(on_stuck=hangs, channels=[town.pager], call_timeout=0.05)]
    await town.run(60)

    assert started >= 2, "no answer is no success"
    assert (town.pager.words, town.watches[0].failed) == (["stuck"], started)
    release.set()
    await asyncio.sleep(0.05)
    assert ended == started


async def test_a_watch_that_runs_keeps_running_and_ends_when_cancelled(town: Town) -> None:
    """In real time, beside a relay, with a file that cannot be read for a moment."""
    heard = asyncio.Event()

    async def on_stuck(incident: Incident) -> None:
        await town.bot.on_stuck(incident)
        heard.set()

    await town.block("bad", owner="1")
    stumbling, errors = Failing(town.outbox), [RuntimeError("something nobody thought of")] * 3
    stumbling.read = AsyncMock(wraps=town.outbox.read, side_effect=chain(errors, repeat(DEFAULT)))
    watch = AlertMonitor(stumbling, on_stuck=on_stuck, interval=0.02)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(watch.run)
            await heard.wait()
            group.cancel_scope.cancel()

    assert town.bot.of("1") == ["stuck"]


async def test_a_watch_ends_with_its_file(town: Town, tmp_path: Path) -> None:
    other = await OutboxFile.open(tmp_path / "other.outbox.db")
    watch = AlertMonitor(other, interval=0.01)
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.05)
    await other.close()
    with anyio.fail_after(10):
        await running

    assert running.exception() is None


async def test_what_is_being_told_when_the_watch_ends_is_told_to_the_end(town: Town) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def on_stuck(incident: Incident) -> None:
        begun.set()
        await asyncio.sleep(0.2)
        ended.set()

    await town.block("bad", owner="1")
    watch = AlertMonitor(town.outbox, on_stuck=on_stuck, interval=0.02)
    running = asyncio.create_task(watch.run())
    with anyio.fail_after(20):
        await begun.wait()
        running.cancel()
        await asyncio.wait([running])

    assert (ended.is_set(), watch.sent) == (True, 1)
    assert await sql(town.outbox, "SELECT state FROM letopis_outbox_notifications") == [("sent",)]


async def test_a_call_that_is_cancelled_with_its_caller_leaves_nothing_behind() -> None:
    work = Lingering()
    calling = asyncio.create_task(call_with_timeout(work, seconds=60))
    await work.began.wait()
    await end(calling)
    with anyio.fail_after(30):
        await work.ended.wait()
    assert calling.cancelled()
