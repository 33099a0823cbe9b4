"""Point relays at another store than the bot's, and exchange stores beneath a relay."""

import asyncio
import signal
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from letopis import History, Message
from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.store.database.schema import metadata
from tests.proof.harness import migrated
from tests.proof.restored.world import TIMEOUT_SECONDS, WAIT, World, rows, running
from tests.proof.stores import KINDS, fresh
from tests.support.servers import PostgresServer
from tests.support.store_changes import copied, put_back, run_there

TOLD: Final = 2  # wrong stores that a relay is given in a case, of five; one in the short form and in a control


async def before_the_first_delivery(world: World) -> None:
    """Nothing was delivered yet: the place that the bot named decides."""
    await world.say(world.chance.randrange(1, 20))
    await _told_of_wrong_ones(world)


async def after_the_first_delivery(world: World) -> None:
    """The outbox is bound: the identity decides."""
    async with world.delivering(world.url):
        await world.say(world.chance.randrange(1, 20))
        await world.whole(world.url)
    await world.say(world.chance.randrange(1, 20))
    await _told_of_wrong_ones(world)


async def two_relays(world: World) -> None:
    """Two relays are given two stores, one after the other or at once, while the bot talks."""
    await world.say(5)
    wrong = await another_store(world)
    before = await rows(wrong)
    stores = [world.url, wrong]
    world.chance.shuffle(stores)
    async with AsyncExitStack() as stack:
        relays = []
        async with world.talking(pace=0.2):
            for place, store in enumerate(stores):
                await asyncio.sleep(world.chance.uniform(0, 1.5) if place else 0)
                relays.append(stack.enter_context(running(world.process("relay", store=store))))
            right, other = relays if stores[0] == world.url else reversed(relays)
            code = await asyncio.to_thread(other.wait, WAIT)
            world.tally.require(code == Exit.CONFIGURATION, f"the relay with the wrong store ended with {code}")
        await world.whole(world.url)
        right.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(right.wait, WAIT)
        world.tally.require(not code, f"the relay with the right store ended with {code}")
    await world.say(3)
    await world.check_reports(wrong)
    await _in_the_right_one_alone(world, {wrong: before})


async def a_staging_copy(world: World) -> None:
    """A copy of the store with an identity of its own gets nothing of the bot's."""
    async with world.delivering(world.url):
        await world.say(world.chance.randrange(5, 30))
        await world.whole(world.url)
    copy = world.database(world.here.kind)
    await migrated(copy)
    await put_back(copy, await copied(world.url))
    code, _ = await world.said("db", "new-identity", "--yes", "--json", store=copy)
    world.tally.require(not code, f"new-identity ended with {code}")
    await world.say(world.chance.randrange(1, 20))
    await _refused(world, [copy])


async def exchanged(world: World) -> None:
    """Another history lies behind the same address for a while, beneath a relay that runs."""
    with fresh(world.here.kind, world.folder, "another") as another:
        await _some_history(world.folder / "theirs.outbox.db", another.url)
        before = await rows(another.url)
        await world.saved(world.chance.randrange(1, 20))
        await _exchange(world.here.kind, world.url, another.url)
        await world.say(world.chance.randrange(1, 20))
        missed = "another store lies there, and the relay does not say so"
        await world.wait(lambda: world.relay.breaker.reason == "wrong_store identity", missed)
        await world.say(3)

        async def told() -> bool:
            status = await world.history.status()
            return status.wrong_store and not status.healthy and status.pending > 0

        # The relay writes down what it met a moment later.
        missed = "another store lies there, and status does not say so"
        await world.wait(told, missed, patience=world.patience / 3)
        world.tally.require(await rows(world.url) == before, "the store that was put there took something")
        await _exchange(world.here.kind, world.url, another.url)
        await world.whole()
        kept = await rows(another.url) == before
        world.tally.require(kept, "the store that had been put there holds something else afterwards")


async def another_store(world: World) -> str:
    url = world.database(world.here.kind)
    await _some_history(world.folder / "theirs.outbox.db", url)
    return url


async def _some_history(path: Path, url: str) -> None:
    await migrated(url)
    async with History(path, store=url) as theirs:
        for number in range(5):
            await theirs.append("chat-0", Message.user(f"theirs {number}"))
        if not await theirs.drained(TIMEOUT_SECONDS):
            raise TimeoutError("another bot could not deliver")


async def _told_of_wrong_ones(world: World) -> None:
    empty: list[str | None] = [None, *(world.database(kind) for kind in KINDS)]
    many = 1 if world.here.control else world.here.many(TOLD, 1)
    drawn = [one for one in world.chance.sample(empty, many - 1) if one != ""]  # of a server that is not there
    await _refused(world, [await another_store(world), *drawn])


async def _refused(world: World, wrong: list[str | None]) -> None:
    default = f"sqlite:///{(world.folder / 'bot.history.db').as_posix()}"
    before = {url or default: await rows(url or default) for url in wrong}
    for url in wrong:
        code = await world.ended("relay", "--once", store=url)
        world.tally.require(code == Exit.CONFIGURATION, f"told of {_shown(url)}, the relay ended with {code}")
        await world.check_reports(url)
    await _in_the_right_one_alone(world, before)


async def _in_the_right_one_alone(world: World, before: dict[str, object]) -> None:
    async with world.delivering(world.url):
        await world.whole(world.url)
    for url, held in before.items():
        world.tally.require(await rows(url) == held, f"a wrong store took something: {_shown(url)}")


def _shown(url: str | None) -> str:
    return "nothing" if url is None else make_url(url).get_backend_name()


async def _exchange(kind: str, one: str, two: str) -> None:
    """Have each of two stores at the address of the other."""
    first, second = (str(make_url(url).database) for url in (one, two))
    if kind == "sqlite":
        await asyncio.to_thread(_exchange_files, Path(first), Path(second))
    elif kind == "postgresql":
        await asyncio.to_thread(_rename_databases, first, second)
    else:
        await run_there(one, f"RENAME TABLE {', '.join(_renamed(first, second))}")


def _renamed(first: str, second: str) -> list[str]:
    tables = [*metadata.tables, "letopis_version"]
    return [
        *(f"`{first}`.`{one}` TO `{first}`.`{one}_aside`" for one in tables),
        *(f"`{second}`.`{one}` TO `{first}`.`{one}`" for one in tables),
        *(f"`{first}`.`{one}_aside` TO `{second}`.`{one}`" for one in tables),
    ]


def _rename_databases(first: str, second: str) -> None:
    """Rename both, with all who are connected cut off: the server wants it so."""
    with PostgresServer.find() as server:
        for name in (first, second):
            server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
            server.terminate_connections(server.database_url(name))
        for source, target in ((first, f"{first}_"), (second, first), (f"{first}_", second)):
            server.execute(f'ALTER DATABASE "{source}" RENAME TO "{target}"')
        for name in (first, second):
            server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')


def _exchange_files(first: Path, second: Path) -> None:
    """Rename both, with nothing in their WAL, as without any writer."""
    for path in (first, second):
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for end in ("", "-wal", "-shm"):
        one, two, aside = (Path(f"{path}{end}") for path in (first, second, f"{first}-aside"))
        for source, target in ((one, aside), (two, one), (aside, two)):
            if source.exists():
                source.rename(target)
