"""Run many seeds, some of them twice, and each planted defect, and report them as rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.simulation.forks import Job, lived, templates
from tests.proof.simulation.mutants import MUTANTS
from tests.proof.simulation.plan import PROFILES
from tests.proof.simulation.world import DIED, LIVELY, Result
from tests.support import defects

SEEDS: Final = 104
TWICE: Final = 5
TRIES: Final = 3
MAX_TRIES: Final = 12
"""Seeds that are lived through without what a promise rests on, until one of them shows it: chance may spare a few."""
SHORT_MUTANTS: Final = (
    *("written off before it is delivered", "events are inserted without a look whether they are there", "no alerts"),
    *(defects.RECORDS_TWICE, defects.IDS_KEPT, defects.ERASURE_SKIPPED, defects.HOLD_IGNORED),
    *(defects.TRIMMED_TOO_FAR, defects.NOT_SWEPT),
)
TITLES: Final = {
    "storm": "bots and relays under kills, store and disk faults, clock jumps",
    "outage": "the store away for hours",
    "quiet": "the store away for moments: nobody is told",
    "stuck": "one message refused until a person sees to it: told once, and once that it is over",
    "stopped": "the relay at work stopped in the middle, taken over, and going on",
}
TOLD: Final = (
    *("kills", "changes of records acknowledged", "records read", "changes of paths", "appends confirmed"),
    *("erasures of owners", "erasures of persons", "holds", "erasures refused for a hold"),
    *("appends that were cancelled", "turns refused", "files examined"),
)
"""What the notes of a profile count."""


def prove(options: Options) -> Iterator[Row]:
    """Live through the seeds, then again through some of them, then without each thing that a promise rests on."""
    with templates(options.folder) as folder:
        seeds = range(options.seed, options.seed + options.many(SEEDS, 5))
        jobs = [Job(seed=seed, scale=0.2 if options.short else 1.0) for seed in seeds]
        results: dict[int, Result] = {}
        for result in lived(jobs, folder):
            results[result.seed] = result
            for words in problems([result]):
                options.tell(f"simulation: {words}")
            if len(results) % 20 == 0:
                options.tell(f"simulation: {len(results)} of {len(jobs)} seeds")
        yield from _rows(list(results.values()))
        again = list(lived(jobs[:: max(1, len(jobs) // options.many(TWICE, 1))], folder))
        differ = [f"seed {one.seed} went differently" for one in again if results[one.seed].digest != one.digest]
        notes = "a digest of every commit, fault, acknowledgement, alert and kill, and the moments of each"
        yield row_of("the same seed again: the same history", "", len(again), 0, "seeds", differ, notes)
        for name in SHORT_MUTANTS if options.short else MUTANTS:
            mutant, found, tries = MUTANTS[name], list[Result](), options.many(TRIES, 1)
            while len(found) < MAX_TRIES and not any(map(_shown, found)):
                numbers = range(options.seed + len(found), options.seed + len(found) + tries)
                given = {"profile": mutant.profile, "mutant": name, "scale": mutant.scale}
                found += lived([Job(seed=number, **given) for number in numbers], folder)
            yield judged(name, found)


def _rows(results: Sequence[Result]) -> Iterator[Row]:
    for profile in dict.fromkeys(PROFILES):
        mine = [result for result in results if result.profile == profile]
        if mine:
            yield row_of(TITLES[profile], "", len(mine), 0, "seeds", problems(mine), _notes(mine))
    fired, counts = _sum(one.fired for one in results), _sum(one.counts for one in results)
    yield row_of("all of these: seeds", "", len(results), 100, "seeds")
    harm = {what: counts[what] for what in ("kills", "stops", "clock jumps")}
    notes = f"{_told(harm)}; {_told(dict(fired.most_common(8)))}"
    met = fired.total() + sum(harm.values())
    yield row_of("all of these: faults that the code met", "", met, 5_000, "faults", notes=notes)
    hours, turns = int(sum(one.hours for one in results)), sum(one.turns for one in results)
    yield row_of("all of these: virtual time", "", hours, 70, "hours", notes=f"{turns:,} turns of the event loop")
    drained, longest = sum(one.drained_in > 0 for one in results), max((one.drained_in for one in results), default=0)
    stuck = sum(not one.drained_in and not one.broken for one in results)
    notes = f"within {longest:.0f} virtual seconds at most, {LIVELY:g} are allowed"
    what = "all delivered once nothing fails any more"
    yield row_of(what, "", drained, 0, "seeds", notes=notes, violations=stuck)


def _notes(results: Sequence[Result]) -> str:
    fired, counts = _sum(one.fired for one in results), _sum(one.counts for one in results)
    sums = {
        "faults": fired.total(),
        "acknowledged": sum(one.acknowledged for one in results),
        "stored": sum(one.stored for one in results),
        "ambiguous commits of the store": fired["store: committed, and the answer lost"],
        "ambiguous commits of the outbox": fired["outbox: committed, and ends in an error"],
        "commits checked": sum(one.checks for one in results),
    }
    told = sums | {what: counts[what] for what in TOLD}
    return f"{sum(one.hours for one in results):.1f} virtual hours, {_told(told)}"


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def problems(results: Sequence[Result]) -> tuple[str, ...]:
    """Return the first broken promise of each seed, with the seed."""
    return tuple(f"seed {result.seed} ({result.profile}): {result.broken[0]}" for result in results if result.broken)


def judged(name: str, results: Sequence[Result]) -> Row:
    """Return the row of a control: a promise has to be broken."""
    caught = [result for result in results if _shown(result)]
    notes = f"caught by: {_shown(caught[0])[0]}" if caught else "not caught"
    told, found = problems(caught)[:1], len(caught)
    return row_of(name, "", len(results), 0, "seeds", told, notes, violations=found, control=True)


def _shown(result: Result) -> list[str]:
    """Return the broken promises; that a process died of an error may only say that the defect was planted badly."""
    return [broken for broken in result.broken if f" {DIED} " not in broken]
