"""Send real conversations through the real command into real stores, while the relay and the store are broken.

What is exported has to be what was imported, in every conversation; the logs hold every invariant; as many faults fired
as were asked for; and a store that is damaged behind its back is noticed.
"""

import asyncio
import json
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from letopis.store.model.identifiers import derived_event_id
from tests.campaigns import dataset
from tests.campaigns.invariants import Ack
from tests.campaigns.processes import Failed, Place, Probe, Progress, Relay, finish
from tests.proof.harness import Tally, World
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import KINDS
from tests.support.damage import CONTROLS, damage
from tests.support.servers import MariaDBServer, PostgresServer, ServerUnavailable

WHAT: Final = "real conversations imported, delivered under kills, cuts and an outage, and exported: equal"
CONTROL: Final = "a message lost, two swapped, one stored twice behind its back: seen in the export and in the logs"
FAULTS: Final = {"kill": 20, "cut": 20, "outage": 1}
OUTAGE_SECONDS: Final = 12.0  # of an SQLite file, longer than a relay waits for a lock; a server is away for one second
TIMEOUT_SECONDS: Final = 600.0  # for the delivery into one store
POLL: Final = 0.003
SPARE: Final = 6
"""Waves that bring no faults of their own, for those that a quick relay left nothing to hit."""
Conversations = Mapping[str, Sequence[tuple[str | None, str]]]  # of each message its id, and the whole line


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to break, some seconds after the relay is seen at work."""

    kind: str
    delay: float


Wave = tuple[int, list[Fault]]  # up to which line it imports, and what breaks meanwhile


@dataclass(frozen=True, slots=True)
class Target:
    """An empty history store that may be broken; both ways return how many connections, or stores, that hit."""

    url: str
    cut: Callable[[float], int]
    outage: Callable[[], int]


@dataclass(slots=True)
class Campaign:
    """One store's run: import, break, deliver, export, compare."""

    target: Target
    place: Place
    source: Path
    seed: int
    relay: Relay = field(init=False)
    tally: Tally = field(default_factory=Tally)
    deadline: float = field(default_factory=lambda: time.monotonic() + TIMEOUT_SECONDS)

    def __post_init__(self) -> None:
        self.relay = Relay(self.place)

    def run(self, faults: Mapping[str, int]) -> tuple[Tally, Tally]:
        """Run it to its end; return what came of it, and of the controls."""
        tally, controls = self.tally, Tally()
        try:
            self._deliver(schedule(self.source, faults, self.seed))
            self._check()
            if not tally.problems:
                controls = self._try_controls()
        except Failed as error:
            tally.problems.append(str(error))
        finally:
            self.relay.close()
        for kind, wanted in faults.items():
            tally.require(tally.figures[kind] >= wanted, f"{kind}: only {tally.figures[kind]} of {wanted} fired")
        tally.count = sum(tally.figures[kind] for kind in faults)
        by_kind = ", ".join(f"{tally.figures[kind]} {kind}s" for kind in faults)
        tally.notes = (
            f"{tally.figures['conversations']:,} conversations, {tally.figures['messages']:,} messages; {by_kind};"
            f" {tally.figures['connections']} connections hit"
        )
        return tally, controls

    def _deliver(self, waves: Sequence[Wave]) -> None:
        self.place.run("db", "upgrade", timeout=60)
        self.place.run("init", timeout=60)
        left, done = list[Fault](), 0
        part = self.place.folder / "part.jsonl"
        words = ("history", "import", "jsonl", str(part))
        with self.source.open("rb") as file, closing(Probe(self.place.outbox)) as probe:
            for upto, faults in waves:
                part.write_bytes(b"".join(islice(file, upto - done)))
                done = upto
                with self.place.start(*words) as importing:
                    try:
                        left += faults
                        self._break(probe, importing, left)
                        finish(importing, words, timeout=max(1.0, self.deadline - time.monotonic()))
                    finally:
                        importing.kill()
            while (progress := probe.look()).pending:
                self._keep_going(probe, f"{progress.pending} events are still pending")
        code = self.relay.stop()
        self.tally.require(not code, f"the relay ended with {code} after SIGTERM")
        self.tally.require(not self.relay.deaths, f"the relay ended by itself, with {self.relay.deaths}")

    def _break(self, probe: Probe, importing: Popen[str], left: list[Fault]) -> None:
        """Fire what is left; what comes too late, because everything is delivered, waits for the next wave."""
        while left:
            progress = self._keep_going(probe, f"{len(left)} faults have not fired")
            if progress.pending and progress.holder == self.relay.pid:
                time.sleep(left[0].delay)
                # What became of it in the meantime decides whether it counts.
                if probe.look().pending and self._fire(left[0]):
                    left.pop(0)
                else:
                    left[0] = replace(left[0], delay=left[0].delay / 2)
            elif not progress.pending and importing.poll() is not None:
                return

    def _keep_going(self, probe: Probe, left: str) -> Progress:
        if time.monotonic() > self.deadline:
            raise Failed(f"out of time: {left}; blocked: {probe.blocked()}\n{self.relay.tail()}")
        self.relay.ensure()
        time.sleep(POLL)
        return probe.look()

    def _fire(self, fault: Fault) -> bool:
        if fault.kind == "kill":
            hit = int(self.relay.kill())
        elif fault.kind == "cut":
            hit = self.target.cut(fault.delay * 20)
            self.tally.figures["connections"] += hit
        else:
            hit = self.target.outage()
        self.tally.figures[fault.kind] += hit > 0
        return hit > 0

    def _check(self) -> None:
        imported, exported = read(self.source), self._export("exported.jsonl")
        self.tally.figures.update(conversations=len(exported), messages=sum(map(len, exported.values())))
        self.tally.blame(differences(imported, exported), where="the export differs from the import")
        # The id of each line's event is derived from the line's own.
        acks = [Ack(name, derived_event_id(name, one)) for name, lines in imported.items() for one, _ in lines if one]
        verdict = asyncio.run(replace(self._world(), acks=acks).examine())
        self.tally.take(verdict, where="the logs break their invariants")

    def _export(self, name: str, *words: str) -> Conversations:
        path = self.place.folder / name
        path.unlink(missing_ok=True)
        self.place.run("history", "export", "jsonl", str(path), *words, timeout=300)
        return read(path)

    def _try_controls(self) -> Tally:
        """Damage three conversations, each in its own way: the same checks must see each of them."""
        tally, imported = Tally(), read(self.source)
        for control, name in zip(CONTROLS, self._victims(len(CONTROLS)), strict=True):
            asyncio.run(damage(self.target.url, control, name))
            exported = self._export("control.jsonl", "--conversation", name)
            caught = differences({name: imported[name]}, exported)
            self.tally.require(bool(caught), f"{control} is not seen in the export")
            tally.blame(caught, where=control)
            tally.count += 1
        verdict = asyncio.run(self._world().examine())
        self.tally.require(verdict.problem_count >= len(CONTROLS), f"the damage is not seen in the logs: {verdict}")
        return tally

    def _world(self) -> World:
        return World(self.place.folder, self.target.url)

    def _victims(self, count: int) -> Sequence[str]:
        names = [name for name, lines in read(self.source).items() if len(lines) >= 4]
        return random.Random(self.seed).sample(sorted(names), count)


