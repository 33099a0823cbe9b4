"""Custom projections apply every event once and without gaps, whatever is killed, restarted or added."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store import (
    ConfigurationError,
    ConversationStore,
    FaultClass,
    InvalidInput,
    Message,
    Projection,
    RecordedEvent,
    StoreFault,
)
from letopis.store.testing.outbox import Outbox
from tests.support.child import command
from tests.support.moves import run_sql
from tests.support.paths import ROOT
from tests.support.relays import until
from tests.support.sayings import raises_fault, send

seen = sa.Table(
    "seen",
    sa.MetaData(),
    sa.Column("rules", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("replayed", sa.Integer, nullable=False),
)


class Seen(Projection):
    """Writes down each event that it takes, under a key that a second time would violate."""

    name = "custom.seen"

    def __init__(self, version: int = 1) -> None:
        self.version = version

    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        assert [event.position for event in events] == sorted(event.position or 0 for event in events)
        for event in events:
            row = (self.version, event.partition, event.position, int(replaying))
            await connection.execute(sa.insert(seen).values(row))


class Acting(Seen):
    """Does something outside too."""

    def __init__(self, version: int = 1) -> None:
        super().__init__(version)
        self.done: list[int] = []

    async def effects(self, events: Sequence[RecordedEvent]) -> None:
        self.done += [event.position or 0 for event in events]


async def make_table(url: str) -> None:
    """Create the table of the projection, as a bot's own migrations would."""
    await run_sql(url, sa.schema.CreateTable(seen))


async def rows_of(url: str, version: int = 1) -> list[tuple[int, int, int]]:
    taken = sa.select(seen.c.partition, seen.c.position, seen.c.replayed).where(seen.c.rules == version)
    return [tuple(row) for row in await run_sql(url, taken.order_by(seen.c.partition, seen.c.position))]


async def say(store: ConversationStore, outbox: Outbox, count: int, conversation: str = "c") -> None:
    """Apply this many messages, one transaction each."""
    for number in range(count):
        await send(store, outbox, conversation, Message.user(f"message {number}"))


class Slow(Seen):
    """Says on stdout that it has written, and keeps its transaction open until it is told to go on."""

    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        await super().apply(connection, events, replaying=replaying)
        print(events[-1].position, flush=True)
        await asyncio.to_thread(sys.stdin.readline)


async def project(url: str) -> None:
    async with ConversationStore.open(url) as store:
        await store.projector(Slow(), batch=5).run()


@pytest.fixture
async def url(store_url: str) -> str:
    """A store with the table of the projection."""
    await make_table(store_url)
    return store_url


async def test_it_takes_in_every_event_once_and_goes_on_where_it_was(store: ConversationStore, url: str) -> None:
    outbox = Outbox()
    await say(store, outbox, 7)
    assert await store.projector(Seen(), batch=3).step() == 3
    assert await store.projector(Seen(), batch=3).catch_up() == 4
    assert await store.projector(Seen(), batch=3).catch_up() == 0
    await say(store, outbox, 2)
    assert await store.projector(Seen(), batch=3).catch_up() == 2
    assert [position for _, position, _ in await rows_of(url)] == list(range(1, 10))
    (progress,) = await store.projector(Seen()).progress()
    assert (progress.position, progress.head, progress.behind, progress.live) == (9, 9, 0, True)


async def test_each_partition_is_read_on_its_own(empty_database_url: str) -> None:
    await make_table(empty_database_url)
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=16) as store:
        outbox = Outbox()
        names = [f"chat-{number}" for number in range(30)]
        outbox.append("chat-0", *(Message.user("x") for _ in range(3)))
        for name in names:
            outbox.append(name, Message.user("x"))
        await outbox.deliver(store)
        assert await store.projector(Seen(), batch=2).step() < 33
        projector = store.projector(Seen(), batch=2)  # goes on where the other one stopped, in each partition
        await projector.catch_up()
        expected = [(one, position) for one in range(16) for position in range(1, await store.head(one) + 1)]
        assert len(expected) == 33
        assert [(partition, position) for partition, position, _ in await rows_of(empty_database_url)] == expected
        assert len(await projector.progress()) == 16


