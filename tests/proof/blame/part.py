"""Prove that one event that fails like an outage delays no other conversation, and that a store that refuses all blocks
none.

Scripted rows run the relay's real decisions over a store that does what the case says, in time that is made up: every
code of the fault table that looks like an outage, beside 1 to 30 other conversations. The rows of real servers have
triggers that raise a sample of those codes, and real constraints, in real time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.fault_rules import BY_MARIADB_NUMBER, BY_SQLSTATE
from letopis.store.database.faults import FaultClass
from letopis.store.model.messages import Message
from tests.campaigns.invariants import check
from tests.proof.blame.scripted import Came, Case, run
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.support.defects import planted
from tests.support.relays import drained, end, lane, say, sql
from tests.support.servers import MariaDBServer, PostgresServer, Server, ServerUnavailable
from tests.support.store_changes import refuse, run_there

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
                play = _one_event if scene.code else _refuse_everybody
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


async def _refuse_everybody(
    scene: Scene, outbox: OutboxFile, relay: Relay, url: str, limit: float
) -> tuple[float, list[str]]:
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
    return refuse(kind, f"new.data{'::text' * (kind == 'postgresql')} LIKE '%%doomed%%'", code)


REFUSES_EVERYBODY: Final = "a relay that never holds the store to blame for a refusal"
CONTROLS: Final = (
    "probes that go to the oldest event again",
    "a relay that convicts no event of what looks like an outage",
    REFUSES_EVERYBODY,
)
"""The defects: the last in a store that refuses everything, the others beside an event that fails like an outage."""


def without(control: str, case: Case) -> str:
    """Run a case with a defect planted; return what was wrong, empty where nothing was."""
    logging.disable()
    with planted(control):
        came = run(case)
    if case.everybody:
        return f"{came.at_worst} conversations were blocked" if came.at_worst else ""
    if came.waits > LIMIT:
        return f"a sound conversation waited {came.waits:.1f} s"
    return "" if came.blocked else "the bad event was never found"


OUTAGE_LIKE: Final = (FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.UNKNOWN_OUTCOME)


def outage_like(kind: str) -> list[tuple[FaultClass, str]]:
    """Return class and code of each of the table that looks like an outage; a class of SQLSTATEs stands for one."""
    rules = (
        BY_SQLSTATE.items() if kind == "postgresql" else ((str(code), rule) for code, rule in BY_MARIADB_NUMBER.items())
    )
    return [
        (rule.fault_class, f"{code}000" if len(code) == 2 else code)
        for code, rule in rules
        if rule.fault_class in OUTAGE_LIKE
    ]


KINDS: Final = {"postgresql": "PostgreSQL", "mariadb": "MariaDB"}
OTHERS: Final = (1, 2, 3, 5, 8, 30)
SEEDS: Final = 50
LIMIT: Final = 30.0  # seconds that no conversation but the bad one may wait
JOBS: Final = 2
LATE: Final = 300.0
"""Seconds that the bad event is alone in the outbox, in every third case, before the others begin to talk; in another
third the relay comes late, and finds all of them pending."""
ASLEEP: Final[dict[str, Any]] = {"asleep": 10.0, "bad_at": 1}
REFUSED: Final = (FaultClass.POISON, "23502")
MENDED: Final = 60.0
Judge = Callable[[Case, Came], str]


def prove(options: Options) -> Iterator[Row]:
    """Run the scripted cases, those on real servers, and the controls."""
    logging.disable()
    others = OTHERS if not options.short else (1, 3, 8)
    seeds = range(options.seed, options.seed + options.many(SEEDS, 2))
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn"), initializer=logging.disable) as pool:
        for kind, name in KINDS.items():
            cases = _outage_like(kind, others, seeds)
            yield _row("an event that fails like an outage, beside others", name, cases, held_up, pool, 300)
        cases = _everybody(others, seeds)
        yield _row("a store that refuses everybody for a minute", "any", cases, blamed, pool, 300)
        cases = [
            Case(seed=seed, others=n, bad=bad, **_fault(REFUSED)) for bad in (2, 3) for n in others for seed in seeds
        ]
        yield _row("several poisoned conversations beside sound ones", "any", cases, held_up, pool, 300)
        for control in CONTROLS:
            sample = _sample_of(control, seeds)[: options.many(6, 1)]
            problems = [one for one in pool.map(without, [control] * len(sample), sample) if one]
            yield row_of(control, "scripted", count=len(sample), unit="cases", problems=problems, control=True)
    yield from _on_servers(options)


def _outage_like(kind: str, others: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Return a case for each seed and number of others; the codes of the table take turns, so that each has some."""
    faults = outage_like(kind)
    pairs = [(seed, n) for seed in seeds for n in others]
    return [
        Case(
            seed=seed,
            others=n,
            **_fault(faults[place % len(faults)]),
            alone=LATE if place % 3 == 0 else 0.0,
            **(ASLEEP if place % 3 == 1 else {}),
        )
        for place, (seed, n) in enumerate(pairs)
    ]


