"""Run tables of experiments: a world, what is done to it, a check at the end, and controls with a defect planted.

A part of the proof is a table of :class:`Experiment`. Each is run on an empty store of each of its kinds, in a folder
of its own, and returns a :class:`Tally`: what was counted, and what is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from faulthandler import dump_traceback_later
from functools import partial
from pathlib import Path
from typing import Any, Final

from letopis import Bounds, ConversationStore, History, LetopisError, Message, OutboxFull, OutboxUnavailable, Receipt
from tests.campaigns.invariants import Verdict, check
from tests.campaigns.record_invariants import RecordAck
from tests.campaigns.states import Ack
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import KINDS, fresh
from tests.support.defects import planted
from tests.support.fix_disk import NotHere
from tests.support.promises import acks_of
from tests.support.victim import OUTBOX, url_of

DRAIN_SECONDS: Final = 30.0
HANGS_SECONDS: Final = 1_200  # of a job in a process of its own; on an idle machine each takes less than half of it
PROCESSES_AT_A_TIME: Final = 4
SETTLING_SECONDS: Final = 0.5  # in which a server may still be committing for a client that is gone


NO_DISK_BOUND: Final = Bounds(min_free_bytes=None)


@dataclass(slots=True)
class Tally:
    """What an experiment counted, and what it found wrong.

    :ivar count: faults that fired, inputs, reads: what the row counts.
    :ivar untold: violations beyond ``problems``, which has the first ones in words.
    :ivar figures: other counts, by what they are of.
    """

    count: int = 0
    acknowledged: int = 0
    stored: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    untold: int = 0
    figures: Counter[str] = field(default_factory=Counter)
    notes: str = ""

    @property
    def violations(self) -> int:
        return len(self.problems) + self.untold

    def require(self, right: bool, problem: str) -> None:
        """Note a problem unless something is right."""
        if not right:
            self.problems.append(problem)

    def blame(self, problems: Iterable[str], *, where: str = "") -> None:
        self.problems += [f"{where}: {problem}" if where else problem for problem in problems]

    def take(self, verdict: Verdict, *, where: str = "") -> None:
        self.acknowledged += verdict.acknowledged
        self.stored += verdict.stored
        self.untold += verdict.problem_count - len(verdict.problems)
        self.blame(verdict.problems, where=where)

    def add(self, other: Tally, *, where: str = "") -> None:
        """Add the result of a run of its own."""
        self.count += other.count
        self.acknowledged += other.acknowledged
        self.stored += other.stored
        self.refused += other.refused
        self.untold += other.untold
        self.figures += other.figures
        self.blame(other.problems, where=where)

    def told(self) -> str:
        """Return the other counts in words, the most frequent first."""
        return ", ".join(f"{count:,} {what}" for what, count in self.figures.most_common())

    def row(self, what: str, where: str = "", unit: str = "", least: int = 0, *, control: bool = False) -> Row:
        given = (what, where, self.count, 0 if control else least, unit, self.problems, self.notes)
        return row_of(*given, violations=self.violations, control=control)


@dataclass(slots=True)
class World:
    """An outbox file and a store in a folder, what was promised of them, and what is wrong with them."""

    folder: Path
    url: str = ""  # by default an SQLite file beside the outbox
    tally: Tally = field(default_factory=Tally)
    acks: list[Ack] = field(default_factory=list)
    records: list[RecordAck] = field(default_factory=list)
    name: str = OUTBOX

    def __post_init__(self) -> None:
        self.url = self.url or url_of(self.folder)

    @property
    def outbox(self) -> Path:
        return self.folder / self.name

    def open(self, **options: Any) -> History:
        return History(self.outbox, store=self.url, **{"watch": False, "bounds": NO_DISK_BOUND, **options})

    def keep(self, receipt: Receipt) -> None:
        self.acks += acks_of(receipt)

    async def append(self, history: History, name: str, text: str, *, own: bool = False) -> bool:
        """Append a message, in a transaction of the bot's own if asked; return whether it was taken and not refused."""
        try:
            await self.appended(history, name, text, own=own)
        except (OutboxFull, OutboxUnavailable):
            self.tally.refused += 1
            return False
        return True

    async def appended(self, history: History, name: str, text: str, *, own: bool = False) -> Receipt:
        """Append a message, keep what that promises, and return its receipt."""
        if own:
            async with history.transaction() as transaction:
                receipt = await transaction.append(name, Message.user(text))
        else:
            receipt = await history.append(name, Message.user(text))
        self.keep(receipt)
        return receipt

    async def append_some(self, history: History, count: int) -> int:
        """Append messages, every fifth in a transaction, through any refusal; return how many were taken."""
        before = len(self.acks)
        for number in range(count):
            try:
                await self.append(history, f"chat-{number % 3}", f"message {number}", own=number % 5 == 4)
            except LetopisError:
                self.tally.refused += 1
            except Exception as error:  # anything else is not what the documentation names
                self.tally.problems.append(f"raised {type(error).__module__}.{type(error).__name__}")
        return len(self.acks) - before

    async def drain(self, history: History, problem: str = "not drained", *, patience: float = DRAIN_SECONDS) -> None:
        self.tally.require(await history.drained(patience), problem)

    async def go_on(self, *, patience: float = DRAIN_SECONDS) -> None:
        """Start again on what is there, append, and have everything delivered."""
        async with self.open() as history:
            await self.appended(history, "chat", "and then")
            await self.drain(history, "not drained after a start", patience=patience)

    async def examine(self, *others: Path, drained: bool = True, settling: bool = False) -> Verdict:
        """Examine the outbox, other outboxes of the store, and the store.

        :param settling: look a second time at what is wrong: a server may just be committing for a dead client.
        """
        given: dict[str, Any] = {"acknowledged": list(self.acks), "records": list(self.records), "drained": drained}
        verdict = await check([self.outbox, *others], self.url, **given)
        if settling and not verdict.ok:
            await asyncio.sleep(SETTLING_SECONDS)
            verdict = await check([self.outbox, *others], self.url, **given)
        return verdict

    def holding(self, words: str) -> list[str]:
        """Return the names of the files that hold words which were erased."""
        files = [path for path in self.folder.iterdir() if path.is_file()]
        return [path.name for path in files if words.encode() in path.read_bytes()]

    async def judge(self, *others: Path, drained: bool = True) -> Tally:
        """Add what an examination counts and finds to the tally, and return that."""
        self.tally.take(await self.examine(*others, drained=drained))
        return self.tally


