"""Send real conversations through the real command into real stores, while the relay is killed.

What is exported has to be what was imported, in every conversation; the logs hold every invariant; as many kills hit a
relay at work as were asked for; and a store that is damaged behind its back is noticed.
"""

import asyncio
import json
import random
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

from letopis.store.model.identifiers import derived_event_id
from tests.campaigns.invariants import Ack
from tests.campaigns.processes import Failed, Place, Probe, Progress, Relay, finish
from tests.proof.harness import Tally, World
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import KINDS, fresh
from tests.support.store_changes import CONTROLS, damage

WHAT: Final = "real conversations imported, delivered by a relay that is killed, and exported: equal"
CONTROL: Final = "a message lost, two swapped, one stored twice behind its back: seen in the export and in the logs"
KILLS: Final = 20
SHORT_KILLS: Final = 4
SPARE: Final = 6
"""Parts of the file at most for kills that a quick relay left nothing to hit."""
MAX_DELAY_SECONDS: Final = 0.015  # from when the relay is seen at work to its kill
TIMEOUT_SECONDS: Final = 600.0  # for the delivery into one store
POLL: Final = 0.003
Conversations = Mapping[str, Sequence[tuple[str | None, str]]]  # of each message its id, and the whole line


@dataclass(slots=True)
class Campaign:
    """One store's run: import, kill, deliver, export, compare."""

    place: Place
    source: Path
    seed: int
    kills: int
    relay: Relay
    tally: Tally = field(default_factory=lambda: Tally(notes="cut short"))
    deadline: float = field(default_factory=lambda: time.monotonic() + TIMEOUT_SECONDS)

    def run(self) -> tuple[Tally, Tally]:
        """Run it to its end; return what came of it, and of the controls."""
        tally, controls = self.tally, Tally()
        try:
            self._deliver()
            self._check()
            if not tally.problems:
                controls = self._try_controls()
        except Failed as error:
            tally.problems.append(str(error))
        finally:
            self.relay.close()
        return tally, controls

    def _deliver(self) -> None:
        """Import the file part by part, and kill the relay twice during each of them."""
        self.place.run("db", "upgrade", timeout=60)
        self.place.run("init", timeout=60)
        chance, parts = random.Random(self.seed), self.kills // 2 + min(SPARE, self.kills // 2)
        lines = self.source.read_bytes().count(b"\n")
        left, part = list[float](), self.place.folder / "part.jsonl"
        words = ("history", "import", "jsonl", str(part))
        with self.source.open("rb") as file, closing(Probe(self.place.outbox)) as probe:
            for number in range(parts):
                size = lines * (number + 1) // parts - lines * number // parts
                part.write_bytes(b"".join(islice(file, size)))
                if number < self.kills // 2:
                    left += [chance.uniform(0, MAX_DELAY_SECONDS) for _ in range(2)]
                with self.place.start(*words) as importing:
                    try:
                        self._kill(probe, importing, left)
                        finish(importing, words, timeout=max(1.0, self.deadline - time.monotonic()))
                    finally:
                        importing.kill()
            while (progress := probe.look()).pending:
                self._keep_going(probe, f"{progress.pending} events are still pending")
        code = self.relay.stop()
        self.tally.require(not code, f"the relay ended with {code} after SIGTERM")
        self.tally.require(not self.relay.deaths, f"the relay ended by itself, with {self.relay.deaths}")

    def _kill(self, probe: Probe, importing: Popen[str], left: list[float]) -> None:
        """Kill the relay as often as is left; what comes too late, as all is delivered, waits for the next part."""
        while left:
            progress = self._keep_going(probe, f"{len(left)} kills have hit nothing")
            if progress.pending and progress.holder == self.relay.pid:
                time.sleep(left[0])
                # What became of it in the meantime decides whether it counts.
                if probe.look().pending and self.relay.kill():
                    self.tally.count += 1
                    left.pop(0)
                else:
                    left[0] /= 2
            elif not progress.pending and importing.poll() is not None:
                return

    def _keep_going(self, probe: Probe, left: str) -> Progress:
        if time.monotonic() > self.deadline:
            raise Failed(f"out of time: {left}; blocked: {probe.blocked()}\n{self.relay.tail()}")
        self.relay.ensure()
        time.sleep(POLL)
        return probe.look()

    def _check(self) -> None:
        imported, exported = read(self.source), self._export("exported.jsonl")
        self.tally.notes = f"{len(exported):,} conversations, {sum(map(len, exported.values())):,} messages"
        self.tally.blame(differences(imported, exported), where="the export differs from the import")
        # The id of each line's event is derived from the line's own.
        acks = [Ack(name, derived_event_id(name, one)) for name, lines in imported.items() for one, _ in lines if one]
        verdict = asyncio.run(World(self.place.folder, self.place.store, acks=acks).examine())
        self.tally.take(verdict, where="the logs break their invariants")

    def _export(self, name: str, *words: str) -> Conversations:
        path = self.place.folder / name
        path.unlink(missing_ok=True)
        self.place.run("history", "export", "jsonl", str(path), *words, timeout=300)
        return read(path)

    def _try_controls(self) -> Tally:
        """Damage three conversations, each in its own way: the same checks must see each of them."""
        tally, imported = Tally(), read(self.source)
        names = sorted(name for name, lines in imported.items() if len(lines) >= 4)
        victims = random.Random(self.seed).sample(names, len(CONTROLS))
        for control, name in zip(CONTROLS, victims, strict=True):
            asyncio.run(damage(self.place.store, control, name))
            exported = self._export("control.jsonl", "--conversation", name)
            caught = differences({name: imported[name]}, exported)
            self.tally.require(bool(caught), f"{control} is not seen in the export")
            tally.blame(caught, where=control)
            tally.count += 1
        verdict = asyncio.run(World(self.place.folder, self.place.store).examine())
        self.tally.require(verdict.problem_count >= len(CONTROLS), f"the damage is not seen in the logs: {verdict}")
        return tally


