"""Send real conversations through the real command into real stores, while the relay and the store are broken.

::

    python -m tests.campaigns.chitchat --store all                  # everything; about ten minutes on two cores
    python -m tests.campaigns.chitchat --store all --sample 0.01    # what every change has to pass
    python -m tests.campaigns.chitchat --sample 0.01 --control swap # must fail

It ends with 0 only if the export equals the import in every conversation, the logs hold every invariant, as many faults
fired as were asked for, and the controls were caught.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from letopis.store.model.identifiers import derived_event_id
from tests.campaigns import comparison, dataset
from tests.campaigns.dataset import Written
from tests.campaigns.invariants import Ack, check
from tests.campaigns.processes import Failed, Place, Probe, Progress, Relay, finish
from tests.campaigns.schedule import Fault, Kind, Wave, schedule
from tests.campaigns.targets import KINDS, Target, open_target
from tests.support.damage import CONTROLS, damage
from tests.support.servers import ServerUnavailable

POLL: Final = 0.003


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one store's campaign came to."""

    store: str
    version: str = ""
    conversations: int = 0
    messages: int = 0
    events: int = 0
    waves: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)
    connections_hit: int = 0
    relay_starts: int = 0
    noticed: dict[str, int] = field(default_factory=dict)
    logged_errors: list[str] = field(default_factory=list)
    digest: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    controls: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return True if everything held, every fault fired and every control was caught."""
        return not self.problems


class Campaign:
    """One store's run: import, break, deliver, export, compare."""

    def __init__(self, target: Target, folder: Path, *, options: argparse.Namespace, source: Path, written: Written):
        self._target = target
        self._options = options
        self._source = source
        self._written = written
        self._place = Place(folder=folder, outbox=folder / "bot.outbox.db", store=target.url)
        self._relay = Relay(self._place)
        self._deadline = time.monotonic() + options.timeout
        self._fired: Counter[Kind] = Counter()
        self._waiting: list[Fault] = []
        self.outcome = Outcome(
            store=target.kind,
            version=target.version(),
            asked={"kill": options.kills, "cut": options.cuts, "outage": options.outages},
        )

    def run(self) -> Outcome:
        """Run it to its end; the outcome reports what went wrong."""
        outcome, started = self.outcome, time.monotonic()
        try:
            self._deliver()
            outcome.seconds["deliver"] = time.monotonic() - started
            if self._options.control is not None:
                self._damage(self._options.control, self._victims(1)[0])
            self._check()
            if not outcome.problems:
                self._try_controls()
        except Failed as error:
            outcome.problems.append(str(error))
        finally:
            self._relay.close()
        outcome.fired = {kind: self._fired[kind] for kind in ("kill", "cut", "outage")}
        for kind, asked in outcome.asked.items():
            if outcome.fired[kind] < asked:
                outcome.problems.append(f"{kind}: only {outcome.fired[kind]} of {asked} fired")
        outcome.seconds["all"] = time.monotonic() - started
        return outcome

    # --- deliver -----------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        self._place.run("db", "upgrade", timeout=60)
        options = self._options
        waves = schedule(
            lines=self._written.messages,
            kills=options.kills,
            cuts=options.cuts,
            outages=options.outages,
            seed=options.seed,
        )
        self.outcome.waves = len(waves)
        for wave in waves:
            self._wave(wave)
        probe = Probe(self._place.outbox)
        try:
            while (progress := probe.look()).pending:
                self._keep_going(probe, f"{progress.pending} events are still pending")
            self.outcome.events = progress.delivered
        finally:
            probe.close()
        if code := self._relay.stop():
            self.outcome.problems.append(f"the relay ended with {code} after SIGTERM")
        if self._relay.deaths:
            self.outcome.problems.append(f"the relay ended by itself, with {self._relay.deaths}")
        self.outcome.relay_starts = self._relay.starts
        noticed, self.outcome.logged_errors = self._relay.noticed()
        self.outcome.noticed = dict(noticed)

    def _wave(self, wave: Wave) -> None:
        part = self._source
        if wave.lines < self._written.messages:
            part = self._place.folder / "part.jsonl"
            copy_lines(self._source, part, wave.lines)
        words = ("history", "import", "jsonl", str(part))
        with self._place.start(*words) as importing:
            try:
                self._waiting += wave.faults
                self._break(importing)
                finish(importing, words, timeout=max(1.0, self._deadline - time.monotonic()))
            finally:
                importing.kill()

    def _break(self, importing: Popen[str]) -> None:
        """Fire what is waiting; what comes too late, because everything is delivered, waits for the next wave."""
        left = self._waiting
        probe: Probe | None = None
        try:
            while left:
                if probe is None and self._relay.pid is not None:
                    probe = Probe.of(self._place.outbox)
                progress = self._keep_going(probe, f"{len(left)} faults have not fired")
                if progress is None:
                    if importing.poll():
                        return  # it failed, and its end will tell why
                    continue
                if progress.delivered >= left[0].after and self._at_work(progress):
                    time.sleep(left[0].delay)
                    # What became of it in the meantime decides whether it counts.
                    if probe is not None and probe.look().pending and self._fire(left[0]):
                        left.pop(0)
                    else:
                        left[0] = left[0].sooner()
                elif not progress.pending and importing.poll() is not None:
                    return
        finally:
            if probe is not None:
                probe.close()

    def _at_work(self, progress: Progress) -> bool:
        return progress.pending > 0 and progress.holder is not None and progress.holder == self._relay.pid

    def _keep_going(self, probe: Probe | None, left: str) -> Progress | None:
        if time.monotonic() > self._deadline:
            stuck = f"; blocked: {probe.blocked()}" if probe is not None else ""
            raise Failed(f"out of time: {left}{stuck}\n{self._relay.tail()}")
        # The import makes the file; a relay has nothing to say before.
        if self._place.outbox.exists():
            self._relay.ensure()
        time.sleep(POLL)
        return None if probe is None else probe.look()

    def _fire(self, fault: Fault) -> bool:
        if fault.kind == "kill":
            hit = int(self._relay.kill())
        elif fault.kind == "cut":
            hit = self._target.cut(fault.delay * 20)
            self.outcome.connections_hit += hit
        else:
            hit = self._target.outage()
        self._fired[fault.kind] += hit > 0
        return hit > 0

    # --- check -------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        outcome, started = self.outcome, time.monotonic()
        exported = self._export("exported.jsonl")
        outcome.seconds["export"] = time.monotonic() - started
        imported = comparison.read(self._source)
        found = comparison.compare(imported, exported)
        outcome.conversations, outcome.messages, outcome.digest = found.conversations, found.messages, found.digest
        if not found.equal:
            outcome.problems.append(f"the export differs from the import: {found}")
        verdict = asyncio.run(
            check([self._place.outbox], self._target.url, acknowledged=acknowledgements(imported), drained=True)
        )
        if not verdict.ok:
            outcome.problems.append(f"the logs break their invariants: {verdict}")
        outcome.seconds["check"] = time.monotonic() - started

    def _export(self, name: str, *words: str) -> comparison.Conversations:
        path = self._place.folder / name
        path.unlink(missing_ok=True)
        self._place.run("history", "export", "jsonl", str(path), *words, timeout=300)
        return comparison.read(path)

    def _try_controls(self) -> None:
        """Damage three conversations, each in its own way: the same checks must see each of them."""
        imported = comparison.read(self._source)
        victims = dict(zip(CONTROLS, self._victims(len(CONTROLS)), strict=True))
        for control, name in victims.items():
            self._damage(control, name)
            exported = self._export("control.jsonl", "--conversation", name)
            caught = not comparison.compare({name: imported[name]}, exported).equal
            self.outcome.controls[control] = "caught" if caught else "MISSED"
        verdict = asyncio.run(check([self._place.outbox], self._target.url, drained=True))
        self.outcome.controls["invariants"] = f"{verdict.problem_count} found"
        if verdict.problem_count < len(CONTROLS) or "MISSED" in self.outcome.controls.values():
            self.outcome.problems.append(f"a control was not caught: {self.outcome.controls}, {verdict}")

    def _victims(self, count: int) -> Sequence[str]:
        names = [name for name, lines in comparison.read(self._source).items() if len(lines) >= 4]
        return random.Random(self._options.seed).sample(sorted(names), count)

    def _damage(self, control: str, name: str) -> None:
        asyncio.run(damage(self._target.url, control, name))


