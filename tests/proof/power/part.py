"""Look into every state of a recorded disk, and cut the power for real, each with a control that does not flush."""

import asyncio
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.campaigns.invariants import examine_outbox, read_outbox, read_store
from tests.proof.harness import Experiment, Setting, Tally, World
from tests.proof.power.disk import CALLS, Disk, Kind, Model, Operation, read_trace
from tests.support import victim
from tests.support.child import command, promising
from tests.support.fix_disk import NotHere, make_image, mounted, need, run, strace
from tests.support.promises import BOOKS, KeptPromises, halves, read_promises
from tests.support.victim import HISTORY, OUTBOX

WEAK: Final = "synchronous=NORMAL"
CHECKPOINT: Final = "wal_autocheckpoint=50"
"""Pages; the default is a thousand: the WAL is to come round to its beginning many times."""
IGNORED: Final = ("-shm", ".lock", ".ballast")
"""Files whose content no promise rests on: shared memory is recreated, the lock is empty, the ballast is only space."""
PACE: Final = 0.002
"""Seconds between two appends: a faster bot checkpoints, and so flushes, so often that the control loses nothing."""
FIRST: Final = 20.0  # seconds within which the bot has to be promised something
TIMEOUT_SECONDS: Final = 90.0


def states(setting: Setting) -> Tally:
    """Record a bot; cut the power after a number of its operations, in each model, and inspect what is left."""
    if strace() is None:
        raise NotHere("needs strace, and the right to trace")
    weak = setting.control
    operations = _record(setting, [WEAK] if weak else [])
    tally, chance, seen = Tally(), random.Random(setting.seed), set[int]()
    prefixes = setting.many(250, 30) if weak else setting.many(1400, 40)
    total = sum(1 for _ in _prefixes(operations))
    chosen = set(range(total)) if total <= prefixes else set(chance.sample(range(total), prefixes))
    share = 0.0 if weak else setting.many(60, 2) / max(1, len(chosen) * len(Model))
    for number, disk, acks in _prefixes(operations):
        if number not in chosen:
            continue
        promises = read_promises(acks)
        tally.acknowledged = max(tally.acknowledged, len(promises.acks))
        for model in Model:
            left = disk.left(model, chance)
            seen.add(hash((tuple(sorted(left.items())), acks)))
            lay_out, opens = partial(_lay_out, left, setting.folder / "left"), lambda: chance.random() < share
            _look(tally, lay_out, promises, opens, where=f"after operation {number}, {model.value}")
    tally.notes = f"{len(chosen):,} prefixes x {len(Model)} models, {len(seen):,} of them distinct; {_told(tally)}"
    return tally


def _record(setting: Setting, pragmas: Sequence[str]) -> list[Operation]:
    disk, acks, trace = (setting.folder / name for name in ("disk", "acks", "trace"))
    disk.mkdir()
    words = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-o", str(trace), "-e", f"trace={CALLS}"]
    how = {"seed": setting.seed, "appends": setting.many(110, 15), "pragmas": (CHECKPOINT, *pragmas)}
    bot = command(victim.record, disk, acks, **how)
    subprocess.run([*words, *bot], check=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL)
    with trace.open(encoding="ascii", errors="replace") as lines:
        return list(read_trace(lines, disk, acks=acks, ignore=IGNORED))


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


def cuts(setting: Setting) -> Tally:
    """Copy an ext4 file system at one instant while a bot writes, and mount it as after a power cut; repeatedly."""
    tally, chance, acks, weak = Tally(), random.Random(setting.seed), setting.folder / "acks", setting.control
    many, opened = (setting.many(12, 3), 0) if weak else (setting.many(64, 2), setting.many(10, 1))
    pragmas = [WEAK, "wal_autocheckpoint=100000"] if weak else []
    with _live_disk(setting.folder) as (image, disk):
        words = command(victim.record, disk, acks, seed=setting.seed, pace=PACE, pragmas=pragmas)
        with promising(words, acks, size=1_000, patience=FIRST):
            for number in range(many):
                time.sleep(chance.uniform(0.01, 0.08))
                # What was promised before the copy began has to be on it.
                promises, copy = read_promises(acks.read_bytes()), image.with_name("cut.img")
                run("cp", "--reflink=always", image, copy)
                tally.acknowledged = len(promises.acks)
                with mounted(copy, setting.folder / "cut") as place:
                    where, opens = f"cut {number}", lambda: chance.random() < opened / many
                    _look(tally, partial(Path, place), promises, opens, where=where)
                copy.unlink()
    tally.notes = _told(tally)
    return tally


