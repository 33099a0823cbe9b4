"""A full disk is reported as such, at once and everywhere; free space ends it, and large content comes whole."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from letopis import Bounds, History, Message, OutboxFull
from letopis.ops.doctor.check_store import check_store
from letopis.ops.doctor.finding import Severity
from letopis.ops.verify import content_problems
from letopis.outbox.alerting.incidents import fault_class
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.fault_classification import classify
from letopis.store.database.faults import FaultClass
from tests.support.daemons import letopis
from tests.support.fix_disk import fill
from tests.support.relays import drained, running, say, until
from tests.support.required import required
from tests.support.sayings import problems
from tests.support.servers import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def store_on_small_disk(request: pytest.FixtureRequest, small_disk: Path) -> Iterator[str]:
    """The URL of a store all of whose tables lie on the small disk."""
    if request.param == "sqlite":
        yield f"sqlite:///{small_disk / 'history.db'}"
        return
    for folder in (small_disk.parent, *small_disk.parent.parents[:2]):
        folder.chmod(0o755)
    space = small_disk / "space"
    space.mkdir()
    space.chmod(0o700)
    with required("postgresql", PostgresServer.own) as server:
        if server._user is not None:
            shutil.chown(space, server._user)
        server.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
        server.execute("CREATE DATABASE bot TABLESPACE small")
        yield server.database_url("bot")


async def test_everybody_says_that_the_disk_is_full(store_on_small_disk: str, small_disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "bot.outbox.db"
    outbox = await OutboxFile.open(path)
    async with ConversationStore.open(store_on_small_disk, migrate=True) as store:
        relay = Relay(outbox, store, holder="test")
        async with running(relay):
            await say(outbox, "before")
            await drained(outbox)
            hog = fill(small_disk)
            for number in range(40):
                await say(outbox, f"c{number}", 40)
            await until(lambda: not relay.breaker.closed)

            assert relay.breaker.outage is not None
            assert (relay.breaker.outage.fault_class, relay.breaker.outage.code) == ("misconfigured", "disk-full")
            assert "the disk of the history store is full" in str(relay.breaker.outage)
            assert fault_class(relay.breaker.reason) == "misconfigured"  # which tells operators at once

            async def told(*words: str) -> bool:
                told = await asyncio.to_thread(letopis, *words, "--outbox", str(path), folder=tmp_path)
                return "misconfigured disk-full" in told.stdout

            # Not at once: a heartbeat tells it, and a probe whose event finds room may close the breaker meanwhile.
            await until(lambda: told("status"))
            await until(lambda: told("doctor", "--store", store_on_small_disk))
            findings = {one.check: one async for one in check_store(store_on_small_disk)}
            assert findings["store_writable"].level == Severity.FAIL
            assert "the disk of the history store is full" in findings["store_writable"].said

            hog.unlink()
            await drained(outbox, patience=60.0)
            findings = {one.check: one async for one in check_store(store_on_small_disk)}
            assert findings["store_writable"].level == Severity.OK
    await outbox.close()


@pytest.mark.parametrize(
    "error",
    [
        pymysql.err.OperationalError(1021, "Disk full (/tmp/x); waiting for someone to free some space..."),
        pymysql.err.OperationalError(1114, "The table 'letopis_log' is full"),
        pymysql.err.OperationalError(1030, 'Got error 28 "No space left on device" from storage engine InnoDB'),
        pymysql.err.OperationalError(1026, "Error writing file 'x' (Errcode: 28 \"No space left on device\")"),
        pymysql.err.OperationalError(3, "Error writing file 'x' (errno: 28 \"No space left on device\")"),
    ],
    ids=str,
)
def test_every_way_to_say_it(error: Exception) -> None:
    found = classify(error)

    assert (found.fault_class, found.code) == (FaultClass.MISCONFIGURED, "disk-full")


@pytest.mark.parametrize("place", ["outbox", "store"])
async def test_large_content_on_a_full_disk_is_refused_or_waits_and_comes_whole(
    small_disk: Path, tmp_path: Path, place: str
) -> None:
    picture = Message.user("t0ken " * 500_000, id="picture")
    url = f"sqlite:///{(small_disk if place == 'store' else tmp_path) / 'history.db'}"
    path = (small_disk if place == "outbox" else tmp_path) / "bot.outbox.db"
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History(path, store=store, watch=False, bounds=Bounds(min_free_bytes=None)) as history,
    ):
        await history.append("c", Message.user("before"))
        assert await history.drained(60)
        hog = fill(small_disk)
        if place == "outbox":
            with pytest.raises(OutboxFull):
                await history.append("c", picture)
            assert (await history.status()).pending == 0
        else:
            await history.append("c", picture)
            await until(lambda: has_failed(history))
        hog.unlink()
        if place == "outbox":
            await history.append("c", picture)
        assert await history.drained(60)

        assert [message.text for message in await store.messages("c")] == ["before", picture.text]
        assert await history.outbox.read(lambda connection: list(content_problems(connection))) == []
        assert await problems(store) == []


async def has_failed(history: History) -> bool:
    """Return True once a delivery has met the full disk."""
    return "disk" in repr((await history.status()).breaker)