def copy_lines(source: Path, part: Path, lines: int) -> None:
    with source.open("rb") as file, part.open("wb") as out:
        out.writelines(line for line, _ in zip(file, range(lines), strict=False))


def acknowledgements(imported: comparison.Conversations) -> Iterator[Ack]:
    """Yield what the import acknowledged: each line's event, whose id is derived from the line's own, must be there."""
    for name, lines in imported.items():
        for message_id, _ in lines:
            if message_id is not None:
                yield Ack(name, derived_event_id(name, message_id))


def report(written: Written, outcomes: Sequence[Outcome], options: argparse.Namespace) -> str:
    """Return the table as text."""
    rows = [
        f"chitchat-dataset {written.version}, sample {options.sample:g}, seed {options.seed}",
        f"{written.conversations} conversations, {written.messages} messages, the longest {written.longest}",
        "",
        "| store | conversations | messages | relay kills | cuts | outages | controls | seconds | result |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        fired = [f"{one.fired.get(kind, 0)} of {one.asked.get(kind, 0)}" for kind in ("kill", "cut", "outage")]
        caught = sum(word == "caught" for word in one.controls.values())
        rows.append(
            f"| {one.version or one.store} | {one.conversations} | {one.messages} | {' | '.join(fired)} "
            f"| {caught} caught | {one.seconds.get('all', 0):.0f} | {'equal' if one.ok else 'FAILED'} |"
        )
    for one in outcomes:
        told = ", ".join(f"{count} x {what}" for what, count in sorted(one.noticed.items()))
        counts = f"{one.connections_hit} connections hit, {one.relay_starts} relay starts"
        rows += ["", f"{one.store}: {counts}; the relays told of {told or 'no fault'}"]
        rows += [f"{one.store}: the relay logged an error: {text}" for text in one.logged_errors[:5]]
        rows += ["", *(f"{one.store}: {problem}" for problem in one.problems)] if one.problems else []
    return "\n".join(rows)


def as_json(written: Written, outcomes: Sequence[Outcome], options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was counted."""
    return {
        "dataset": asdict(written),
        "sample": options.sample,
        "seed": options.seed,
        "python": platform.python_version(),
        "ok": all(outcome.ok for outcome in outcomes),
        "stores": [{**asdict(outcome), "ok": outcome.ok} for outcome in outcomes],
    }


def run_store(kind: str, folder: Path, *, options: argparse.Namespace, source: Path, written: Written) -> Outcome:
    folder.mkdir()
    try:
        target = open_target(kind, folder)
    except ServerUnavailable as error:
        return Outcome(store=kind, problems=[f"there is no such server here: {error}"])
    try:
        tell(f"{target.version()}: a cut is {target.words[0]}, an outage is {target.words[1]}")
        return Campaign(target, folder, options=options, source=source, written=written).run()
    finally:
        target.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaigns and print the table; return the exit code."""
    options = parser().parse_args(arguments)
    kinds = KINDS if options.store == "all" else (options.store,)
    # If we are ended early, our relay, our server and our files have to go as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="letopis-campaign-"))
    try:
        source = folder / "chitchat.jsonl"
        written = dataset.write(source, sample=options.sample, seed=options.seed)
        outcomes = []
        for kind in kinds:
            outcome = run_store(kind, folder / kind, options=options, source=source, written=written)
            outcomes.append(outcome)
            tell(f"{kind}: {'equal' if outcome.ok else 'FAILED'} in {outcome.seconds.get('all', 0):.1f} s")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            tell(f"kept: {folder}")
    print(report(written, outcomes, options))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(written, outcomes, options), indent=2) + "\n", encoding="utf-8")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    result = argparse.ArgumentParser(prog="python -m tests.campaigns.chitchat", description=__doc__.split("\n")[0])
    result.add_argument("--store", choices=(*KINDS, "all"), default="sqlite", help="default: sqlite")
    result.add_argument("--sample", type=share, default=1.0, help="share of the conversations, up to 1 (default)")
    result.add_argument("--seed", type=int, default=1, help="of the sample and of every fault (default: 1)")
    result.add_argument("--kills", type=int, default=20, help="kill -9 of the relay at work (default: 20)")
    result.add_argument("--cuts", type=int, default=20, help="cuts of the store's connections (default: 20)")
    result.add_argument("--outages", type=int, default=1, help="crashes of the store itself (default: 1)")
    result.add_argument("--control", choices=CONTROLS, help="damage the store before the check: it must then fail")
    result.add_argument("--timeout", type=float, default=600.0, help="seconds for the delivery into one store")
    result.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    result.add_argument("--keep", action="store_true", help="keep the files of the run, and say where")
    return result


def share(text: str) -> float:
    """Read a number above 0, up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def tell(text: str) -> None:
    """Say how it goes, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