@contextmanager
def _live_disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the image of an ext4 file system and where it is mounted; the image can be copied in an instant."""
    need("mkfs.xfs", "mkfs.ext4", "mount", "umount", "cp")
    with ExitStack() as stack:
        ground = folder / "ground.img"
        stack.callback(ground.unlink, missing_ok=True)
        make_image(ground, 2048, "mkfs.xfs", "-q", "-m", "reflink=1")
        base = stack.enter_context(mounted(ground, folder / "ground"))
        make_image(base / "live.img", 128, "mkfs.ext4", "-q", "-F")
        yield base / "live.img", stack.enter_context(mounted(base / "live.img", folder / "live"))


def _look(
    tally: Tally, lay_out: Callable[[], Path], promises: KeptPromises, opens: Callable[[], bool], *, where: str
) -> None:
    """Count a disk; one that breaks promises is one violation, whatever it breaks."""
    tally.count += 1
    problems = broken(lay_out(), promises)
    if not problems and opens():
        tally.figures["opened"] += 1
        problems = asyncio.run(broken_for_the_library(lay_out(), promises))
    tally.blame(problems[:1], where=where)


def _told(tally: Tally) -> str:
    opened = tally.figures["opened"]
    return f"{tally.acknowledged:,} events acknowledged; {opened} opened and drained by the library"


def broken(folder: Path, promises: KeptPromises) -> list[str]:
    """Look into the files that were left, after SQLite has recovered them, and return which promises are broken."""
    problems: list[str] = []
    for name in (OUTBOX, HISTORY):
        path = folder / name
        if not path.exists():
            if name == OUTBOX and promises.acks:
                problems.append(f"{name} is not there, with {len(promises.acks)} appends acknowledged")
            continue
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                connection.execute("PRAGMA synchronous=OFF")  # no power cut on what is only inspected
                tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if name == OUTBOX:
                    problems += _outbox(connection, tables, path, promises)
                ((integrity,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
            except sqlite3.Error as error:
                integrity = getattr(error, "sqlite_errorname", None) or type(error).__name__
        if integrity != "ok":
            problems.append(f"{name}: integrity check says {integrity}")
    return problems


def _outbox(connection: sqlite3.Connection, tables: set[str], path: Path, promises: KeptPromises) -> list[str]:
    origin = "SELECT 1 FROM letopis_outbox_origin"
    identified = "letopis_outbox_origin" in tables and connection.execute(origin).fetchall()
    if missing := "tables" if "letopis_outbox_events" not in tables else "" if identified else "identity":
        return [f"no {missing}, with {len(promises.acks)} appends acknowledged"] if promises.acks else []
    state = read_outbox(path)
    problems = list(examine_outbox(state, acknowledged=promises.acks).problems)
    return problems + (halves(connection, state.events) if BOOKS in tables else [])


async def broken_for_the_library(folder: Path, promises: KeptPromises) -> list[str]:
    world = World(folder, acks=[*promises.acks])
    if _holds(folder / HISTORY, "letopis_events") and _holds(world.outbox, "letopis_outbox_superseded"):
        world.tally.blame((await world.examine(drained=False)).problems)
        stored = {event.event_id for event in (await read_store(world.url)).events}
        world.tally.blame(
            f"event {one} was said to be saved, and is LOST" for one in promises.saved if one not in stored
        )
    await world.go_on()
    return (await world.judge()).problems


def _holds(path: Path, table: str) -> bool:
    if not path.exists():
        return False
    with closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall())


STATES: Final = "power cut after each write and flush of a recorded bot"
MODELS: Final = "unsynced data dropped, all kept, torn by sector"
CUTS: Final = "power of a live ext4 file system cut, journal replayed"
IMAGES: Final = "ext4 image on XFS, copied by reflink"
TABLE: Final = (
    Experiment(STATES, states, "states", 4_000, on=(), where=MODELS),
    Experiment(f"{STATES}, {WEAK} in the outbox", states, "states", on=(), where=MODELS, control=True),
    Experiment(CUTS, cuts, "power cuts", 60, on=(), where=IMAGES),
    Experiment(f"{CUTS}, {WEAK} in the outbox", cuts, "power cuts", on=(), where=IMAGES, control=True),
)
