"""Prove that one event that fails like an outage delays no other conversation, and that a store that refuses all blocks
none.

Scripted rows run the relay's real decisions over a store that does what the case says, in time that is made up: every
code of the fault table that looks like an outage, beside 1 to 30 other conversations. The rows of real servers have
triggers that raise a sample of those codes, and real constraints, in real time.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import cycle, product
from multiprocessing import get_context
from typing import Any, Final

from letopis import ConversationStore, Message, OutboxFile
from letopis.outbox import Relay
from letopis.outbox.event_log.append_encoding import prepare
from letopis.store import FaultClass
from letopis.store.database.fault_rules import BY_MARIADB_NUMBER, BY_SQLSTATE
from tests.campaigns.invariants import check
from tests.proof.blame.scripted import Came, Case, run
from tests.proof.harness import Experiment, Setting, Tally, prove_table
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.defects import planted
from tests.support.relays import comes_true, drained, lane, running, say, sql
from tests.support.store_changes import refuse, run_there

CODES: Final = {
    "postgresql": ("53200", "57014", "25006", "42501", "53300", "58030"),
    "mariadb": ("1021", "1969", "1290", "1142", "1040", "1030"),
}
"""A sample of the codes that look like an outage."""
HURT: Final = "ALTER TABLE letopis_events ADD CONSTRAINT never CHECK (version <= 2)"
MEND: Final = "ALTER TABLE letopis_events DROP CONSTRAINT never"


async def on_a_server(setting: Setting) -> Tally:
    """Have one event fail with each code, and all be refused, beside others; each in a store of its own, some at a
    time."""
    gate, tally, codes = asyncio.Semaphore(SCENES_AT_A_TIME), Tally(), CODES[setting.kind]
    scenes = [*zip(codes, cycle((1, 3, 8)), strict=False), ("", 1), ("", 3), ("", 8)]

    async def play(number: int, code: str, others: int) -> float:
        async with gate:
            with setting.apart(f"{number}") as here:
                longest, problems = await judged(here, code, others)
        tally.count += 1
        tally.blame(problems, where=f"{code or 'all'} refused, beside {others}")
        return longest

    chosen = [(codes[0], 3), ("", 3)] if setting.options.short else scenes
    waits = await asyncio.gather(*(play(number, *scene) for number, scene in enumerate(chosen)))
    tally.notes = f"the longest that a sound conversation waited: {max(waits):.1f} s"
    return tally


async def judged(here: Setting, code: str, others: int) -> tuple[float, list[str]]:
    """Make it happen; return the longest wait of a sound conversation, and what was wrong."""
    outbox = await OutboxFile.open(here.world().outbox)
    try:
        async with (
            ConversationStore.open(here.url, migrate=True) as store,
            running(Relay(outbox, store, random=random.Random(others))) as relay,
        ):
            if code:
                # An event with the word fails.
                text = f"new.data{'::text' * (here.kind == 'postgresql')}"
                await run_there(here.url, *refuse(here.kind, f"{text} LIKE '%%doomed%%'", code))
                longest, problems = await _one_event(outbox, others)
            else:
                longest, problems = await _refuse_everybody(outbox, others, relay, here.url)
        return longest, [*problems, *(await check([outbox.path], here.url)).problems]
    finally:
        await outbox.close()


async def _one_event(outbox: OutboxFile, others: int) -> tuple[float, list[str]]:
    await outbox.append(prepare("bad", [Message.user("well"), Message.user("doomed"), Message.user("behind it")]))
    longest, began = 0.0, time.monotonic()
    while time.monotonic() - began < 2 * LIMIT:
        longest = max(longest, await _turn(outbox, others))
        if longest >= LIMIT or (await lane(outbox, "bad")).state == "blocked":
            break
    stuck = await lane(outbox, "bad")
    problems = [] if longest < LIMIT else [f"a sound conversation waited {longest:.1f} s"]
    if (stuck.state, stuck.delivered) != ("blocked", 2):
        problems.append(f"the bad event was not found: {stuck.state} at {stuck.delivered}")
    return longest, problems


async def _refuse_everybody(outbox: OutboxFile, others: int, relay: Relay, url: str) -> tuple[float, list[str]]:
    await _turn(outbox, others)
    await run_there(url, HURT)
    for number in range(others):
        await say(outbox, f"c{number}")
    await asyncio.sleep(9)  # by then each would have been blocked
    problems = [] if relay.breaker.reason and "poison" in relay.breaker.reason else ["the breaker does not say so"]
    if await sql(outbox, "SELECT 1 FROM letopis_outbox_lanes WHERE attempts > 0 OR state <> 'ready'"):
        problems.append("something was charged to a conversation")
    await run_there(url, MEND)
    began = time.monotonic()
    with suppress(TimeoutError):
        await drained(outbox, patience=LIMIT)
    if (took := time.monotonic() - began) >= LIMIT:
        problems.append("it was mended, and not everything was delivered")
    return took, problems


async def _turn(outbox: OutboxFile, others: int) -> float:
    """Have each sound conversation say something; return how long it took until all of it was delivered."""
    began = time.monotonic()
    for number in range(others):
        await say(outbox, f"c{number}")

    async def delivered() -> bool:
        return all([(await lane(outbox, f"c{number}")).pending == 0 for number in range(others)])

    await comes_true(delivered, patience=LIMIT)
    took = time.monotonic() - began
    await asyncio.sleep(0.3)
    return took


REFUSES_EVERYBODY: Final = "a relay that never holds the store to blame for a refusal"
CONTROLS: Final = (
    "probes that go to the oldest event again",
    "a relay that convicts no event of what looks like an outage",
    REFUSES_EVERYBODY,
)
"""The defects: the last in a store that refuses everything, the others beside an event that fails like an outage."""
OUTAGE_LIKE: Final = (FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.UNKNOWN_OUTCOME)
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
SCENES_AT_A_TIME: Final = 4
Judge = Callable[[Case, Came], str]
Make = Callable[[Sequence[int], Sequence[int]], list[Case]]


def outage_like(kind: str) -> list[tuple[FaultClass, str]]:
    """Return class and code of each of the table that looks like an outage; a class of SQLSTATEs stands for one."""
    rules: Mapping[Any, Any] = BY_SQLSTATE if kind == "postgresql" else BY_MARIADB_NUMBER
    found = ((rule.fault_class, str(code)) for code, rule in rules.items() if rule.fault_class in OUTAGE_LIKE)
    return [(fault_class, f"{code}000" if len(code) == 2 else code) for fault_class, code in found]


def prove(options: Options) -> Iterator[Row]:
    """Run the scripted cases, those on real servers, and the controls."""
    logging.disable()
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn"), initializer=logging.disable) as pool:
        yield from prove_table(options, list(table(pool)))


def table(pool: ProcessPoolExecutor) -> Iterator[Experiment]:
    alone = partial(Experiment, unit="cases", on=())
    for kind, name in KINDS.items():
        what, run = "the same on a real server", partial(scripted, pool=pool, make=partial(_outage_like, kind))
        yield alone("an event that fails like an outage, beside others", run, least=300, where=f"{name}, scripted")
        yield Experiment(what, on_a_server, "scenes", 9, on=(kind,), where=name)
    for what, make, judge in (
        ("a store that refuses everybody for a minute", _everybody, blamed),
        ("several poisoned conversations beside sound ones", _poisoned, held_up),
    ):
        run = partial(scripted, pool=pool, make=make, judge=judge)
        yield alone(what, run, least=300, where="any, scripted")
    for control in CONTROLS:
        yield alone(control, partial(controlled, pool=pool, control=control), where="scripted", control=True)


def controlled(setting: Setting, *, pool: ProcessPoolExecutor, control: str) -> Tally:
    seeds, faults = _seeds(setting), outage_like("mariadb")
    if control == REFUSES_EVERYBODY:
        sample = [Case(seed=seed, others=5, fault=REFUSED, everybody=MENDED) for seed in seeds[:3]]
    else:
        how: dict[str, Any] = {"others": 3, "turns": 12, **ASLEEP}
        sample = [Case(seed=seed, fault=faults[seed % len(faults)], **how) for seed in seeds[:6]]
    sample = sample[: setting.many(6, 1)]
    return Tally(len(sample), problems=[*filter(None, pool.map(partial(without, control), sample))])


def without(control: str, case: Case) -> str:
    """Run a case with a defect planted; return what was wrong, empty where nothing was."""
    with planted(control):
        came = run(case)
    if case.everybody:
        return f"{came.at_worst} conversations were blocked" if came.at_worst else ""
    if came.waits > LIMIT:
        return f"a sound conversation waited {came.waits:.1f} s"
    return "" if came.blocked else "the bad event was never found"


def scripted(setting: Setting, *, pool: ProcessPoolExecutor, make: Make, judge: Judge | None = None) -> Tally:
    judge = judge or held_up
    cases = make((1, 3, 8) if setting.options.short else OTHERS, _seeds(setting))
    came = list(pool.map(run, cases, chunksize=4))
    tally = Tally(len(cases))
    for case, one in zip(cases, came, strict=True):
        tally.blame(filter(None, [judge(case, one)]), where=f"seed {case.seed}, {case.others} others, {case.fault[1]}")
    if judge is blamed:
        told = max(one.told or 0.0 for one in came)
        healed = max(one.healed or 0.0 for one in came)
        said = f"said after {told:.1f} s at the latest"
        tally.notes = f"{said}, all delivered {healed:.1f} s after the mending at the latest"
    else:
        codes, waits = len({case.fault for case in cases}), sorted(one.waits for one in came)
        found = sum(len(one.blocked) for one in came)
        tally.notes = (
            f"{codes} codes; the longest wait of a sound conversation: median {waits[len(waits) // 2]:.1f} s, at most"
            f" {waits[-1]:.1f} s; {found} of {sum(case.bad for case in cases)} bad ones found while the others talked"
        )
    return tally


def _seeds(setting: Setting) -> Sequence[int]:
    return range(setting.seed, setting.seed + setting.many(SEEDS, 2))


def _outage_like(kind: str, others: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Return a case for each seed and number of others; the codes of the table take turns, so that each has some."""
    faults, turns = outage_like(kind), ({"alone": LATE}, ASLEEP, dict[str, Any]())
    return [
        Case(seed=seed, others=n, fault=faults[place % len(faults)], **turns[place % 3])
        for place, (seed, n) in enumerate(product(seeds, others))
    ]


def _everybody(others: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    """Return cases in which an ordinary event is refused too, and, with enough conversations, in which it is taken."""
    return [
        Case(seed=seed, others=n, fault=REFUSED, everybody=MENDED, ordinary=ordinary)
        for seed, n, ordinary in product(seeds, others, (False, True))
        if n >= 3 or not ordinary
    ]


def _poisoned(others: Sequence[int], seeds: Sequence[int]) -> list[Case]:
    return [Case(seed=seed, others=n, bad=bad, fault=REFUSED) for bad, n, seed in product((2, 3), others, seeds)]


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
