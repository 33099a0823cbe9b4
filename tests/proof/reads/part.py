"""Compare reads with earlier acknowledgements under deliveries, rewinds, forks, prunes and restores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from letopis.outbox import History, Retention
from letopis.store import ConversationStore, InvalidInput
from tests.proof.options import Options
from tests.proof.reads.client import Client, Reads
from tests.proof.reads.shared import list_records, share
from tests.proof.rows import Row, row_of
from tests.proof.stores import each, fresh
from tests.support.defects import planted
from tests.support.store_changes import copied, put_back

PRUNED: Final = "reads while all is delivered, rewound, forked and pruned: what was acknowledged before, once, in order"
RESTORED: Final = "the same, while the store is put back to an earlier state again and again"
CONTROL: Final = "the same, with the store read before the outbox"
SHARED: Final = "two outboxes share conversations: what is saved is shown, each is listed, the active one is one"
SHARED_CONTROL: Final = "the same, with outboxes that trust their own file about the path"
RECORDS: Final = "records are listed while eight writers put them"
RECORDS_CONTROL: Final = "the same, with values that are read after the list"
CLIENTS: Final = 6
TRIES: Final = 50  # to put a store back beside deliveries
TIMEOUT_SECONDS: Final = 1_200.0  # seconds after which it is not waited for more reads


def prove(options: Options) -> Iterator[Row]:
    many, few = options.many(28_000, 300), options.many(6_000, 100)
    for store in each(options.folder, "reads"):
        if store.missing:
            yield Row(what=PRUNED, where=store.kind, missing=store.missing)
            continue
        reads, _ = asyncio.run(_read(store.url, options.folder / f"{store.kind}.db", many, options.seed))
        yield _row(PRUNED, store.kind, reads, 28_000, reads.notes)
        with fresh(store.kind, options.folder, "reads-restored") as other:
            path = options.folder / f"{store.kind}-restored.db"
            reads, restores = asyncio.run(_read(other.url, path, few, options.seed + 1, restored=True))
        yield _row(RESTORED, store.kind, reads, 6_000, f", {restores:,} restores")
        with fresh(store.kind, options.folder, "reads-control") as other:
            path = options.folder / f"{store.kind}-control.db"
            reads, _ = asyncio.run(_read(other.url, path, 20_000, options.seed, defect=True))
        yield row_of(CONTROL, store.kind, count=reads.count, unit="reads", problems=reads.problems, control=True)
        yield from _shared(store.kind, options)


def _shared(kind: str, options: Options) -> Iterator[Row]:
    many, few = options.many(3_000, 40), options.many(2_000, 100)
    for what, defect, control in (
        (SHARED, None, False),
        (SHARED_CONTROL, "an outbox trusts its own file about the path", True),
    ):
        with fresh(kind, options.folder, f"reads-shared-{control}") as other, planted(*([defect] if defect else [])):
            folder = options.folder / f"{kind}-shared-{control}"
            folder.mkdir(parents=True)
            reads = asyncio.run(share(other.url, folder, many, options.seed, defect=control))
        least = 0 if control else 3_000
        yield row_of(what, kind, reads.count, least, "reads", reads.problems, control=control)
    for what, defect, control in (
        (RECORDS, None, False),
        (RECORDS_CONTROL, "the values of a list of records are read after it", True),
    ):
        with fresh(kind, options.folder, f"reads-records-{control}") as other, planted(*([defect] if defect else [])):
            path = options.folder / f"{kind}-records-{control}.db"
            reads = asyncio.run(list_records(other.url, path, few, defect=control))
        yield row_of(what, kind, reads.count, 0 if control else 2_000, "lists", reads.problems, control=control)


def _row(what: str, kind: str, reads: Reads, least: int, notes: str = "") -> Row:
    return row_of(what, kind, reads.count, least, "reads", reads.problems, f"{reads.incomplete:,} not complete{notes}")


async def _read(
    url: str, path: Path, many: int, seed: int, *, restored: bool = False, defect: bool = False
) -> tuple[Reads, int]:
    """Have clients speak and read until there were ``many`` reads; with the defect, until one of them is wrong."""
    async with ConversationStore.open(url, migrate=True):
        pass
    reads, random, begun = Reads(), Random(seed), time.monotonic()

    def enough() -> bool:
        late = time.monotonic() - begun > TIMEOUT_SECONDS
        return reads.count >= many or late or (bool(reads.problems) if defect else len(reads.problems) > 50)

    # What is pruned at once has to be in the store; what the store lost has to be in the file.
    retention = Retention() if restored else Retention(keep_last=0, keep_for=timedelta(0))
    async with AsyncExitStack() as stack:
        history = await stack.enter_async_context(
            History(path, store=url, retention=retention, watch=False, read_timeout=30)
        )
        stack.enter_context(planted("a read asks the store before the outbox") if defect else nullcontext())
        clients = [
            Client(history, f"o{number}", Random(random.random()), reads, listed=not restored, forks=not restored)
            for number in range(CLIENTS)
        ]

        async def live(client: Client) -> None:
            try:
                await client.live(enough)
            except InvalidInput as error:
                if not defect:
                    raise
                # What it has just said is not there for it: the planted defect shows in its next word as well.
                reads.problems.append(str(error))

        work = [live(client) for client in clients]
        if restored:
            restores = asyncio.create_task(_restoring(url, enough, every=0.3))
            await asyncio.gather(*work)
            return reads, await restores
        await asyncio.gather(*work)
        reads.notes = await history.outbox.read(_told)
        return reads, 0


def _told(connection: Any) -> str:
    said, pruned = connection.exec_driver_sql("SELECT sum(head), sum(pruned) FROM letopis_outbox_lanes").one()
    return f", {said:,} events, {pruned:,} pruned"


async def _restoring(url: str, until: Callable[[], bool], *, every: float) -> int:
    """Keep a copy of all tables, and put it back a little later, again and again; return how often."""
    done = 0
    while not until():
        copy = await copied(url)
        await asyncio.sleep(every)
        for _ in range(TRIES):
            try:
                await put_back(url, copy)
            except DBAPIError:  # the relay was in the way
                await asyncio.sleep(0.02)
            else:
                done += 1
                break
        await asyncio.sleep(every)
    return done