def schedule(source: Path, faults: Mapping[str, int], seed: int) -> list[Wave]:
    """Return in which parts to import a file, and what to break meanwhile: the same for the same seed.

    Two faults come with a part, so that none of them finds everything delivered.
    """
    lines, chance = source.read_bytes().count(b"\n"), random.Random(seed)
    order = [kind for kind, count in faults.items() if kind != "outage" for _ in range(count)]
    chance.shuffle(order)
    for _ in range(faults.get("outage", 0)):
        order.insert(chance.randint(len(order) // 3, 2 * len(order) // 3), "outage")
    # A cut first: while the relay waits to connect again there is surely something pending for the second.
    pairs = [sorted(order[at : at + 2], key=("cut", "outage", "kill").index) for at in range(0, len(order), 2)]
    waves = [*pairs, *([] for _ in range(SPARE))]
    return [
        (lines * number // len(waves), [Fault(kind, delay=chance.uniform(0, 0.015)) for kind in pair])
        for number, pair in enumerate(waves, 1)
    ]


@contextmanager
def open_target(kind: str, folder: Path) -> Iterator[Target]:
    """Give a store of its own; a server is one that is started for it, since it is crashed."""
    if kind == "sqlite":
        path = folder / "history.db"

        def hold(seconds: float) -> int:
            """Hold the file's lock, which is all that can fail from outside."""
            if not path.exists():
                return 0
            with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                time.sleep(seconds)
                connection.execute("ROLLBACK")
            return 1

        yield Target(f"sqlite:///{path.as_posix()}", hold, lambda: hold(OUTAGE_SECONDS))
        return
    server = PostgresServer.own() if kind == "postgresql" else MariaDBServer.own()

    def crash() -> int:
        server.stop("immediate") if kind == "postgresql" else server.kill()
        time.sleep(1.0)
        server.start()
        return 1

    with server:
        url = server.create_database("letopis_campaign")
        yield Target(url, lambda _: server.terminate_connections(url), crash)


def read(path: Path) -> Conversations:
    """Read a JSONL file; the order between conversations is no promise and is left aside."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return gather(json.loads(line) for line in file)


def gather(lines: Iterable[Mapping[str, Any]]) -> Conversations:
    """Return messages by conversation, each in one text for all ways to write it: UTC, nothing empty."""
    found: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    for line in lines:
        whole = {key: value for key, value in line.items() if value not in (None, {})}
        if "occurred_at" in whole:
            moment = datetime.fromisoformat(whole["occurred_at"]).astimezone(UTC)
            whole["occurred_at"] = moment.isoformat(timespec="microseconds")
        text = json.dumps(whole, sort_keys=True, ensure_ascii=False)
        found[line["conversation_id"]].append((line.get("id"), text))
    return found


def differences(imported: Conversations, exported: Conversations) -> list[str]:
    """Return the conversations that are not the same on both sides: what is lost, too many, or elsewhere."""
    problems = []
    for name in sorted(imported.keys() | exported.keys()):
        given, found = list(imported.get(name, ())), list(exported.get(name, ()))
        if given != found:
            went_in, came_out = Counter(given), Counter(found)
            lacks, more = went_in - came_out, came_out - went_in
            how = f"{lacks.total()} lacking, {more.total()} too many" if lacks or more else "out of order"
            problems.append(f"{name!r}: {len(given)} in, {len(found)} out: {how}")
    return problems


def prove(options: Options) -> Iterator[Row]:
    source, sample = options.folder / "chitchat.jsonl", 0.03 if options.short else 1.0
    dataset.write(source, sample=sample, seed=options.seed)
    for kind in KINDS:
        folder = options.folder / kind
        folder.mkdir()
        try:
            with open_target(kind, folder) as target:
                place = Place(folder=folder, outbox=folder / "bot.outbox.db", store=target.url)
                tally, controls = Campaign(target, place, source, options.seed).run(FAULTS)
        except ServerUnavailable as missing:
            yield Row(what=WHAT, where=kind, missing=str(missing))
            continue
        yield tally.row(WHAT, kind, "faults", sum(FAULTS.values()))
        yield controls.row(CONTROL, kind, "damages", control=True)
