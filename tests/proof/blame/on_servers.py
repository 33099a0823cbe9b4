"""Raise an outage's code for one event with triggers, and refuse every event with constraints, on real servers."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.model.messages import Message
from tests.campaigns.invariants import check
from tests.support.relays import drained, end, lane, say, sql
from tests.support.servers import Server
from tests.support.store_changes import run_there

CODES: Final = {
    "postgresql": ("53200", "57014", "25006", "42501", "53300", "58030"),
    "mariadb": ("1021", "1969", "1290", "1142", "1040", "1030"),
}
"""A sample of the codes that look like an outage."""
HURT: Final = "ALTER TABLE letopis_events ADD CONSTRAINT never CHECK (version <= 2)"
MEND: Final = "ALTER TABLE letopis_events DROP CONSTRAINT never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is made to happen on a server."""

    kind: str
    code: str = ""
    others: int = 3


def scenes(kind: str, *, short: bool) -> list[Scene]:
    if short:
        return [Scene(kind=kind, code=CODES[kind][0]), Scene(kind=kind)]
    failing = [Scene(kind=kind, code=code, others=(1, 3, 8)[place % 3]) for place, code in enumerate(CODES[kind])]
    return [*failing, *(Scene(kind=kind, others=others) for others in (1, 3, 8))]


async def judged(scene: Scene, server: Server, path: Path, *, limit: float) -> tuple[float, list[str]]:
    """Make it happen in a database of its own; return the longest wait of a sound conversation, and what was wrong."""
    url = await asyncio.to_thread(server.create_database)
    outbox = await OutboxFile.open(path)
    try:
        async with ConversationStore.open(url, migrate=True) as store:
            relay = Relay(outbox, store, random=random.Random(scene.others))
            task = asyncio.create_task(relay.run())
            try:
                play = _one_event if scene.code else _everybody
                longest, problems = await play(scene, outbox, relay, url, limit)
            finally:
                await end(task)
        verdict = await check([outbox.path], url)
        problems += verdict.problems
        return longest, [f"{scene}: {one}" for one in problems]
    finally:
        await outbox.close()
        await asyncio.to_thread(server.drop_database, url)


async def _one_event(scene: Scene, outbox: OutboxFile, relay: Relay, url: str, limit: float) -> tuple[float, list[str]]:
    await run_there(url, *raising(scene.kind, scene.code))
    await outbox.append(prepare("bad", [Message.user("well"), Message.user("doomed"), Message.user("behind it")]))
    longest, began = 0.0, time.monotonic()
    while time.monotonic() - began < 2 * limit:
        longest = max(longest, await _turn(scene, outbox, limit))
        if longest >= limit or (await lane(outbox, "bad")).state == "blocked":
            break
    stuck = await lane(outbox, "bad")
    problems = [] if longest < limit else [f"a sound conversation waited {longest:.1f} s"]
    if (stuck.state, stuck.delivered) != ("blocked", 2):
        problems.append(f"the bad event was not found: {stuck.state} at {stuck.delivered}")
    return longest, problems


async def _everybody(scene: Scene, outbox: OutboxFile, relay: Relay, url: str, limit: float) -> tuple[float, list[str]]:
    await _turn(scene, outbox, limit)
    await run_there(url, HURT)
    for number in range(scene.others):
        await say(outbox, f"c{number}")
    await asyncio.sleep(9)  # by then each would have been blocked
    problems = [] if relay.breaker.reason and "poison" in relay.breaker.reason else ["the breaker does not say so"]
    if await sql(outbox, "SELECT 1 FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'"):
        problems.append("something was charged to a conversation")
    await run_there(url, MEND)
    began = time.monotonic()
    with suppress(TimeoutError):
        await drained(outbox, patience=limit)
    if (took := time.monotonic() - began) >= limit:
        problems.append("it was mended, and not everything was delivered")
    return took, problems


async def _turn(scene: Scene, outbox: OutboxFile, limit: float) -> float:
    """Have each sound conversation say something; return how long it took until all of it was delivered."""
    began = time.monotonic()
    for number in range(scene.others):
        await say(outbox, f"c{number}")
    while time.monotonic() - began < limit:
        if all([(await lane(outbox, f"c{number}")).pending == 0 for number in range(scene.others)]):
            break
        await asyncio.sleep(0.02)
    took = time.monotonic() - began
    await asyncio.sleep(0.3)
    return took


def raising(kind: str, code: str) -> tuple[str, ...]:
    """Return statements after which an event with the word ``doomed`` fails with a code."""
    if kind == "mariadb":
        trigger = (
            "CREATE TRIGGER doom BEFORE INSERT ON letopis_events FOR EACH ROW IF NEW.data LIKE '%%doomed%%' THEN"
            f" SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'no'; END IF"
        )
        return (trigger,)
    function = (
        "CREATE FUNCTION doom() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.data::text LIKE '%%doomed%%' THEN"
        f" RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$"
    )
    return function, "CREATE TRIGGER doom BEFORE INSERT ON letopis_events FOR EACH ROW EXECUTE FUNCTION doom()"
