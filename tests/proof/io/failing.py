"""Let each write and each flush of a scripted bot fail in turn, once or from then on."""

import asyncio
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from letopis import LetopisError
from tests.proof.harness import Setting, Tally, World
from tests.proof.io.victim import make, obey
from tests.support.child import command
from tests.support.fix_disk import NotHere, strace
from tests.support.line_process import LineProcess
from tests.support.promises import read_promises

NUMBER: Final = 400  # the call that fails, idle ones before it counted: more than any thread of the script makes
TIMEOUT_SECONDS: Final = 60.0
DRAINED: Final = 20.0
RESTARTED: Final = 5
"""One in this many runs with one fault is opened again afterwards: each already continued in its own process."""
_ORDER: Final = re.compile(r'pwrite64\(\d+, "order (\d+)"')
_THREAD: Final = re.compile(r'pwrite64\(\d+, "thread (\d+)"')
Fault = tuple[int, int | None]
"""Which call fails: the K-th of one thread of the script, by its number; or of each of them."""


class Victim(LineProcess):
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
        super().__init__([*strace, "-e", inject, *command(obey, call, NUMBER)])

    def order(self, fault: Fault) -> Path:
        """Have the script run with this fault; return the folder in which it does."""
        number = next(self._numbers)
        place = self._folder / str(number)
        shutil.copytree(self._template, place)
        k, thread = fault
        asked = {"number": number, "folder": str(place), "k": k, "thread": thread}
        self.tell(json.dumps(asked | self._shared))
        return place

    def outcome(self) -> dict[str, Any]:
        """Return what the script told of its oldest order that was not asked for yet."""
        answer = self.answer(TIMEOUT_SECONDS)
        if "error" in answer:
            raise RuntimeError(f"the victim: {answer['error']}")
        return answer

    def calls(self) -> Counter[int]:
        """Return how many calls each thread of the script makes when nothing fails."""
        place = self.order((0, None))
        told = self.outcome()
        shutil.rmtree(place)
        if told["refused"] or told["problems"]:
            raise RuntimeError(f"the script does not run on a sound disk either: {told}")
        threads: dict[str, int] = {}
        counts: Counter[int] = Counter()
        for line in self._lines():
            task = line.partition(" ")[0]
            if (found := _THREAD.search(line)) is not None:
                threads[task] = int(found[1])
            elif task in threads and f" {self._call}(" in line:  # made after it had told its number
                counts[threads[task]] += 1
        return counts

    def fired(self) -> Counter[int]:
        """Return how often a fault fired, by the number of the order that was being carried out."""
        fired: Counter[int] = Counter()
        order = 0
        for line in self._lines():
            if (found := _ORDER.search(line)) is not None:
                order = int(found[1])
            elif "(INJECTED)" in line:
                fired[order] += 1
        return fired

    def _lines(self) -> Iterator[str]:
        with self._trace.open(encoding="ascii", errors="replace") as lines:
            yield from lines


def fail_each(
    setting: Setting,
    call: str,
    error: str,
    choose: Callable[[Counter[int]], Sequence[Fault]],
    *,
    once: bool,
) -> Tally:
    """Have a call of the script fail, one after the other; look into what each run leaves."""
    if strace() is None:
        raise NotHere("needs strace, and the right to trace")
    tally, template = Tally(), setting.folder / "template"
    template.mkdir()
    asyncio.run(make(template))
    how = {"once": once, "careless": setting.control}
    with Victim(setting.folder / "runs", template, call=call, error=error, **how) as victim:
        faults = choose(victim.calls())
        places = [victim.order(fault) for fault in faults[:1]]
        for number, fault in enumerate(faults):
            told = victim.outcome()
            if number + 1 < len(faults):  # it works on the next while this one is looked into
                places.append(victim.order(faults[number + 1]))
            tally.figures.update(told["refused"])
            left = asyncio.run(_look(places[number], once=once, restart=not once or number % RESTARTED == 0))
            tally.acknowledged += left.acknowledged
            tally.blame(
                [*told["problems"], *left.problems][:2], where=f"{call} {fault[0]} of thread {fault[1]}, {error}"
            )
            shutil.rmtree(places[number])
        fired = victim.fired()
    tally.count = sum(fired.values())
    tally.notes = (
        f"{len(faults)} runs, a fault fired in {len(fired)}; {tally.acknowledged:,} events acknowledged;"
        f" raised: {tally.told() or 'nothing, tried again within'}"
    )
    return tally


async def _look(place: Path, *, once: bool, restart: bool) -> Tally:
    world = World(place, acks=[*read_promises((place / "acks").read_bytes()).acks])
    try:
        await world.judge(drained=once)
        if restart:
            await world.go_on(patience=DRAINED)
            world.tally.blame((await world.examine()).problems)
    except (LetopisError, OSError) as error:
        world.tally.problems = [f"cannot be used after a restart: {error}"]
    return world.tally