@dataclass(frozen=True, slots=True)
class Setting:
    """Where an experiment runs: an empty store, an empty folder, and chance that follows from the seed.

    :ivar control: whether the promise has to be taken away.
    :ivar defect: what is planted here, and has to be planted in the processes that it starts.
    """

    options: Options
    kind: str
    url: str
    folder: Path
    control: bool = False
    defect: str = ""

    @property
    def seed(self) -> int:
        return self.options.seed

    def many(self, whole: int, short: int) -> int:
        return self.options.many(whole, short)

    def world(self) -> World:
        return World(self.folder, self.url)

    @contextmanager
    def apart(self, name: str) -> Iterator[Setting]:
        """Give an empty store and an empty folder of their own."""
        place = self.folder / name
        place.mkdir()
        with fresh(self.kind or "sqlite", place, "store") as store:
            yield replace(self, url=store.url, folder=place)


Run = Callable[[Setting], Tally | Coroutine[Any, Any, Tally]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A row of a table.

    :ivar run: does it, and returns what came of it.
    :ivar least: the count that the whole proof has to reach, on each kind of store or on all.
    :ivar on: kinds of store; empty where an experiment needs none, or makes its own.
    :ivar short: whether the short proof has it, or the kinds on which it does.
    :ivar defect: what is planted; the experiment is a control then, and has to fail.
    :ivar control: whether it is a control that takes the promise away in another manner.
    :ivar missing: returns why this machine cannot do it.
    """

    what: str
    run: Run
    unit: str
    least: int | Mapping[str, int] = 0
    _: KW_ONLY
    on: Sequence[str] = KINDS
    where: str = ""
    short: bool | Sequence[str] = True
    defect: str = ""
    control: bool = False
    missing: Callable[[], str] = str

    @property
    def is_control(self) -> bool:
        return self.control or bool(self.defect)

    def prove(self, options: Options, kind: str = "", *, folder: str) -> Row:
        control, where = self.is_control, self.where or kind
        place = options.folder / folder
        place.mkdir(parents=True)
        with fresh(kind or "sqlite", place, "store") as store:
            if reason := self.missing() or store.missing:
                return Row(what=self.what, where=where, control=control, missing=reason)
            setting = Setting(options, kind, store.url, place, control, self.defect)
            try:
                with planted(self.defect):
                    tally = self.run(setting)
                    if not isinstance(tally, Tally):
                        tally = asyncio.run(tally)
            except NotHere as reason:
                return Row(what=self.what, where=where, control=control, missing=str(reason))
        least = self.least if isinstance(self.least, int) else self.least[kind]
        return tally.row(self.what, where, self.unit, least, control=control)

    def chosen(self, kind: str, *, short: bool) -> bool:
        if kind not in (self.on or ("",)):
            return False
        return not short or (self.short if isinstance(self.short, bool) else kind in self.short)


Job = tuple[Experiment, str, str]  # and the kind of store, and the name of its folder


def jobs_of(options: Options, table: Sequence[Experiment]) -> list[Job]:
    """Return what is run of a table, store by store, then what needs none."""
    return [
        (experiment, kind, f"{number}-{kind}")
        for kind in (*KINDS, "")
        for number, experiment in enumerate(table)
        if experiment.chosen(kind, short=options.short)
    ]


def prove_table(options: Options, table: Sequence[Experiment], *, at_a_time: int = 1) -> Iterator[Row]:
    def prove(job: Job) -> Row:
        return job[0].prove(options, job[1], folder=job[2])

    if at_a_time == 1:
        yield from map(prove, jobs_of(options, table))
        return
    with ThreadPoolExecutor(at_a_time) as pool:
        yield from pool.map(prove, jobs_of(options, table))


def prove_quietly(options: Options, jobs: Sequence[Job]) -> list[Row]:
    logging.disable()
    return [experiment.prove(options, kind, folder=folder) for experiment, kind, folder in jobs]


def prove_by_kind(options: Options, table: Sequence[Experiment]) -> Iterator[Row]:
    """Run a table in processes: one for each kind of store, in a short proof one for all; as many for the controls."""
    groups: dict[tuple[str, bool], list[Job]] = {}
    for job in jobs_of(options, table):
        groups.setdefault(("" if options.short else job[1], job[0].is_control), []).append(job)
    jobs = [partial(prove_quietly, options, group) for group in groups.values()]
    yield from in_processes(jobs, at_a_time=PROCESSES_AT_A_TIME)


def streamed(rows: AsyncIterator[Row]) -> Iterator[Row]:
    """Yield rows as they come, of a loop of their own that runs until they do."""

    async def following() -> Row | None:
        return await anext(rows, None)

    with asyncio.Runner() as runner:
        while (row := runner.run(following())) is not None:
            yield row


def in_processes(jobs: Sequence[Callable[[], Iterable[Row]]], *, at_a_time: int) -> Iterator[Row]:
    """Do each job in a new process, and yield their rows: what one plants or patches is in no other.

    One that hangs says where, and its process ends.

    :raises BrokenProcessPool: a process ended before its job.
    """
    spawn, limit = multiprocessing.get_context("spawn"), partial(dump_traceback_later, HANGS_SECONDS, exit=True)
    with ProcessPoolExecutor(at_a_time, mp_context=spawn, max_tasks_per_child=1, initializer=limit) as pool:
        for rows in [pool.submit(job) for job in jobs]:
            yield from rows.result()


async def migrated(url: str) -> None:
    async with ConversationStore.open(url, migrate=True):
        return