def read(path: Path) -> Conversations:
    """Read messages by conversation, each in one text for all ways to write it: UTC, nothing empty."""
    found: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in map(json.loads, file):
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


def write(path: Path, *, sample: float, seed: int) -> None:
    """Write a share of the package `chitchat-dataset`, interleaved by time, as a bot would have met it."""
    lines: list[tuple[str, int, int, dict[str, Any]]] = []
    names = random.Random(seed).sample(sorted(corpus()), max(1, round(len(corpus()) * sample)))
    for place, name in enumerate(sorted(names)):
        for number, line in enumerate(conversation_lines(name), 1):
            if place % 10 == 3:
                del line["id"]
            lines.append((line["occurred_at"], place, number, line))
    lines.sort(key=lambda entry: entry[:3])  # within a conversation, times never step back
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for *_, line in lines)


def conversation_lines(name: str) -> Iterator[dict[str, Any]]:
    """Yield the messages of a conversation of the package, as lines of JSONL."""
    turns = corpus()[name]["messages"]
    first = turns[0][0]["sender"]
    told = ((turn, one) for turn, utterances in enumerate(turns, 1) for one in utterances)
    for number, (turn, one) in enumerate(told, 1):
        yield {
            "conversation_id": name,
            "role": "user" if one["sender"] == first else "assistant",
            "content": one["text"],
            "id": f"{number}",
            "owner": first,
            "occurred_at": one["timestamp"],
            "metadata": {"sender": one["sender"], "turn": turn},
        }


@cache
def corpus() -> dict[str, Any]:
    import chitchat_dataset  # of the group pages: not every test of a module that knows it needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves its file to the collector
        return dict(chitchat_dataset.Dataset())


def prove(options: Options) -> Iterator[Row]:
    source = options.folder / "chitchat.jsonl"
    sample, kills = (0.01, SHORT_KILLS) if options.short else (1.0, KILLS)
    write(source, sample=sample, seed=options.seed)
    for kind in KINDS:
        folder = options.folder / kind
        folder.mkdir()
        with fresh(kind, folder, "history") as store:
            if store.missing:
                yield Row(what=WHAT, where=kind, missing=store.missing)
                continue
            place = Place(folder=folder, outbox=folder / "bot.outbox.db", store=store.url)
            tally, controls = Campaign(place, source, options.seed, kills, Relay(place)).run()
        yield tally.row(WHAT, kind, "kills", kills)
        yield controls.row(CONTROL, kind, "damages", control=True)
