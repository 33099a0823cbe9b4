"""Prove that one event that fails like an outage delays no other conversation, and that a store that refuses all blocks
none.

The relay's real decisions run over a store that does what the case says, in time that is made up: every code of the
fault table that looks like an outage, beside 1 to 30 other conversations. The campaign `faults` raises these codes on
real servers, and `tests/integration/test_whose_fault.py` has them refuse one event, or all.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, Final

from letopis.store import FaultClass
from letopis.store.database.fault_rules import BY_MARIADB_NUMBER, BY_SQLSTATE
from tests.proof.blame.scripted import Came, Case, run
from tests.proof.harness import Experiment, Setting, Tally, prove_table
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.defects import planted

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
Judge = Callable[[Case, Came], str]
Make = Callable[[Sequence[int], Sequence[int]], list[Case]]


def outage_like(kind: str) -> list[tuple[FaultClass, str]]:
    """Return class and code of each of the table that looks like an outage; a class of SQLSTATEs stands for one."""
    rules: Mapping[Any, Any] = BY_SQLSTATE if kind == "postgresql" else BY_MARIADB_NUMBER
    found = ((rule.fault_class, str(code)) for code, rule in rules.items() if rule.fault_class in OUTAGE_LIKE)
    return [(fault_class, f"{code}000" if len(code) == 2 else code) for fault_class, code in found]


def prove(options: Options) -> Iterator[Row]:
    logging.disable()
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn"), initializer=logging.disable) as pool:
        yield from prove_table(options, list(table(pool)))


def table(pool: ProcessPoolExecutor) -> Iterator[Experiment]:
    alone = partial(Experiment, unit="cases", on=())
    for kind, name in KINDS.items():
        run = partial(scripted, pool=pool, make=partial(_outage_like, kind))
        yield alone("an event that fails like an outage, beside others", run, least=300, where=f"{name}, scripted")
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
