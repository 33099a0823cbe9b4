"""Damage copies of an outbox and a history store, compare what a plain reader sees, and ask which check noticed."""

import asyncio
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from letopis import ConfigurationError, History, OutboxAdmin
from letopis.ops.cli.verify import problems_of_store
from letopis.ops.salvage.salvage import Salvaged, salvage
from letopis.ops.verify import differences, find_problems, read_reference
from letopis.store.database.engines import create_store_engine
from letopis.store.database.urls import normalise_url
from tests.campaigns.invariants import check
from tests.proof.corruption.files import DAMAGES, Files, Seen, cut, flipped, make_files, seen_in, zeroed
from tests.proof.harness import Tally, streamed
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.support.daemons import letopis
from tests.support.store_changes import leaf_pages, with_noise

UNREADABLE: Final = (sqlite3.Error, ValueError, OverflowError)
NOT_READ: Final = {
    "letopis_outbox_events": (11,),  # appended_at
    "letopis_outbox_lanes": (7, 8, 9, 10, 11),  # attempts, due_at, pending_since, fault_class, fault
    "letopis_outbox_origin": (3, 4, 5, 7, 9),  # device, inode, created_at, destination, uncounted
    "letopis_outbox_relay": tuple(range(17)),
    "letopis_store": (2, 4),  # created_at, moved_at
    "letopis_tasks": (6,),  # created_at
    "letopis_origins": (2, 3, 4),  # name, first_seen_at, last_seen_at
}
"""What no reader of a history sees: when a row was written, when it is tried again, who wrote it."""


TIMES: Final = {"letopis_outbox_events": (10,), "letopis_events": (13, 14), "letopis_search": (7,)}
"""When an event happened and was recorded. No digest covers these, so they are counted apart."""

INDEXED_UP_TO: Final = 8  # the column of ``letopis_outbox_origin`` with the position up to which ids are indexed


Try = tuple[bytes | None, bytes | None]  # the damaged file if it is damaged, and its WAL


def prove(options: Options) -> Iterator[Row]:
    # In memory where the system has such a folder: nothing here is about what reaches a disk.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="letopis-proof-", dir=memory) as folder:
        files = asyncio.run(make_files(Path(folder)))
        proof = _Proof(options, files, Path(folder) / "work")
        yield from streamed(proof.rows())


