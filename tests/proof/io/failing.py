"""Let each write and each flush of a scripted bot fail in turn, once or from then on."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from letopis.outbox import History
from letopis.store import Message
from letopis.store.errors import LetopisError
from tests.campaigns.invariants import check
from tests.proof.io.victim import obey
from tests.support.child import command
from tests.support.promises import read_promises
from tests.support.victim import HISTORY, OUTBOX

NUMBER: Final = 400  # the call that fails, idle ones before it counted: more than any thread of the script makes
TIMEOUT_SECONDS: Final = 60.0
DRAINED: Final = 20.0
RESTARTED: Final = 5
"""One in this many runs with one fault is opened again afterwards: each already continued in its own process."""
_ORDER: Final = re.compile(r'pwrite64\(\d+, "order (\d+)"')
_THREAD: Final = re.compile(r'pwrite64\(\d+, "thread (\d+)"')


@dataclass(slots=True)
class Outcome:
    """The result of a series of faults."""

    runs: int = 0
    faults: int = 0
    hit: int = 0
    acknowledged: int = 0
    bad: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, where: str, problems: Iterable[str]) -> None:
        """Count a run, and what is wrong with it."""
        self.runs += 1
        found = list(problems)
        if found:
            self.bad += 1
            self.problems += [f"{where}: {one}" for one in found[:2]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Which call fails: the K-th of one thread of the script, by its number; or of each of them."""

    k: int
    thread: int | None = None

    def __str__(self) -> str:
        return f"number {self.k}" + ("" if self.thread is None else f" of thread {self.thread}")


class Victim:
    """The traced process that runs the script, once an order."""

    def __init__(self, folder: Path, template: Path, *, call: str, error: str, once: bool, careless: bool) -> None:
        self._folder, self._template, self._call = folder, template, call
        self._shared = {"once": once, "careless": careless}
        self._trace = folder / "trace"
        self._numbers = itertools.count(1)
        folder.mkdir()
        calls = ",".join(sorted({call, "pwrite64"}))
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "20", "-o", str(self._trace), "-e", f"trace={calls}"]
        inject = f"inject={call}:error={error}:when={NUMBER}{'' if once else '+'}"
        self._process = subprocess.Popen(
            [*strace, "-e", inject, *command(obey, call, NUMBER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that all of it can be ended
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()  # no more orders
        try:
            self._process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(TIMEOUT_SECONDS)
        finally:
            self._process.stdout.close()

    def order(self, fault: Fault) -> Path:
        """Have the script run with this fault; return the folder in which it does."""
        number = next(self._numbers)
        place = self._folder / str(number)
        shutil.copytree(self._template, place)
        assert self._process.stdin is not None
        asked = {"number": number, "folder": str(place), "k": fault.k, "thread": fault.thread}
        self._process.stdin.write(json.dumps(asked | self._shared) + "\n")
        self._process.stdin.flush()
        return place

    def answer(self) -> dict[str, Any]:
        """Return what the script told of its oldest order that was not asked for yet."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the victim ended by itself, with {self._process.wait(TIMEOUT_SECONDS)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def calls(self) -> dict[int, int]:
        """Return how many calls each thread of the script makes when nothing fails."""
        place = self.order(Fault(k=0))
        told = self.answer()
        shutil.rmtree(place)
        if told["refused"] or told["problems"]:
            raise RuntimeError(f"the script does not run on a sound disk either: {told}")
        with self._trace.open(encoding="ascii", errors="replace") as lines:
            return calls_of(lines, self._call)

    def fired(self) -> Counter[int]:
        """Return how often a fault fired, by the number of the order."""
        with self._trace.open(encoding="ascii", errors="replace") as lines:
            return fired_in(lines)


def fired_in(lines: Iterable[str]) -> Counter[int]:
    """Return how often a fault fired, by the number of the order that was being carried out."""
    fired: Counter[int] = Counter()
    order = 0
    for line in lines:
        if (found := _ORDER.search(line)) is not None:
            order = int(found[1])
        elif "(INJECTED)" in line:
            fired[order] += 1
    return fired


def calls_of(lines: Iterable[str], call: str) -> dict[int, int]:
    """Return how many calls each thread made after it had told its number."""
    threads: dict[str, int] = {}
    counts: dict[int, int] = {}
    for line in lines:
        task = line.partition(" ")[0]
        if (found := _THREAD.search(line)) is not None:
            threads[task] = int(found[1])
        elif task in threads and f" {call}(" in line:
            counts[threads[task]] = counts.get(threads[task], 0) + 1
    return counts


def fail_each(
    folder: Path,
    template: Path,
    *,
    call: str,
    error: str,
    once: bool,
    choose: Callable[[dict[int, int]], Sequence[Fault]],
    careless: bool = False,
) -> Outcome:
    """Have a call of the script fail, one after the other; look into what each run leaves."""
    outcome = Outcome()
    with Victim(folder, template, call=call, error=error, once=once, careless=careless) as victim:
        faults = choose(victim.calls())
        places = [victim.order(fault) for fault in faults[:1]]
        for number, fault in enumerate(faults):
            told = victim.answer()
            if number + 1 < len(faults):  # it works on the next while this one is looked into
                places.append(victim.order(faults[number + 1]))
            outcome.refused.update(told["refused"])
            acknowledged, problems = asyncio.run(
                _look(places[number], once=once, restart=not once or number % RESTARTED == 0)
            )
            outcome.acknowledged += acknowledged
            outcome.add(f"{call} {fault}, {error}", [*told["problems"], *problems])
            shutil.rmtree(places[number])
        fired = victim.fired()
    outcome.faults, outcome.hit = sum(fired.values()), len(fired)
    return outcome


async def _look(place: Path, *, once: bool, restart: bool) -> tuple[int, list[str]]:
    """Look into what a run left behind, on a sound disk; return how much was acknowledged, and what is wrong."""
    acks = read_promises((place / "acks").read_bytes()).acks
    outbox, store = place / OUTBOX, f"sqlite:///{(place / HISTORY).as_posix()}"
    try:
        problems = list((await check([outbox], store, acknowledged=acks, drained=once)).problems)
        if not restart:
            return len(acks), problems
        async with History(outbox, store=store, watch=False, min_free_bytes=None) as history:
            await history.append("chat-1", Message.user("afterwards"))
            if not await history.drained(DRAINED):
                problems.append("is not drained after a restart")
        problems += (await check([outbox], store, acknowledged=acks, drained=True)).problems
    except (LetopisError, OSError) as error:
        problems = [f"cannot be used after a restart: {error}"]
    return len(acks), problems
