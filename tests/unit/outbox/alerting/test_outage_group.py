"""One outage of a history store is one message, however many outbox files and daemons meet it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from letopis.outbox.alerting.incidents import BreakerView, Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.alerting.outage_group import OutageGroup
from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.relays import say
from tests.unit.outbox.alerting.test_monitor import Pager

pytestmark = pytest.mark.slow

FILES = 6
START = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
WELL = BreakerView()
DOWN = BreakerView(state="open", reason="the server does not answer [unavailable 08006]")
REFUSES = BreakerView(state="open", reason="the table is missing [misconfigured 42P01]")
WRONG = BreakerView(state="open", reason="another history store [wrong_store identity]")
AWAY, BACK = "The history store is down", "The history store is back"


@dataclass
class World:
    """Files with pending messages, and daemons that watch them; the store is as the test says, for each file."""

    outboxes: list[OutboxFile]
    seconds: float = 0.0
    store: BreakerView = WELL
    of_files: dict[int, BreakerView] = field(default_factory=dict)
    pager: Pager = field(default_factory=Pager)
    daemons: list[list[AlertMonitor]] = field(default_factory=list)
    group: OutageGroup = field(default_factory=OutageGroup)
    grouped: bool = True

    def start_daemon(self, files: int = FILES) -> None:
        """Start a daemon on the first files, with nothing in its memory."""
        group = self.group = OutageGroup()
        group.paths.update(outbox.path for outbox in self.outboxes[:files])
        self.daemons.append(
            [
                AlertMonitor(
                    outbox,
                    channels=[self.pager],
                    rules=Rules(watch_relay=False),
                    breaker=lambda index=index: self.of_files.get(index, self.store),  # type: ignore[misc]
                    outages=group if self.grouped else None,
                    now=lambda: START + timedelta(seconds=self.seconds),
                    monotonic=lambda: self.seconds,
                )
                for index, outbox in enumerate(self.outboxes[:files])
            ]
        )

    async def outage(self) -> None:
        """Start a daemon, and have the store be down for a minute."""
        self.start_daemon()
        self.store = DOWN
        await self.run(60)

    async def recovery(self) -> None:
        self.store = WELL
        await self.run(300)

    async def run(self, seconds: float, *, step: float = 15.0) -> None:
        """Let time pass; all daemons look at all their files at once."""
        for _ in range(round(seconds / step)):
            self.seconds += step
            async with anyio.create_task_group() as tasks:
                for monitors in self.daemons:
                    for monitor in monitors:
                        tasks.start_soon(monitor.observe_once)

    @property
    def told(self) -> list[str]:
        return [alert.title.removeprefix("Letopis: ") for alert in self.pager.alerts]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        outboxes = []
        for number in range(FILES):
            outbox = await OutboxFile.open(tmp_path / f"{number:02}.outbox.db", one_thread=True)
            stack.push_async_callback(outbox.close)
            await say(outbox, f"c{number}", 2)
            outboxes.append(outbox)
        yield World(outboxes)


async def test_an_outage_of_all_files_is_one_message_and_so_is_its_end(world: World) -> None:
    await world.outage()
    (alert,) = world.pager.alerts
    assert alert.title == f"Letopis: {AWAY}"
    assert f"Outboxes: {FILES}, among them " in alert.text
    assert f"Pending: {3 * FILES} messages in {FILES} conversations." in alert.text
    assert (alert.facts["files"], alert.facts["events"]) == (FILES, 3 * FILES)

    await world.recovery()
    assert (world.told, world.pager.alerts[1].facts["files"]) == ([AWAY, BACK], FILES)


async def test_without_the_group_it_is_one_a_file(world: World) -> None:
    world.grouped = False
    await world.outage()
    assert len(world.pager.alerts) == FILES


async def test_two_daemons_on_the_same_files_tell_it_once(world: World) -> None:
    world.start_daemon()
    await world.outage()
    await world.recovery()
    assert world.told == [AWAY, BACK]


async def test_the_end_is_told_when_the_last_file_is_well_and_a_later_outage_is_another(world: World) -> None:
    await world.outage()
    # Another than the one that told of it: the end would be that one's alone to tell.
    world.of_files = {4 if world.pager.alerts[0].facts["outbox"].startswith("05") else 5: DOWN}
    await world.recovery()
    assert world.told == [AWAY]
    assert any(monitor.waiting for monitor in world.daemons[0])

    world.of_files.clear()
    await world.run(120)
    world.store = DOWN
    await world.run(60)
    assert world.told == [AWAY, BACK, AWAY]


async def test_reminders_and_another_fault_are_one_message_each(world: World) -> None:
    await world.outage()
    await world.run(86_400 + 60, step=43_230)
    assert world.told == [AWAY, f"still: {AWAY}"]

    world.store = REFUSES
    await world.run(30)
    await world.recovery()
    assert world.told[2:] == [AWAY, BACK]


async def test_a_channel_that_fails_is_tried_for_one_file(world: World) -> None:
    world.pager.broken = True
    await world.outage()
    assert sum(monitor.failed for monitor in world.daemons[0]) == 2
    world.pager.broken = False
    await world.run(120)
    assert world.told == [AWAY]


async def test_nobody_is_told_of_an_outage_that_is_over(world: World) -> None:
    world.start_daemon()
    world.store = DOWN
    await world.run(30)
    for monitor in world.daemons[0]:
        world.seconds += 0.001
        await monitor._observe()
    world.seconds += 15
    for monitor in world.daemons[0]:
        await monitor._observe()  # the outage is 30 s old and fires; before it is told it is over
    await world.recovery()
    assert world.told == []


async def test_a_file_with_the_wrong_store_is_told_of_apart(world: World) -> None:
    world.start_daemon()
    world.of_files = {3: WRONG}
    await world.run(15)
    assert len(world.pager.alerts) == 1
    world.store = DOWN
    await world.run(60)
    assert len(world.pager.alerts) == 2


async def test_a_file_that_cannot_be_read_stops_no_message(world: World) -> None:
    world.start_daemon(files=2)
    world.group.paths.add(world.outboxes[0].path.with_name("gone.outbox.db"))
    world.store = DOWN
    await world.run(60)
    assert [alert.facts["files"] for alert in world.pager.alerts] == [2]
