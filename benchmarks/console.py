"""Measure the server time of each page of the console at a million messages: ``python -m benchmarks.console``.

``--messages N`` for another number, ``--kind sqlite`` or ``postgresql`` for one of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.console_filling import COMMON, RARE, fill_outbox, fill_store, settle
from letopis.console.application import app
from letopis.outbox import History
from letopis.store import ConversationStore
from tests.support.servers import PostgresServer

LIMIT_MS: Final = 300
REPEATS: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the server took to answer a page, in milliseconds.

    :ivar busy: how long this process computed meanwhile; the rest is the database's work, and waiting for a processor.
    """

    page: str
    median: float
    worst: float
    busy: float

    @property
    def within(self) -> bool:
        return self.median < LIMIT_MS


async def measure(kind: str, url: str, folder: Path, count: int) -> list[Timing]:
    """Fill a store, open its console, and time its pages."""
    began = time.perf_counter()
    await fill_store(url, count)
    print(f"{kind}: {count:,} messages applied in {time.perf_counter() - began:.0f} s", flush=True)
    async with ConversationStore.open(url) as store:
        began = time.perf_counter()
        while await store.catch_up_search(10_000):
            pass
        print(f"{kind}: indexed for search in {time.perf_counter() - began:.0f} s", flush=True)
    await settle(url)
    async with History(folder / f"{kind}.outbox.db", store=url, watch=False, relay=False) as history:
        await fill_outbox(history)
        console = app(history, open_reading=True)
        state = console.state.console
        found = [replace(await timed(console, "", repeats=1), page=", first time")]
        began = time.perf_counter()
        found.append(replace(await timed(console, "statistics", repeats=1), page="statistics, first time"))
        during = []
        while not (await state.figures.look()).done:
            during.append(await timed(console, "conversations", repeats=1))
            await asyncio.sleep(0.2)  # a reader, not a siege
        print(
            f"{kind}: counted for the statistics in {time.perf_counter() - began:.1f} s, in the background", flush=True
        )
        if during:
            page = "conversations, while it is counted"
            found.append(
                replace(during[0], page=page, median=statistics.median(all_of(during)), worst=max(all_of(during)))
            )
        found += [await timed(console, page) for page in pages()]
        await state.close()
    return found


def all_of(timings: list[Timing]) -> list[float]:
    """Return the single times."""
    return [one.worst for one in timings]


def pages() -> list[str]:
    """Return the pages with their queries."""
    return [
        "",
        "stuck",
        "stuck?state=blocked&after=many-300",
        "conversations",
        "conversations?owner=owner-7",
        "conversations?state=all",
        f"conversations?q={RARE}",
        f"conversations?q={COMMON}",
        f"conversations?q={COMMON}&owner=owner-7",
        "conversation?id=long",
        "conversation?id=long&from=start",
        "conversation?id=long&version=5000",
        "conversation?id=fill-77&every=1",
        "conversation?id=fill-77&version=50",
        "statistics",
        "statistics?days=0",
        "statistics?days=0&owner=owner-7",
        "integrity",
        "audit",
        "session",
    ]


async def timed(console: Any, page: str, *, repeats: int = REPEATS) -> Timing:
    """Return how long a page takes, of several requests; the console's own cache of a second is waited out."""
    taken, computed = [], []
    for _ in range(repeats):
        if not page:
            await asyncio.sleep(1.05)
        began, busy = time.perf_counter(), time.process_time()
        code = await request(console, page)
        taken.append((time.perf_counter() - began) * 1_000)
        computed.append((time.process_time() - busy) * 1_000)
        if code != 200:
            raise SystemExit(f"{page} answered {code}")
    return Timing(page=page, median=statistics.median(taken), worst=max(taken), busy=statistics.median(computed))


async def request(console: Any, page: str) -> int:
    """Ask the application for a page, as its server would; return the code of the answer."""
    path, _, query = page.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/{path}",
        "raw_path": f"/{path}".encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    codes: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            codes.append(message["status"])

    await console(scope, receive, send)
    return codes[0]


def table(kind: str, found: list[Timing]) -> str:
    """Return the timings as a table in Markdown."""
    lines = [
        f"| {kind} | median, ms | worst, ms | of which this process, ms | median below {LIMIT_MS} ms |",
        "|---|--:|--:|--:|---|",
    ]
    lines += [
        f"| `/{one.page}` | {one.median:.0f} | {one.worst:.0f} | {one.busy:.0f} | {'yes' if one.within else '**no**'} |"
        for one in found
    ]
    return "\n".join(lines)


@contextmanager
def destinations(kinds: list[str], folder: Path) -> Iterator[dict[str, str]]:
    """Yield the URL of an empty database of each kind."""
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        for kind in kinds:
            if kind == "sqlite":
                urls[kind] = f"sqlite:///{(folder / 'history.db').as_posix()}"
            else:
                server = stack.enter_context(PostgresServer.find())
                urls[kind] = server.create_database()
                stack.callback(server.drop_database, urls[kind])
        yield urls


def main(arguments: list[str]) -> int:
    """Run the campaign; return 1 if a page took too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("postgresql", "sqlite"), action="append")
    given = parser.parse_args(arguments)
    slow = 0
    kinds = given.kind or ["postgresql", "sqlite"]
    with tempfile.TemporaryDirectory() as place, destinations(kinds, Path(place)) as urls:
        for kind, url in urls.items():
            found = asyncio.run(measure(kind, url, Path(place), given.messages))
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            print(f"{kind}: {load:.1f} programs waited for each processor at the end", flush=True)
            print(table(kind, found), flush=True)
            slow += sum(not one.within for one in found)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
