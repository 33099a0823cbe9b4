"""Measure a daemon that serves very many outbox files from its start until it idles."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure
from benchmarks.parts import Bench
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import ConversationStore
from tests.support.daemons import (
    EVENTS_PER_FILE,
    DaemonProcess,
    ProcessFigures,
    ask,
    cpu_share,
    figures_of,
    letopis,
    make_fleet,
)
from tests.support.relays import say

FILES: Final = 1_000
PATIENCE_SECONDS: Final = 600.0
IDLE_SECONDS: Final = 30.0
ASK_SECONDS: Final = 2.0
"""Time between two questions about its health while it delivers, more often than a service manager's."""
EVENTS_A_MINUTE: Final = 60
"""While the daemon is watched for longer."""


async def fleet(bench: Bench) -> None:
    """Start the daemon on files with pending events; measure the delivery, and what the daemon costs at rest."""
    files = bench.scale.files or bench.scale.count(FILES, least=20)
    folder, url = bench.new_folder(), bench.new_store("postgresql")
    made = letopis("db", "upgrade", "--store", url, folder=folder)
    if made.returncode:
        raise RuntimeError(made.stderr)
    await make_fleet(folder, files)
    total, began = files * EVENTS_PER_FILE, time.monotonic()
    arguments = ("--outbox", str(folder / "*.outbox.db"), "--store", url, "--listen", "0")
    first = last = 0.0
    peak = threads = unusable = 0.0
    slowest = asked = 0.0
    async with ConversationStore.open(url) as store:
        with DaemonProcess(*arguments, folder=folder) as daemon:
            port: int | None = None
            while not last:
                if time.monotonic() - began > PATIENCE_SECONDS:
                    raise RuntimeError(f"{await store.head()} of {total} after {PATIENCE_SECONDS:.0f} s")
                head = await store.head()
                first = first or (head and time.monotonic() - began)
                last = time.monotonic() - began if head >= total else 0.0
                now = figures_of(daemon.pid)
                peak, threads = max(peak, now.rss_mb), max(threads, now.threads)
                if port is None and daemon.said("listening on"):
                    port = daemon.port()
                if port is not None and time.monotonic() - asked > ASK_SECONDS:
                    asked = time.monotonic()
                    _, body = await asyncio.to_thread(ask, port, "/healthz/ready")
                    slowest = max(slowest, time.monotonic() - asked)
                    unusable = max(unusable, json.loads(body).get("outboxes", {}).get("unusable", 0))
                await asyncio.sleep(0.2)
            spent = figures_of(daemon.pid).cpu_seconds
            await asyncio.sleep(bench.scale.seconds(20.0, least=8.0))
            idle = await cpu_share(daemon.pid, bench.scale.seconds(IDLE_SECONDS, least=5.0))
            rest = figures_of(daemon.pid)
            asked = time.monotonic()
            await asyncio.to_thread(ask, daemon.port(), "/healthz/ready")
            quiet_answer = time.monotonic() - asked
            watched = await _watch(daemon.pid, folder, files, bench) if bench.scale.minutes else []
            delivered = await store.head()
    threads = max(threads, rest.threads)

    def tell(key: str, name: str, unit: str, value: float) -> None:
        name = f"{files} files: {name}"
        bench.add(Figure(key=f"fleet.{key}", name=name, unit=unit, samples=(value,), more_is_better=False))

    tell("first", "first delivery", "s", first)
    tell("all", f"all {total} delivered", "s", last)
    tell("spent", "processor time until then", "s", spent)
    tell("rss", "most resident memory", "MB", peak)
    tell("threads", "most threads", "", threads)
    tell("descriptors", "descriptors at rest", "", rest.descriptors)
    tell("open", "files open at rest", "", rest.open_files)
    tell("cpu", "processor at rest", "% of a core", idle * 100)
    tell("answer", "slowest /healthz/ready while delivering", "s", slowest)
    tell("quiet-answer", "/healthz/ready at rest", "s", quiet_answer)
    tell("unusable", "files told as unusable", "", unusable)
    if watched:
        if delivered != total + len(watched) * EVENTS_A_MINUTE:
            raise RuntimeError(f"{delivered - total} of {len(watched) * EVENTS_A_MINUTE} later events were delivered")
        minutes = f"after {len(watched)} minutes with an event a second, against the first"
        tell("flat-rss", f"resident memory {minutes}", "", watched[-1].rss_mb / watched[0].rss_mb)
        tell("flat-descriptors", f"descriptors {minutes}", "", watched[-1].descriptors / watched[0].descriptors)
        tell("flat-threads", f"threads {minutes}", "", watched[-1].threads / watched[0].threads)


async def _watch(pid: int, folder: Path, files: int, bench: Bench) -> list[ProcessFigures]:
    """Append an event a second, each to another file; return the figures of the daemon at the end of each minute."""
    found = []
    for minute in range(max(2, round(bench.scale.minutes))):
        for second in range(EVENTS_A_MINUTE):
            number = (minute * EVENTS_A_MINUTE + second) % files
            outbox = await OutboxFile.open(folder / f"bot-{number:05}.outbox.db")
            await say(outbox, f"chat-{number:05}")
            await outbox.close()
            await asyncio.sleep(1)
        await asyncio.sleep(5)  # for the last of them to be delivered
        found.append(figures_of(pid))
        print(f"minute {minute + 1}: {found[-1]}", flush=True)
    return found
