"""Count the instructions of an append, a read and a delivery: the same twice, whatever else the machine does.

    python -m benchmarks.instructions             # what is ours and the raw loop, beside the recorded counts
    python -m benchmarks.instructions append      # some of it
    python -m benchmarks.instructions --record    # all, OpenAI's session too, into instructions.json and the page

Needs valgrind. A count is the difference of two lengths of one loop, so that opening and warming up cancel out.
Exits with 1 if a count is above what is recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.append_limit import AppendLimit
from benchmarks.backlogs import Backlog
from benchmarks.subjects import TEXT
from benchmarks.witness import Witness, watching
from letopis.outbox import History
from letopis.store import Message

RECORDED: Final = Path(__file__).with_name("instructions.json")
PAGE: Final = Path(__file__).parent.parent / "docs" / "explanation" / "tables" / "speed.md"
HEADING: Final = "Instructions"
TOLERANCE: Final = 0.03
LENGTHS: Final = (20, 20, 60)
"""Turns of a loop: to warm up, and the two lengths whose difference is counted."""
COUNT: Final = 50
CONVERSATIONS: Final = 5
"""Of a delivery: all of its events make one batch."""
PATIENCE: Final = 600.0
"""Seconds for a read: under valgrind, all is some fifty times slower."""


@contextmanager
def _counted() -> Iterator[None]:
    """Count what runs in the block: callgrind writes its counter down, and resets it, where ``erfc`` is called."""
    gc.collect()  # so that the collector is due at the same moments in each run
    math.erfc(0.5)
    yield
    math.erfc(0.5)


async def _raw_append(folder: Path) -> None:
    limit = AppendLimit()
    await limit.open(folder)
    for times in LENGTHS:
        with _counted():
            for _ in range(times):
                await limit.say("chat-0", TEXT)
    await limit.close()


async def _append(folder: Path) -> None:
    async with History(folder / "bot.outbox.db", relay=False, watch=False) as history:
        for times in LENGTHS:
            with _counted():
                for _ in range(times):
                    await history.append("chat-0", Message.user(TEXT))


async def _settled(folder: Path) -> None:
    await _read(folder, delivered=60)


async def _pending(folder: Path) -> None:
    await _read(folder, delivered=59, pending=1)


async def _page(folder: Path) -> None:
    await _read(folder, delivered=120, older=True)


async def _read(folder: Path, *, delivered: int, pending: int = 0, older: bool = False) -> None:
    backlog = await _backlog(folder)
    await backlog.owe(conversations=1, each=delivered)
    await backlog.drain()
    await backlog.owe(conversations=1, each=pending)
    path = backlog.outbox.path
    async with History(path, store=backlog.store, relay=False, watch=False, read_timeout=PATIENCE) as history:
        before = (await history.messages("chat-0", last=COUNT)).next if older else None
        for times in LENGTHS:
            with _counted():
                for _ in range(times):
                    page = await history.messages("chat-0", last=COUNT, before=before)
                    # Made when they are read: a bot builds its prompt from these two.
                    if len([(message.role, message.text) for message in page]) != COUNT:
                        raise RuntimeError(f"{len(page)} messages, complete: {page.complete}")
    await backlog.close()


async def _deliver(folder: Path) -> None:
    backlog = await _backlog(folder)
    for times in LENGTHS:
        await backlog.owe(conversations=CONVERSATIONS, each=times)
        with _counted():
            await backlog.drain()
    await backlog.close()


async def _backlog(folder: Path) -> Backlog:
    return await Backlog.open(folder / "bot.outbox.db", f"sqlite:///{folder / 'history.db'}")


async def _add_items(folder: Path) -> None:
    with _session(folder) as session:
        for times in LENGTHS:
            with _counted():
                for _ in range(times):
                    await session.add_items([{"role": "user", "content": TEXT}])


async def _get_items(folder: Path) -> None:
    with _session(folder) as session:
        await session.add_items([{"role": "user", "content": TEXT}] * 60)
        for times in LENGTHS:
            with _counted():
                for _ in range(times):
                    if len(items := await session.get_items(limit=COUNT)) != COUNT:
                        raise RuntimeError(f"{len(items)} items")


@contextmanager
def _session(folder: Path) -> Iterator[Any]:
    from agents import SQLiteSession  # takes as long to import as all the rest takes to run

    with watching() as watch:
        watch(Witness(folder, force=("WAL", "FULL")))
        session = SQLiteSession("chat-0", folder / "agents.db")
        yield session
        session.close()


class Subject(NamedTuple):
    """What is counted: a loop, and how many of it are in one turn."""

    title: str
    loop: Callable[[Path], Awaitable[None]]
    in_a_turn: int = 1
    ours: bool = True


SUBJECTS: Final[Mapping[str, Subject]] = {
    "append.raw": Subject("append: the same rows with bare `sqlite3`, in a thread", _raw_append, ours=False),
    "append": Subject("append", _append),
    "append.openai": Subject("append: OpenAI Agents SQLiteSession, FULL", _add_items, ours=False),
    "read.settled": Subject("the last 50 of 60, all delivered", _settled),
    "read.pending": Subject("the last 50 of 60, one of them pending", _pending),
    "read.page": Subject("the page before, 50 more", _page),
    "read.openai": Subject("the last 50 of 60: OpenAI Agents SQLiteSession, FULL", _get_items, ours=False),
    "deliver": Subject("delivery of one message into SQLite, in a batch", _deliver, CONVERSATIONS),
}
WITHOUT_PEERS: Final = tuple(name for name in SUBJECTS if not name.endswith(".openai"))


def count(names: Sequence[str]) -> dict[str, int]:
    """Return the instructions of one of each subject.

    :raises RuntimeError: callgrind did not write down as many counts as were wanted.
    """
    loops = (sys.executable, "-m", "benchmarks.instructions", "--run", *names)
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(loops, env=environment, check=True)  # compiles what is imported
    with tempfile.TemporaryDirectory() as folder:
        words = ("valgrind", "-q", "--tool=callgrind", "--dump-before=erfc*", f"--callgrind-out-file={folder}/dump")
        subprocess.run((*words, *loops), env=environment, check=True)
        dumps = sorted(Path(folder).glob("dump.*"), key=lambda path: int(path.suffix[1:]))
        found = [re.search(r"^totals: (\d+)", dump.read_text("utf-8"), re.MULTILINE) for dump in dumps]
    counts = [int(total[1]) for total in found if total is not None][1::2]  # the others are what runs between the loops
    if len(counts) != len(names) * len(LENGTHS):
        raise RuntimeError(f"{len(counts)} counts of {len(names)} subjects")
    longer = LENGTHS[2] - LENGTHS[1]
    lengths = zip(names, counts[1::3], counts[2::3], strict=True)
    return {name: (many - few) // (longer * SUBJECTS[name].in_a_turn) for name, few, many in lengths}


def interpreter() -> dict[str, str]:
    """Return what counts are comparable on."""
    return {"Python": sys.version, "SQLite": sqlite3.sqlite_version}


def excesses(counts: Mapping[str, int], recorded: Mapping[str, int]) -> list[str]:
    """Return a sentence for each count of ours that is more than 3 % above what is recorded."""
    return [
        f"{name}: {counted:,} instructions, recorded {recorded[name]:,}"
        for name, counted in counts.items()
        if SUBJECTS[name].ours and counted > recorded[name] * (1 + TOLERANCE)
    ]


def section(record: Mapping[str, Any]) -> str:
    """Return the section of the page about speed, in Markdown."""
    rows = [
        f"| {subject.title} | {record['counts'][name]:,} |"
        for name, subject in SUBJECTS.items()
        if name in record["counts"]
    ]
    python: str = record["interpreter"]["Python"]
    return "\n".join(
        [
            f"## {HEADING}",
            "",
            "On a shared machine, a time says little. These are instructions, counted by `valgrind --tool=callgrind`.",
            "A message has 900 characters, and of those that are read, role and text are used. A test fails if one of",
            "ours takes 3 % more.",
            "",
            "|   | instructions |",
            "|---|--:|",
            *rows,
            "",
            f"On Python {python.split()[0]} and SQLite {record['interpreter']['SQLite']}: `nox -s instructions`.",
        ]
    )


def with_section(page: str, text: str) -> str:
    """Return a page with its section replaced."""
    return re.sub(rf"^## {HEADING}$.*?(?=\n\n## )", lambda _: text, page, flags=re.MULTILINE | re.DOTALL)


def run(names: Sequence[str]) -> None:
    """Run loops, one after the other."""
    sys.setswitchinterval(1_000)  # threads take turns where one waits, not where the clock says so
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_run(SUBJECTS[name], Path(folder)))


async def _run(subject: Subject, folder: Path) -> None:
    await subject.loop(folder)


def main() -> int:
    """Count, and print or record."""
    parser = argparse.ArgumentParser(prog="benchmarks.instructions")
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], metavar="SUBJECT")
    parser.add_argument("--record", action="store_true", help="write the counts into instructions.json and the page")
    parser.add_argument("--run", action="store_true", help="run the loops and count nothing")
    given = parser.parse_args()
    names = given.subjects or tuple(SUBJECTS if given.record else WITHOUT_PEERS)
    if given.run:
        run(names)
        return 0
    record = json.loads(RECORDED.read_text("utf-8"))
    counts = count(names)
    for name, counted in counts.items():
        print(f"{name:14} {counted:>10,} recorded {record['counts'].get(name, 0):>10,}")
    if given.record:
        if record.get("interpreter") == interpreter():
            counts = record["counts"] | counts
        record = {"interpreter": interpreter(), "counts": {name: counts[name] for name in SUBJECTS if name in counts}}
        RECORDED.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        PAGE.write_text(with_section(PAGE.read_text("utf-8"), section(record)), "utf-8")
        return 0
    excess = excesses(counts, record["counts"])
    print(*excess, sep="\n")
    return 1 if excess else 0


if __name__ == "__main__":
    sys.exit(main())
