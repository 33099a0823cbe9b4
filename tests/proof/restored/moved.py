"""Kill a move midway while a bot appends and its relay delivers, and run it again until it is done."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tests.campaigns.invariants import read_store
from tests.proof.restored import world as worlds
from tests.proof.restored.world import WAIT, World, running
from tests.proof.stores import KINDS
from tests.support.moves import dump
from tests.support.relays import until

KILLS = 3
"""Of a move at most; one that is through before its first is no case of this. 0 for a control: none is needed."""
TRANSACTIONS: Final = 60  # of a move that is not killed, about
TALK: Final = 0.3  # seconds that the bot talks after the move before it is noticed


def killed_midway(to: str) -> Callable[[World], Awaitable[list[str]]]:
    """Return the case of a move to a kind of store."""

    async def case(world: World) -> list[str]:
        target = world.database(to)
        async with world.delivering(world.url) as relay:
            await world.say(world.chance.randrange(60, 120))
            problems = await world.whole(world.url)
            saved = list(world.receipts)
            if world.chance.random() < 0.5:
                await world.prune()
            async with world.talking(pace=0.2):
                if cut := await asyncio.to_thread(_run_to_its_end, world, target):
                    return problems + cut
                closed = await dump(world.url)
                await asyncio.sleep(TALK)
                try:
                    await until(
                        lambda: (relay.breaker.reason or "") == "wrong_store moved", patience=worlds.TIMEOUT_SECONDS
                    )
                except TimeoutError:
                    problems.append(f"the history was moved away, and the relay says {relay.breaker.reason}")
        async with world.delivering(target):
            await world.say(5)
            problems += await world.whole(target)
        if await dump(world.url) != closed:
            problems.append("the old store took something after it was closed")
        problems += await _continued(world.url, target)
        for number, receipt in enumerate(saved):
            if not await receipt.saved(0.5):
                problems.append(f"message {number} was saved before the move, and is not any more")
        return problems[:5]

    return case


async def _continued(old: str, new: str) -> list[str]:
    """Return what is wrong where the log of the new store does not begin with the whole log of the old one."""
    logs = []
    for url in (old, new):
        events = (await read_store(url)).events
        logs.append({(one.partition, one.position): (one.conversation_id, one.version, one.event_id) for one in events})
    missing = [place for place, event in logs[0].items() if logs[1].get(place) != event]
    return [f"{len(missing)} events of the old store are not in their place in the new one"] if missing else []


def _run_to_its_end(world: World, target: str) -> list[str]:
    kills, most = 0, world.chance.randint(min(1, KILLS), KILLS)
    while True:
        left = world.chance.randrange(1, TRANSACTIONS) if kills < most else 0
        if not kills:
            left = min(left, TRANSACTIONS // 2)
        with running(world.process("move", "--to", target, "--json", store=world.url)) as process:
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
            problems = [] if not code else [f"the move ended with {code}"]
            return problems if kills or not most else [*problems, "the move was not killed"]
        kills += 1


PAIRS: Final = {
    "postgresql": ("sqlite", "mariadb"),
    "mariadb": ("sqlite", "postgresql"),
    "sqlite": ("sqlite",),
}
"""The kinds that a history is moved to, and from which."""
assert set(PAIRS) == set(KINDS)
