"""Measure rows 12, 13 and 14: a relay's start on a large backlog, bytes on disk, and the time of an import."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from benchmarks import large_backlog
from benchmarks.backlogs import Backlog
from benchmarks.figures import Figure, percentile
from benchmarks.parts import Bench
from letopis.store.database.schema import metadata
from tests.campaigns.processes import LETOPIS
from tests.support.servers import ServerUnavailable


async def start(bench: Bench) -> None:
    """Start the real command on a file with a million pending events. Made once: each start would need a new file."""
    report = await asyncio.to_thread(
        large_backlog.measure,
        bench.new_folder(),
        events=bench.scale.count(1_000_000, least=10_000),
        watch=bench.scale.seconds(8.0, least=3.0),
    )
    bench.add(
        Figure(
            key="start.first",
            name="relay on a full outbox, until the first delivery",
            unit="s",
            samples=(report.first_delivery,),
            more_is_better=False,
            details={
                "memory MB": report.peak_rss / 1024**2,
                "events": float(report.events),
                "file MB": report.file_bytes / 1024**2,
            },
        )
    )


async def disk(bench: Bench) -> None:
    """Compare the bytes of files and tables with those of the JSON itself, of events of 1 KB."""
    conversations, each = bench.scale.count(200, least=10), 50
    for kind in ("postgresql", "mariadb", "sqlite"):
        path = bench.new_folder() / "bot.outbox.db"
        try:
            backlog = await Backlog.open(path, bench.new_store(kind))
        except ServerUnavailable as reason:
            bench.miss(f"disk of {kind}", str(reason))
            continue
        before = await _store_bytes(backlog)
        empty = _file_bytes(path)
        events = await backlog.owe(conversations=conversations, each=each)
        written = _file_bytes(path)
        json = await backlog.outbox.read(
            lambda connection: int(
                connection.execute(
                    sa.text(
                        "SELECT sum(length(CAST(data AS BLOB)) + coalesce(length(CAST(metadata AS BLOB)), 0))"
                        " FROM letopis_outbox_events"
                    )
                ).scalar_one()
            )
        )
        await backlog.drain()
        after = await _store_bytes(backlog)
        await backlog.close()
        details = {"JSON bytes an event": json / events, "events": float(events)}
        if kind == "postgresql":
            _add(bench, "disk.outbox", "outbox", (written - empty) / json, details)
        _add(bench, f"disk.{kind}", f"history in {kind}", (after - before) / json, details)


def _add(bench: Bench, key: str, name: str, ratio: float, details: dict[str, float]) -> None:
    bench.add(Figure(key=key, name=name, unit="bytes a byte", samples=(ratio,), more_is_better=False, details=details))


def _file_bytes(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return path.stat().st_size


async def _store_bytes(backlog: Backlog) -> int:
    names = sorted(metadata.tables)
    if backlog.store.url.get_backend_name() == "sqlite":
        return await asyncio.to_thread(_file_bytes, Path(backlog.store.url.database or ""))
    async with backlog.store.runtime.callers_engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            statement = sa.text(
                "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(CAST(:names AS text[])) AS name"
            )
            return int((await connection.execute(statement, {"names": names})).scalar_one())
        for name in names:  # otherwise the figures are out of date
            await connection.exec_driver_sql(f"ANALYZE TABLE {name}")
        found = await connection.execute(
            sa.text(
                "SELECT sum(file_size) FROM information_schema.innodb_sys_tablespaces"
                " WHERE name LIKE concat(database(), '/letopis%')"
            )
        )
        return int(found.scalar_one() or 0)


async def imports(bench: Bench) -> None:
    """Start new processes: an import and the help of the command, in turns, beside Python alone."""
    commands: dict[str, tuple[str, Sequence[str]]] = {
        "import.python": ("python -c pass", (sys.executable, "-c", "pass")),
        "import.outbox": ("import letopis.outbox", (sys.executable, "-c", "import letopis.outbox")),
        "import.history": ("import History", (sys.executable, "-c", "from letopis.outbox import History")),
        "import.help": ("letopis --help", (str(LETOPIS), "--help")),
    }
    found: dict[str, list[float]] = {key: [] for key in commands}
    for _, command in commands.values():
        await asyncio.to_thread(_timed, command)  # so that what is compiled is there
    for _ in range(max(5, bench.scale.count(9))):
        for key, (_, command) in commands.items():
            found[key].append(await asyncio.to_thread(_timed, command))
    for key, (name, _) in commands.items():
        bench.add(
            Figure(
                key=key,
                name=name,
                unit="s",
                samples=tuple(found[key]),
                more_is_better=False,
                details={"slowest s": percentile(found[key], 1.0)},
            )
        )


def _timed(command: Sequence[str]) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**environment, "NO_COLOR": "1"})
    return time.perf_counter() - begun
