"""``letopis db``: create, upgrade, check and rebuild the history store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from letopis.ops.cli.interface.command import VerbGroup
from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import store_engine, store_revision, store_url
from letopis.ops.cli.interface.options import settings, verb, with_options
from letopis.ops.cli.interface.output import emit, note, printable
from letopis.ops.cli.interface.progress import ProgressReport, progress
from letopis.ops.cli.interface.selection import YES, confirm
from letopis.ops.cli.verify import anchor, verify_store

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine

    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.migrations import Revision
    from letopis.store.database.store_identity import StoreIdentity
    from letopis.store.ops.rebuild import Rebuilt

INDEX_BATCH_EVENTS: Final = 2_000
MAX_LISTED: Final = 100  # differing conversations that are listed; the others are counted


@click.group(cls=VerbGroup)
@with_options
def db() -> None:
    """Create, upgrade and check the history store.

    The outbox file needs none of this: it migrates itself when it is opened.
    """


@verb("letopis db upgrade", "letopis --store postgresql://bot@db/history db upgrade --partitions 16", group=db)
@click.option(
    "--partitions",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Partitions of the log of a new store; an existing store keeps its own.",
)
def upgrade(partitions: int) -> None:
    """Create the tables, or upgrade them to this release's revision."""
    from letopis.store.database.migrations import STORE, SchemaState, revision_state
    from letopis.store.database.migrations import upgrade as migrate

    def work(connection: sa.Connection) -> tuple[Revision, Revision]:
        before = revision_state(connection, STORE)
        if before.state in (SchemaState.MISSING, SchemaState.OLDER):
            migrate(connection, STORE, attributes={"partitions": partitions})
        return before, revision_state(connection, STORE)

    url, name = store_url(settings())

    async def run() -> tuple[Revision, Revision]:
        async with store_engine(url, lock=60.0) as engine, engine.begin() as connection:
            return await connection.run_sync(work)

    before, after = asyncio.run(run())
    if after.state is not SchemaState.CURRENT:
        raise CommandExit(Exit.CONFIGURATION, f"{name}: {after.advice(STORE, command='letopis db upgrade')}")
    since = "already" if before.state is SchemaState.CURRENT else "now"
    note(f"{name}: {since} at revision {after.revision}")


@verb("letopis db current", "letopis db current --json | jq -r .state", group=db, json=True)
def current() -> None:
    """Show the revision of the tables."""
    from letopis.store.database.migrations import STORE

    url, revision = _read_revision()
    emit(
        {"store": url, "revision": revision.revision, "state": revision.state, "head": STORE.head},
        text=f"{printable(revision.revision or 'none')} ({revision.state}; this release needs {STORE.head})",
    )


@verb("letopis db check && systemctl start letopis-relay", group=db)
def check() -> None:
    """Exit with 0 if the tables match this release, otherwise with 78 and what to do."""
    from letopis.store.database.migrations import STORE, SchemaState

    url, revision = _read_revision()
    line = f"{url}: {revision.advice(STORE, command='letopis db upgrade')}"
    if revision.state is not SchemaState.CURRENT:
        raise CommandExit(Exit.CONFIGURATION, line)
    note(line)


@verb("letopis --store postgresql://bot@db/history_staging db new-identity", group=db, name="new-identity", json=True)
@YES
def new_identity(yes: bool) -> None:
    """Give a copy of a history store an identity of its own.

    For a copy made for staging or a test: it then refuses the outboxes of the original, and an outbox must be bound to
    it with `letopis outbox rebind`. Nothing else changes. Never run it on the original: its outboxes would refuse to
    deliver. Exits with 2 if confirmation is required and stdin is not a terminal.
    """
    from letopis.store.conversation_store import ConversationStore

    url, name = store_url(settings())

    async def renew() -> tuple[StoreIdentity, StoreIdentity]:
        async with ConversationStore.open(url, migrate=False, pool_size=1) as store:
            before = await store.identity()
            refused = f"outboxes that deliver to history store {before.store_id} will be refused here"
            confirm(f"{name}: {refused}. Continue?", yes=yes)
            return before, await store.new_identity()

    before, after = asyncio.run(renew())
    emit(
        {"store": name, "before": str(before.store_id), "id": str(after.store_id)},
        text=lambda: note(f"{name}: is now history store {after.store_id}, it was {before.store_id}"),
    )


