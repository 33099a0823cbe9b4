"""Do something to a store at moments drawn by chance, and say what has to come of it."""

import asyncio
import signal
import time
from typing import Final

from letopis.outbox.alerting.incidents import IncidentKind
from letopis.store.database.schema import events
from tests.campaigns.invariants import read_store
from tests.proof.restored.world import WAIT, World, running
from tests.support.moves import dump
from tests.support.store_changes import copied, let_through, run_there, swallow

KILLS: Final = 3  # of a move at most; one that is through before its first is no case of this
TRANSACTIONS: Final = 60  # of a move that is not killed, about
TALK: Final = 0.3  # seconds that the bot talks after the move before it is noticed
SWALLOWED: Final = ("conversations", "messages", "lanes", "events")


async def killed_midway(world: World, *, to: str) -> None:
    target = world.database(to)
    async with world.delivering(world.url) as relay:
        await world.say(world.chance.randrange(60, 120))
        await world.whole(world.url)
        saved = list(world.receipts)
        if world.chance.random() < 0.5:
            await world.prune()
        async with world.talking(pace=0.2):
            if not await asyncio.to_thread(_run_to_its_end, world, target):
                return
            closed = await dump(world.url)
            await asyncio.sleep(TALK)
            moved = "the history was moved away, and the relay does not say so"
            await world.wait(lambda: (relay.breaker.reason or "") == "wrong_store moved", moved)
    async with world.delivering(target):
        await world.say(5)
        await world.whole(target)
    world.tally.require(await dump(world.url) == closed, "the old store took something after it was closed")
    await _continued(world, target)
    for number, receipt in enumerate(saved):
        kept = await receipt.saved(0.5)
        world.tally.require(kept, f"message {number} was saved before the move, and is not any more")


async def _continued(world: World, new: str) -> None:
    """Note what is wrong where the log of the new store does not begin with the whole log of the old one."""
    logs = []
    for url in (world.url, new):
        events = (await read_store(url)).events
        logs.append({(one.partition, one.position): (one.conversation_id, one.version, one.event_id) for one in events})
    missing = sum(logs[1].get(place) != event for place, event in logs[0].items())
    world.tally.require(not missing, f"{missing} events of the old store are not in their place in the new one")


def _run_to_its_end(world: World, target: str) -> bool:
    """Return True if the move ended well, and was killed before as often as it had to be."""
    kills, most = 0, 0 if world.here.control else world.chance.randint(1, world.here.many(KILLS, 1))
    while True:
        left = world.chance.randrange(1, TRANSACTIONS) if kills < most else 0
        if not kills:
            left = min(left, TRANSACTIONS // 2)
        with running(world.move(target)) as process:
            assert process.stdout is not None
            for line in process.stdout:
                left -= line == ".\n"
                if not left:
                    time.sleep(world.chance.uniform(0, 0.01))
                    process.send_signal(signal.SIGKILL)
                    break
            process.stdout.read()
            code = process.wait(WAIT)
        if code != -signal.SIGKILL:
            world.tally.require(not code, f"the move ended with {code}")
            world.tally.require(bool(kills) or not most, "the move was not killed")
            return not world.tally.problems
        kills += 1


async def in_quiet(world: World) -> None:
    """Set back what a bot that says nothing more had delivered."""
    backup = await world.saved(world.chance.randrange(0, 30))
    await world.saved(world.chance.randrange(1, 40))
    await world.restore(backup)
    await world.whole()


async def under_load(world: World) -> None:
    """Set back while the bot talks and the relay delivers."""
    async with world.talking():
        await asyncio.sleep(world.chance.uniform(0.05, 0.5))
        backup = await copied(world.url)
        await asyncio.sleep(world.chance.uniform(0.05, 0.5))
        await world.restore(backup)
        await asyncio.sleep(world.chance.uniform(0, 0.2))
    await world.whole()


async def twice(world: World) -> None:
    """Set back to an older backup while the first restore is being healed."""
    older = await world.saved(10)
    newer = await world.saved(20)
    await world.saved(20)
    await world.restore(newer)
    await asyncio.sleep(world.chance.uniform(0, 0.4))
    await world.restore(older)
    await world.whole()


async def pruned(world: World) -> None:
    """Set back what the outbox has pruned in part or whole: reported by conversation, and repaired by a newer
    backup."""
    older = await world.saved(world.chance.randrange(0, 20))
    newer = await world.saved(world.chance.randrange(5, 40))
    await world.prune(world.chance.choice((0, 0, 1, 3)))
    await world.restore(older)
    await world.told()
    await world.restore(newer)
    await world.whole()


async def cut_out(world: World) -> None:
    """Delete some events while the counters stay: told, and ended by the backup."""
    backup = await world.saved(world.chance.randrange(5, 40))
    head = len((await read_store(world.url)).events)
    first = world.chance.randrange(1, head + 1)
    last = world.chance.choice((first, head, world.chance.randrange(first, head + 1)))
    position = "`position`" if world.here.kind == "mariadb" else '"position"'
    await run_there(world.url, f"DELETE FROM {events.name} WHERE {position} BETWEEN {first} AND {last}")

    async def told() -> bool:
        await asyncio.sleep(0.05)  # a look costs more than a wait
        status = await world.history.status()
        return not status.healthy and any(one.kind is IncidentKind.HISTORY_INCOMPLETE for one in status.incidents)

    async def well() -> bool:
        return (await world.history.status()).healthy

    gone = f"events {first} to {last} of {head} are gone from the log, and nobody is told"
    await world.wait(told, gone, patience=world.patience / 3)
    await world.restore(backup)
    await world.wait(well, "the log is whole again, and status does not say so")
    await world.whole()


async def swallowed(world: World) -> None:
    """Have a trigger swallow what is written to a table: nothing counts as saved, and all is once it is gone."""
    await world.saved(world.chance.randrange(1, 10))
    table = world.chance.choice(SWALLOWED)
    await run_there(world.url, *swallow(world.here.kind, table, "INSERT"))
    for number in range(world.chance.randrange(1, 5)):
        # Of new conversations: each of the tables is inserted into.
        await world.say_in(f"new-{number}", world.chance.choice((1, 3, 60)))
    swallowed = f"rows of letopis_{table} were swallowed, and nobody is told"
    misconfigured = "misconfigured rows"
    await world.wait(lambda: world.relay.breaker.reason == misconfigured, swallowed, patience=world.patience / 3)
    await run_there(world.url, *let_through(world.here.kind, table))
    await world.whole()
