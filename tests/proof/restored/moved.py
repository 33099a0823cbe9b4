"""Kill a move midway while a bot appends and its relay delivers, and run it again until it is done."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tests.campaigns.invariants import read_store
from tests.campaigns.targets import KINDS
from tests.proof.restored import world as worlds
from tests.proof.restored.scene import WAIT, Scene, running
from tests.support.moves import dump
from tests.support.relays import until

KILLS = 3
"""Of a move at most; one that is through before its first is no case of this. 0 for a control: none is needed."""
TRANSACTIONS: Final = 60  # of a move that is not killed, about
TALK: Final = 0.3  # seconds that the bot talks after the move before it is noticed


def killed_midway(to: str) -> Callable[[Scene], Awaitable[list[str]]]:
    """Return the case of a move to a kind of store."""

    async def case(scene: Scene) -> list[str]:
        target = scene.database(to)
        async with scene.delivering(scene.url) as relay:
            await scene.say(scene.chance.randrange(60, 120))
            problems = await scene.whole(scene.url)
            saved = list(scene.receipts)
            if scene.chance.random() < 0.5:
                await scene.prune()
            async with scene.talking():
                if cut := await asyncio.to_thread(_run_to_its_end, scene, target):
                    return problems + cut
                closed = await dump(scene.url)
                await asyncio.sleep(TALK)
                try:
                    await until(
                        lambda: (relay.breaker.reason or "") == "wrong_store moved", patience=worlds.TIMEOUT_SECONDS
                    )
                except TimeoutError:
                    problems.append(f"the history was moved away, and the relay says {relay.breaker.reason}")
        async with scene.delivering(target):
            await scene.say(5)
            problems += await scene.whole(target)
        if await dump(scene.url) != closed:
            problems.append("the old store took something after it was closed")
        problems += await _continued(scene.url, target)
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


def _run_to_its_end(scene: Scene, target: str) -> list[str]:
    kills, most = 0, scene.chance.randint(min(1, KILLS), KILLS)
    while True:
        left = scene.chance.randrange(1, TRANSACTIONS) if kills < most else 0
        if not kills:
            left = min(left, TRANSACTIONS // 2)
        with running(scene.process("move", "--to", target, "--json", store=scene.url)) as process:
            assert process.stdout is not None
            for line in process.stdout:
                left -= line == ".\n"
                if not left:
                    time.sleep(scene.chance.uniform(0, 0.01))
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