@verb(
    "letopis db rebuild --check",
    "letopis db rebuild --all",
    "letopis db rebuild --conversation telegram:4711",
    group=db,
    json=True,
)
@click.option("--check", is_flag=True, help="Write nothing: check all conversations, and exit with 1 if one differs.")
@click.option(
    "--all", "every", is_flag=True, help="Rebuild every conversation, not only those built by an older release."
)
@click.option("--conversation", metavar="ID", help="Only this conversation.")
def rebuild(check: bool, every: bool, conversation: str | None) -> None:
    """Rebuild the rows of conversations and messages from the log, while bots and relays keep running.

    By default those that an older release built, and those that are missing. If interrupted, run it again to continue.
    """
    with progress("checking" if check else "rebuilding", unit="conversations") as report:
        count, differing = asyncio.run(_run(check, every, conversation, report))
    differences = [
        {"conversation_id": row.conversation_id, "count": row.difference_count, "names": list(row.differences)}
        for row in differing
    ]
    emit(
        {
            **{key: count[key] for key in ("conversations", "events", "differing", "written")},
            "differences": differences,
        },
        text="\n".join(map(_differences_text, differing)),
    )
    if conversation is not None and not count["conversations"]:
        raise CommandExit(Exit.NOTHING, f"there is no conversation {conversation!r}, or a newer release built its rows")
    left = count["differing"] - count["written"]
    what = "differ from the log" if check else "cannot be rebuilt from the log: restore the database"
    if left:
        raise CommandExit(Exit.FAILED, f"{_summary(count, check=check)}; {left} {what}")
    note(_summary(count, check=check))


@verb("letopis db index", group=db, json=True)
def index() -> None:
    """Bring the search index up to date, while bots and relays keep running.

    Searching does so too, in small steps: this is for a large history without an index. If interrupted, run it again to
    continue.
    """
    with progress("indexing", unit="events") as report:
        done = asyncio.run(_index(report))
    emit({"events": done}, text=lambda: note(f"{done} events indexed"))


db.add_command(verify_store)
db.add_command(anchor)


def _differences_text(rebuilt: Rebuilt) -> str:
    more = rebuilt.difference_count - len(rebuilt.differences)
    names = ", ".join(rebuilt.differences) + (f" and {more} more" if more else "")
    return f"{printable(rebuilt.conversation_id)}: {names}"


def _read_revision() -> tuple[str, Revision]:
    url, name = store_url(settings(), missing="there is no such file: `letopis db upgrade` creates it")

    async def read() -> Revision:
        async with store_engine(url, lock=60.0) as engine:
            return await store_revision(engine)

    return name, asyncio.run(read())


async def _index(report: ProgressReport) -> int:
    from letopis.store.ops.rebuild import events_to_index

    done = 0
    async with _store() as store:
        behind = await _counted(events_to_index)
        while indexed := await store.catch_up_search(INDEX_BATCH_EVENTS):
            done += indexed
            report(done, total=max(behind, done))
    return done


async def _counted(count: Callable[[AsyncEngine], Awaitable[int]]) -> int:
    """Return the amount of work in a store that exists."""
    async with store_engine(store_url(settings())[0]) as engine:
        return await count(engine)


def _store() -> AbstractAsyncContextManager[ConversationStore]:
    from letopis.store.conversation_store import ConversationStore

    return ConversationStore.open(store_url(settings())[0], migrate=False, pool_size=2)


async def _run(
    check: bool, every: bool, conversation: str | None, report: ProgressReport
) -> tuple[Counter[str], list[Rebuilt]]:
    from letopis.store.ops.rebuild import Rebuilt, conversations_to_rebuild
    from letopis.store.ops.rebuild import rebuild as rebuild_rows

    count, differing = Counter[str](), list[Rebuilt]()
    async with _store() as store:
        count_all = partial(conversations_to_rebuild, every=every or check)
        total = 1 if conversation is not None else await _counted(count_all)
        async for rebuilt in rebuild_rows(store, check=check, every=every, conversation=conversation):
            different = bool(rebuilt.differences)
            count.update(conversations=1, events=rebuilt.events, written=int(rebuilt.written), differing=int(different))
            if different and len(differing) < MAX_LISTED:
                differing.append(rebuilt)
            report(count["conversations"], total=total)
    return count, differing


def _summary(count: Counter[str], *, check: bool) -> str:
    done = "checked" if check else "rebuilt"
    return f"{count['conversations']} conversations with {count['events']} events {done}, {count['written']} changed"