def _everybody(others: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Return cases in which an ordinary event is refused too, and, with enough conversations, in which it is taken."""
    return [
        Case(seed=seed, others=n, **_fault(REFUSED), everybody=MENDED, ordinary=ordinary)
        for seed in seeds
        for n in others
        for ordinary in ((False, True) if n >= 3 else (False,))
    ]


def _sample_of(control: str, seeds: Sequence[int]) -> list[Case]:
    faults = outage_like("mariadb")
    if control == REFUSES_EVERYBODY:
        return [Case(seed=seed, others=5, **_fault(REFUSED), everybody=MENDED) for seed in seeds[:3]]
    return [Case(seed=seed, others=3, **_fault(faults[seed % len(faults)]), turns=12, **ASLEEP) for seed in seeds[:6]]


def _fault(one: tuple[FaultClass, str]) -> dict[str, Any]:
    return {"fault_class": one[0], "code": one[1]}


def held_up(case: Case, came: Came) -> str:
    if came.waits > LIMIT:
        return f"a sound conversation waited {came.waits:.1f} s"
    if any(not name.startswith("bad-") for name in came.blocked):
        return f"sound conversations are blocked: {sorted(came.blocked)}"
    if any(delivered != case.bad_at - 1 for delivered in came.blocked.values()):
        return "a bad conversation is blocked at another event than its bad one"
    return ""


def blamed(case: Case, came: Came) -> str:
    """Return what was wrong if the store refused everything."""
    if came.at_worst or came.charged:
        return f"{came.at_worst} conversations were blocked, {came.charged} attempts are charged"
    if came.told is None or came.told > 15:
        return "the breaker did not say so"
    if came.healed is None or came.healed > LIMIT:
        return f"after the mending it took {came.healed} s"
    return ""


def _row(what: str, where: str, cases: Sequence[Case], judge: Judge, pool: ProcessPoolExecutor, least: int) -> Row:
    came = list(pool.map(run, cases, chunksize=4))
    problems = [
        f"seed {case.seed}, {case.others} others, {case.code}: {found}"
        for case, one in zip(cases, came, strict=True)
        if (found := judge(case, one))
    ]
    codes = len({case.code for case in cases})
    waits = sorted(one.waits for one in came)
    if judge is blamed:
        told = max(one.told or 0.0 for one in came)
        healed = max(one.healed or 0.0 for one in came)
        notes = f"said after {told:.1f} s at the latest, all delivered {healed:.1f} s after the mending at the latest"
    else:
        found = sum(len(one.blocked) for one in came)
        notes = (
            f"{codes} codes; the longest wait of a sound conversation: median {waits[len(waits) // 2]:.1f} s, at most"
            f" {waits[-1]:.1f} s; {found} of {sum(case.bad for case in cases)} bad ones found while the others talked"
        )
    return row_of(what, f"{where}, scripted", len(cases), least, "cases", problems, notes)


def _on_servers(options: Options) -> Iterator[Row]:
    for kind, found in (("postgresql", PostgresServer), ("mariadb", MariaDBServer)):
        try:
            server: Server = found.find()
        except ServerUnavailable as missing:
            yield Row(what="the same on a real server", where=KINDS[kind], missing=str(missing))
            continue
        with server:
            chosen = scenes(kind, short=options.short)
            came = asyncio.run(_all(chosen, server, options))
        problems = [found for one in came for found in one[1]]
        longest = max(one[0] for one in came)
        notes = f"the longest that a sound conversation waited: {longest:.1f} s"
        yield row_of("the same on a real server", KINDS[kind], len(came), 9, "scenes", problems, notes)


async def _all(chosen: Sequence[Scene], server: Server, options: Options) -> list[tuple[float, list[str]]]:
    gate = asyncio.Semaphore(4)

    async def one(number: int, scene: Scene) -> tuple[float, list[str]]:
        async with gate:
            return await judged(scene, server, options.folder / f"{scene.kind}-{number}.outbox.db", limit=LIMIT)

    return await asyncio.gather(*(one(number, scene) for number, scene in enumerate(chosen)))
