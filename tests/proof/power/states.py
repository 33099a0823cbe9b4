"""Build every disk that a power cut could have left of a recorded run, and look into each."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.proof.power.disk import Disk, Model
from tests.proof.power.promises import broken, broken_for_the_library
from tests.proof.power.trace import CALLS, Kind, Operation, read_trace
from tests.support import victim
from tests.support.child import command
from tests.support.promises import read_promises

IGNORED: Final = ("-shm", ".lock", ".ballast")
"""Files whose content no promise rests on: shared memory is recreated, the lock is empty, the ballast is only space."""
CHECKPOINT: Final = "wal_autocheckpoint=50"
"""Pages; the default is a thousand: the WAL is to come round to its beginning many times."""
TIMEOUT_SECONDS: Final = 90.0


@dataclass(slots=True)
class Found:
    """What the states of one run showed."""

    prefixes: int = 0
    states: int = 0
    distinct: int = 0
    opened: int = 0
    acknowledged: int = 0
    bad: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, where: str, problems: Sequence[str]) -> None:
        """Count a state, and what is wrong with it."""
        self.states += 1
        if problems:
            self.bad += 1
            self.problems += [f"{where}: {one}" for one in problems[:2]]


def strace() -> str | None:
    """Return the path of strace, if it is there and may trace."""
    found = shutil.which("strace")
    if found is None:
        return None
    tried = subprocess.run([found, "-f", "-o", os.devnull, "true"], capture_output=True, check=False, timeout=20)
    return found if tried.returncode == 0 else None


def record(folder: Path, *, appends: int, seed: int, pragmas: Sequence[str] = ()) -> list[Operation]:
    disk, acks, trace = folder / "disk", folder / "acks", folder / "trace"
    disk.mkdir(parents=True)
    words = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-o", str(trace), "-e", f"trace={CALLS}"]
    bot = command(victim.record, disk, acks, seed=seed, appends=appends, pragmas=(CHECKPOINT, *pragmas))
    subprocess.run([*words, *bot], check=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL)
    with trace.open(encoding="ascii", errors="replace") as lines:
        return list(read_trace(lines, disk, acks=acks, ignore=IGNORED))


def replay(operations: Sequence[Operation], folder: Path, *, prefixes: int, opened: int, seed: int) -> Found:
    """Cut the power after a number of the operations, in each model, and inspect what is left."""
    chance = random.Random(seed)
    found = Found()
    total = sum(1 for _ in _prefixes(operations))
    chosen = set(range(total)) if total <= prefixes else set(chance.sample(range(total), prefixes))
    share = opened / max(1, len(chosen) * len(Model))
    seen: set[int] = set()
    for number, disk, acks in _prefixes(operations):
        if number not in chosen:
            continue
        found.prefixes += 1
        promises = read_promises(acks)
        found.acknowledged = max(found.acknowledged, len(promises.acks))
        for model in Model:
            left = disk.left(model, chance)
            seen.add(hash((tuple(sorted(left.items())), acks)))
            place = _lay_out(left, folder / "left")
            problems = broken(place, promises)
            if not problems and chance.random() < share:
                found.opened += 1
                place = _lay_out(left, folder / "left")
                problems = asyncio.run(broken_for_the_library(place, promises))
            found.add(f"after operation {number}, {model.value}", problems)
    found.distinct = len(seen)
    return found


def _prefixes(operations: Sequence[Operation]) -> Iterator[tuple[int, Disk, bytes]]:
    disk, acks, number = Disk(), bytearray(), 0
    for operation in operations:
        if operation.kind is Kind.ACK:
            acks += operation.data
        elif disk.apply(operation):
            yield number, disk, bytes(acks)
            number += 1


def _lay_out(files: dict[str, bytes], place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place