async def test_two_processes_run_one_projection_while_events_come(store: ConversationStore, url: str) -> None:
    async def read() -> bool:
        return (await store.projector(Seen()).progress())[0].position == 60

    async with ConversationStore.open(url) as other:
        running = [
            asyncio.create_task(one.projector(Seen(), batch=3, poll=0.005).run()) for one in (store, other, other)
        ]
        await asyncio.gather(*(say(store, Outbox(), 20, name) for name in ("a", "b", "c")))
        await until(read)
        for task in running:
            task.cancel()
        ends = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
    assert [position for _, position, _ in await rows_of(url)] == list(range(1, 61))


async def test_killed_in_a_batch_it_takes_in_each_event_once(store: ConversationStore, url: str) -> None:
    await say(store, Outbox(), 40)
    for batches in (1, 3):  # killed after this many batches were written, the last of them not committed
        child = subprocess.Popen(
            command(project, url), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdin is not None and child.stdout is not None
        for left in reversed(range(batches)):
            assert await asyncio.to_thread(child.stdout.readline)
            if left:
                child.stdin.write("\n")
                child.stdin.flush()
        child.kill()
        await asyncio.to_thread(child.wait)
        child.stdin.close()
        child.stdout.close()
    assert len(await rows_of(url)) == 10, "the two batches that it was told to commit"
    await store.projector(Seen()).catch_up()
    assert [position for _, position, _ in await rows_of(url)] == list(range(1, 41))


async def test_what_was_there_before_the_first_version_has_no_effects(store: ConversationStore, url: str) -> None:
    outbox, projection = Outbox(), Acting()
    await say(store, outbox, 5)
    projector = store.projector(projection, batch=3)
    assert not await projector.live()
    await projector.step()
    await say(store, outbox, 4)
    await projector.catch_up()
    assert await projector.live()
    assert projection.done == [6, 7, 8, 9]
    assert [replayed for _, _, replayed in await rows_of(url)] == [1] * 5 + [0] * 4


async def test_a_new_version_beside_the_old_one_leaves_no_gap(store: ConversationStore, url: str) -> None:
    """Whichever version comes to an event first does what is to be done outside, and the other does not."""
    outbox, old, new = Outbox(), Acting(1), Acting(2)
    first, second = store.projector(old, batch=2), store.projector(new, batch=3)
    await first.catch_up()  # of an empty log: it leaves nothing out
    await say(store, outbox, 7)
    await first.catch_up()
    assert old.done == [1, 2, 3, 4, 5, 6, 7]

    await second.step()
    assert not await second.live()
    await say(store, outbox, 3)
    await first.step()  # the old one continues while the new one replays
    await second.catch_up()  # and is overtaken
    assert await second.live()
    await first.catch_up()
    await say(store, outbox, 2)
    await second.step()
    await first.catch_up()

    assert sorted(old.done + new.done) == list(range(1, 13))
    assert new.done == [10, 11, 12]
    for version in (1, 2):
        assert [position for _, position, _ in await rows_of(url, version)] == list(range(1, 13))

    await say(store, outbox, 2)
    await first.catch_up()
    await first.retire()
    await say(store, outbox, 1)
    await second.catch_up()
    assert new.done == [10, 11, 12, 15], "what the retired one did is not done again, and what it did not is not left"
    assert [one.position for one in await first.progress()] == [0]


async def test_effects_that_raise_end_the_step_and_are_not_retried(store: ConversationStore, url: str) -> None:
    class Failing(Acting):
        async def effects(self, events: Sequence[RecordedEvent]) -> None:
            await super().effects(events)
            raise RuntimeError("no network")

    projection = Failing()
    await store.projector(projection).step()
    await say(store, Outbox(), 3)
    with pytest.raises(RuntimeError, match="no network"):
        await store.projector(projection).step()
    assert await store.projector(projection).step() == 0
    assert projection.done == [1, 2, 3]


async def test_what_a_catch_up_projection_raises_is_its_own_fault(store: ConversationStore, store_url: str) -> None:
    """Its table is missing, which is no affair of `letopis db upgrade`."""
    await say(store, Outbox(), 1)
    with raises_fault(FaultClass.UNCLASSIFIED, "projection", match=r"custom\.seen"):
        await store.projector(Seen()).run()
    await make_table(store_url)
    assert await store.projector(Seen()).catch_up() == 1


class TestInline:
    async def test_it_is_written_with_the_events(self, url: str) -> None:
        async with ConversationStore.open(url, migrate=True, projections=[Seen(2), Seen(1)]) as store:
            await say(store, Outbox(), 4)
        # The first of two versions does what is to be done, and the second replays it in the same transaction.
        assert await rows_of(url, 1) == [(0, position, 0) for position in range(1, 5)]
        assert await rows_of(url, 2) == [(0, position, 1) for position in range(1, 5)]

    @pytest.mark.parametrize("twice", [False, True], ids=["it raises", "a constraint of its table refuses"])
    async def test_one_that_fails_makes_the_apply_fail(self, url: str, twice: bool) -> None:
        class Failing(Seen):
            fails, tries = True, 0

            async def apply(
                self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool
            ) -> None:
                self.tries += 1
                for _ in range(1 + (twice and self.fails)):
                    await super().apply(connection, events, replaying=replaying)
                if self.fails:
                    raise ValueError("a secret")

        projection, outbox = Failing(), Outbox()
        async with ConversationStore.open(url, migrate=True, projections=[projection]) as store:
            with pytest.raises(StoreFault, match=r"custom\.seen") as raised:
                await send(store, outbox, "c", Message.user("boo"))
            assert (raised.value.fault_class, raised.value.code) == (FaultClass.UNCLASSIFIED, "projection")
            assert "secret" not in str(raised.value)
            assert projection.tries == 1, "no race of two applies that trying again would mend"
            assert (await store.conversation("c"), await store.head(), await rows_of(url)) == (None, 0, [])
            projection.fails = False
            await outbox.deliver(store)
            assert await rows_of(url) == [(0, 1, 0)]

    async def test_one_added_later_waits_for_catch_up(self, url: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, logger="letopis.store.projections")
        outbox = Outbox()
        async with ConversationStore.open(url, migrate=True) as store:
            await say(store, outbox, 5)
        async with ConversationStore.open(url, projections=[Seen()]) as store:
            await say(store, outbox, 2)
            assert await rows_of(url) == []
            (record,) = caplog.records
            assert "5 events behind" in record.getMessage()
            assert await store.projector(Seen()).catch_up() == 7
            await say(store, outbox, 2)
            assert [position for _, position, _ in await rows_of(url)] == list(range(1, 10))
        async with ConversationStore.open(url) as store:
            await say(store, outbox, 1)  # by a process that was not given it
        async with ConversationStore.open(url, projections=[Seen()]) as store:
            await say(store, outbox, 1)
            assert len(await rows_of(url)) == 9
            await store.projector(Seen()).catch_up()
            await say(store, outbox, 1)
        assert [position for _, position, _ in await rows_of(url)] == list(range(1, 13))

    async def test_its_projector_and_many_appliers_meet_without_a_gap(self, url: str) -> None:
        async with ConversationStore.open(url, migrate=True) as store:
            await say(store, Outbox(), 30)
        async with ConversationStore.open(url, projections=[Seen()]) as store:
            applying = [asyncio.create_task(say(store, Outbox(), 20, name)) for name in ("a", "b")]
            projector = store.projector(Seen(), batch=4)
            while not all(task.done() for task in applying):
                await projector.step()
                await asyncio.sleep(0)
            await asyncio.gather(*applying)
            await projector.catch_up()
        assert [position for _, position, _ in await rows_of(url)] == list(range(1, 71))


def test_projections_that_cannot_work_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    for field, values in (
        ("name", ("", "Orders", "x" * 65, 5, "search", "letopis.orders")),
        ("version", (0, "2", 2**31)),
    ):
        for value in values:
            projection = Seen()
            setattr(projection, field, value)
            with pytest.raises(ConfigurationError, match=field):
                ConversationStore(path, projections=[projection])
            with pytest.raises(ConfigurationError, match=field):
                ConversationStore(path).projector(projection)
    wrong: dict[str, list[Any]] = {
        "twice": [Seen(), Seen()],
        "effects": [Acting()],
        "must be a Projection": ["custom.seen"],
    }
    for told, projections in wrong.items():
        with pytest.raises(ConfigurationError, match=told):
            ConversationStore(path, projections=projections)
    with pytest.raises(InvalidInput, match="batch"):
        ConversationStore(path).projector(Seen(), batch=0)