class _Proof:
    def __init__(self, options: Options, files: Files, work: Path) -> None:
        self._options = options
        self._files = files
        self._work = work
        self._count = self._blind = 0
        self._truth = {path: seen_in(self._copy(path)) for path in (files.closed, files.living, files.store)}

    async def rows(self) -> AsyncIterator[Row]:
        """Damage each file, and ask who notices; and what SQLite's own check makes of the same bits."""
        many, files, chance = self._options.many, self._files, Random(self._options.seed)
        data, wal, store = files.closed.read_bytes(), _wal(files.living).read_bytes(), files.store.read_bytes()
        what = "one bit flipped in a closed file"
        tries: Iterable[Try] = ((flipped(data, chance), None) for _ in range(many(420, 40)))
        yield await self._tried(what, files.closed, tries, 400, "bits", against=files.url)
        yield self._unseen("outbox", "changed what a reader sees, and the check said ok")
        for name, damage in DAMAGES.items():
            tries = [(damage(data, chance), None) for _ in range(many(60, 4))]
            yield await self._tried(name, files.closed, tries, 50, "files", against=files.url)
        # What is in the WAL was not delivered: only the file itself can tell.
        tries = ((None, flipped(wal, chance)) for _ in range(many(320, 20)))
        yield await self._tried("one bit flipped in a WAL", files.living, tries, 300, "bits")
        yield self._unseen("WAL of the outbox", "commits silently dropped, and the check said ok")
        # A tail that is gone: where the history store has more than the file it shows, else only in a transaction.
        lengths = [chance.randrange(len(wal)) for _ in range(many(60, 4))]
        lengths[1::2] = [max(0, (length - 32) // (4096 + 24) * (4096 + 24) + 32) for length in lengths[1::2]]
        tries = [(None, wal[:length]) for length in lengths]
        cut_short, against = "WAL cut short, its tail delivered", await self._delivered()
        row = await self._tried(cut_short, files.living, tries, 50, "files", against=against)
        alone = [await self._outcome(files.living, None, None, wal=tail) for _, tail in tries].count("missed")
        yield replace(
            row,
            notes=f"{row.notes}; with a history store that has not seen the lost tail, {alone} cuts between two"
            " transactions cannot be told from a file that never had it, and are not noticed",
        )
        tries = ((flipped(store, chance), None) for _ in range(many(160, 10)))
        yield await self._tried(what, files.store, tries, 150, "bits", where="history store")
        for row in (await self._salvaged(), *await self._salvaged_without_lanes(), await self._commands()):
            yield row

    async def _tried(
        self,
        what: str,
        source: Path,
        tries: Iterable[Try],
        least: int,
        unit: str,
        *,
        where: str = "outbox",
        against: str = "",
    ) -> Row:
        """Damage a file in each way; count what became of it, and how often SQLite's own check saw nothing."""
        tally, self._blind = Tally(), 0
        engine = create_store_engine(against) if against else None
        for number, (data, wal) in enumerate(tries):
            outcome = await self._outcome(source, data, engine, wal=wal)
            tally.figures[outcome] += 1
            if outcome == "missed":
                tally.problems.append(f"{number}: {self._difference(source)}")
            if unit == "bits" and outcome in ("noticed", "missed"):
                self._blind += self._integrity_says_ok()
        if engine is not None:
            await engine.dispose()
        self._count = tally.count = tally.figures.total()
        tally.notes = tally.told()
        return tally.row(what, where, unit, least)

    def _unseen(self, where: str, notes: str) -> Row:
        what = "the same bits, with SQLite's integrity_check alone"
        return Tally(self._count, untold=self._blind, notes=notes).row(what, where, "bits", control=True)

    async def _salvaged(self) -> Row:
        chance, tally = Random(self._options.seed + 5), Tally()
        files = self._files
        wal = _wal(files.living).read_bytes()
        for number in range(self._options.many(120, 12)):
            source, how = (files.living, "flip") if number % 3 == 0 else (files.closed, ("zero", "cut")[number % 2])
            if source == files.living:
                path = self._put(source, source.read_bytes(), wal=flipped(wal, chance))
            else:
                path = self._put(source, (zeroed if how == "zero" else cut)(source.read_bytes(), chance))
            new = path.with_name("new.outbox.db")
            tally.count += 1
            try:
                receipt = await salvage(path, new)
            except ConfigurationError:
                # Said loudly, with nothing written. It may be said only where not one event is left.
                provable = self._provable(source, path.read_bytes())
                tally.require(not provable, f"{how} {number}: there are events, and none was salvaged")
                continue
            tally.blame(self._unaccounted(source, new, receipt, tally.figures, how), where=f"{how} {number}")
            if number % 12 == 0:
                tally.blame(await self._drains(new, receipt), where=f"{how} {number}")
        count = tally.figures
        kept = f"{count['kept']} events kept, {count['lost']} named as lost"
        tally.notes = f"{kept}, {count['let go']} delivered ones let go"
        return tally.row("salvaged into a new file", "outbox", "files", 100)

    def _provable(self, source: Path, left: bytes) -> bool:
        """Return True if an event is there up to its salt, and the row of its lane, whose name its digest covers."""
        lanes = {
            row[0]: row[1].encode() + (row[2] or "").encode() for row in self._truth[source]["letopis_outbox_lanes"]
        }
        there = {key for key, row in lanes.items() if row in left}
        events = self._truth[source]["letopis_outbox_events"]
        return any(row[2] in there and row[8] + (row[9] or b"") in left for row in events)

    async def _salvaged_without_lanes(self) -> tuple[Row, Row]:
        """Each page of lanes and each page of events together: only events and indexes say where a lane ends."""
        chance, tally, silent = Random(self._options.seed + 6), Tally(), 0
        source = self._files.closed
        truth = _events(self._truth[source])
        delivered = {row[1]: row[4] for row in self._truth[source]["letopis_outbox_lanes"]}
        # The newest events first: among them are those that are pending.
        newest = reversed(leaf_pages(source, "letopis_outbox_events"))
        pairs = list(product(newest, leaf_pages(source, "letopis_outbox_lanes")))
        for number, pair in enumerate(pairs[: self._options.many(len(pairs), 6)]):
            path = self._put(source, with_noise(source.read_bytes(), pair, chance))
            new = path.with_name("new.outbox.db")
            receipt = await salvage(path, new)
            tally.count += 1
            where = f"noise {number}"
            tally.blame(self._unaccounted(source, new, receipt, tally.figures, "noise"), where=where)
            salvaged = seen_in(new)
            for row in salvaged["letopis_outbox_lanes"]:
                true = row[4] <= delivered[row[1]]
                tally.require(true, f"{where}: {row[1]!r} is said to be delivered up to {row[4]}")
            ends = Counter[str]()
            for name, sequence in _events(salvaged):
                ends[name] = max(ends[name], sequence)
            silent += sum(delivered[name] < sequence > ends[name] for name, sequence in truth)
        tally.notes = f"{tally.figures['kept']} events kept, {tally.figures['lost']} named as lost"
        blind = Tally(tally.count, untold=silent, notes="pending events lost without a word")
        return (
            tally.row("a page of lanes and one of events", "outbox", "files", 12),
            blind.row("the same files, with lanes that end at their last event", "outbox", "files", control=True),
        )

    async def _commands(self) -> Row:
        """The command as an operator runs it, with its exit codes."""
        files, tally = self._files, Tally()
        wal = bytearray(_wal(files.living).read_bytes())
        wal[len(wal) // 2] ^= 1
        data = files.closed.read_bytes()
        page = data.index(b"pending 1") // 4096 * 4096
        stump = data[:page] + bytes(4096) + data[page + 4096 :]
        for what, source, main, tail, verified, salvaged in (
            ("sound", files.closed, data, b"", 0, 0),
            ("a page zeroed", files.closed, stump, b"", 1, 1),
            ("a bit of the WAL", files.living, files.living.read_bytes(), bytes(wal), 1, 0),
        ):
            if self._options.short and what != "a bit of the WAL":
                continue
            path = self._put(source, main, wal=tail or None)
            verify = ("--outbox", str(path), "--store", files.url, "outbox", "verify", "--json")
            for words, expected in (
                (verify, verified),
                (("outbox", "salvage", str(path), "--to", str(path.with_name("new.db")), "--json"), salvaged),
            ):
                done = await asyncio.to_thread(letopis, *words, folder=self._work)
                tally.count += 1
                if done.returncode == expected:
                    json.loads(done.stdout)
                    continue
                ended = f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-200:]}"
                tally.problems.append(f"{what}: {ended}")
        done = await asyncio.to_thread(letopis, "--store", files.url, "db", "verify", folder=self._work)
        tally.count += 1
        ended = f"db verify of a sound store ended with {done.returncode}: {done.stdout[-200:]}"
        tally.require(not done.returncode, ended)
        return tally.row("letopis outbox verify and salvage, db verify", "command", "commands", 7)

    def _copy(self, source: Path) -> Path:
        wal = _wal(source)
        return self._put(source, source.read_bytes(), wal=wal.read_bytes() if wal.exists() else None)

    def _put(self, source: Path, data: bytes, *, wal: bytes | None = None) -> Path:
        """Lay a file into an empty folder, under the name that it has."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()
        path = self._work / source.name
        path.write_bytes(data)
        if wal is not None:
            _wal(path).write_bytes(wal)
        return path

    async def _outcome(
        self, source: Path, data: bytes | None, engine: AsyncEngine | None, *, wal: bytes | None = None
    ) -> str:
        """Return ``harmless``, ``false alarm``, ``noticed``, ``missed`` or ``unread``, of a damaged file."""
        whole = source.read_bytes() if data is None else data
        path = self._put(source, whole, wal=wal)
        if source == self._files.store:
            found = await problems_of_store(normalise_url(f"sqlite:///{path.as_posix()}"))
            return self._judge(source, path, bool(found))
        found = list(find_problems(path))
        if not found and engine is not None and (kept := read_reference(path)) is not None:
            found = [one async for one in differences(kept, engine)]
        return self._judge(source, self._put(source, whole, wal=wal), bool(found))

    def _judge(self, source: Path, path: Path, noticed: bool) -> str:
        try:
            seen: Seen | None = seen_in(path)
        except UNREADABLE:
            seen = None
        truth = self._truth[source]
        if seen == truth:
            return "noticed, though a reader sees no change" if noticed else "harmless"
        if noticed:
            return "noticed"
        if seen is None or _without(seen, TIMES) != _without(truth, TIMES):
            return "missed" if seen is None or not _is_new_id(seen, truth) else "in the id of a new event, not noticed"
        return "in a time only, and not noticed" if _without(seen, {}) != _without(truth, {}) else "not read by anybody"

    def _difference(self, source: Path) -> str:
        try:
            seen = seen_in(self._work / source.name)
        except UNREADABLE as error:
            return f"unreadable: {type(error).__name__}"
        return ", ".join(table for table, rows in self._truth[source].items() if seen.get(table) != rows)

    def _integrity_says_ok(self) -> bool:
        (path,) = (one for one in self._work.iterdir() if one.suffix == ".db")
        try:
            with closing(sqlite3.connect(path)) as connection:
                said: list[Any] = connection.execute("PRAGMA integrity_check").fetchall()
                seen_in(path)
        except UNREADABLE:
            return False
        return said == [("ok",)]

    async def _delivered(self) -> str:
        folder = self._work.with_name("delivered")
        folder.mkdir()
        store = folder / self._files.store.name
        shutil.copy(self._files.store, store)
        outbox = folder / self._files.living.name
        shutil.copy(self._files.living, outbox)
        shutil.copy(_wal(self._files.living), _wal(outbox))
        url = f"sqlite:///{store.as_posix()}"
        async with History(outbox, store=url, watch=False) as history:
            await history.drained(30)
        return url

    def _unaccounted(self, source: Path, new: Path, receipt: Salvaged, count: Counter[str], how: str) -> Iterator[str]:
        truth, salvaged = self._truth[source], seen_in(new)
        kept, there = _events(salvaged), _events(truth)
        lanes = {row[1]: row for row in salvaged["letopis_outbox_lanes"]}
        count.update({"kept": len(kept), "lost": receipt.lost_count, "let go": receipt.let_go})
        delivered = {row[1]: row[4] for row in truth["letopis_outbox_lanes"]}
        for key, row in there.items():
            if key in kept:
                if kept[key] != row:
                    yield f"{key} is another event in the new file"
            elif key[1] not in receipt.lost.get(key[0], ()) and not (
                key[0] in lanes and key[1] <= min(lanes[key[0]][5], delivered[key[0]])
            ):
                if receipt.gone and how == "cut":
                    count["left no trace"] += 1  # said by the count of pages that are gone
                else:
                    yield f"{key} is neither kept nor named as lost"
        for key in kept.keys() - there.keys():
            yield f"{key} was never appended"

    async def _drains(self, new: Path, receipt: Salvaged) -> Sequence[str]:
        """Deliver what was salvaged to the store that has the rest, and examine both."""
        store = new.with_name("history.db")
        shutil.copy(self._files.store, store)
        url = f"sqlite:///{store.as_posix()}"
        async with History(new, store=url, watch=False) as history:
            for name in receipt.lost:
                await OutboxAdmin(history.outbox).skip_missing(history.store, name, reason="lost with a damaged disk")
            drained = await history.drained(20)
        problems = (await check([new], url, drained=drained)).problems
        return problems if drained else ["not drained within 20 s", *problems]


def _events(seen: Seen) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Return what the events are, without their positions and times, by conversation and sequence."""
    names = {row[0]: row[1] for row in seen["letopis_outbox_lanes"]}
    return {(names[row[2]], row[3]): (row[1], *row[4:9]) for row in seen["letopis_outbox_events"]}


def _without(seen: Seen, columns: Mapping[str, tuple[int, ...]]) -> Seen:
    """Leave out what no reader uses, and these columns."""
    out = {table: {*NOT_READ.get(table, ()), *columns.get(table, ())} for table in seen}
    return {
        table: [tuple(value for place, value in enumerate(row) if place not in out[table]) for row in rows]
        for table, rows in seen.items()
    }


def _is_new_id(seen: Seen, truth: Seen) -> bool:
    """Return True if only ids of events that are not indexed yet differ: no digest covers an id."""
    ids = {**TIMES, "letopis_outbox_events": (1, *TIMES["letopis_outbox_events"])}
    if "letopis_outbox_events" not in truth or _without(seen, ids) != _without(truth, ids):
        return False
    (indexed,) = {row[INDEXED_UP_TO] for row in truth["letopis_outbox_origin"]}
    both = zip(truth["letopis_outbox_events"], seen["letopis_outbox_events"], strict=True)
    return all(row[0] > indexed for row, found in both if row != found)


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")
