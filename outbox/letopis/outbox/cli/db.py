"""``letopis db``: create, upgrade, check and rebuild the history store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli.interface.command import VerbGroup
from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit
from letopis.outbox.cli.interface.options import settings, with_options
from letopis.outbox.cli.interface.output import JSON, emit, note, printable
from letopis.outbox.cli.interface.progress import ProgressReport, progress
from letopis.outbox.cli.interface.selection import YES, confirm
from letopis.outbox.cli.verify import anchor, verify_store

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine

    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.migrations import Revision
    from letopis.store.database.store_identity import StoreIdentity
    from letopis.store.maintenance.rebuild import Rebuilt

STATEMENT_TIMEOUT_SECONDS: Final = 86_400.0
"""One statement of a migration may rebuild a large table."""

INDEX_BATCH_EVENTS: Final = 2_000
MAX_LISTED: Final = 100
"""Differing conversations that are listed; the others are counted."""


@click.group(cls=VerbGroup)
@with_options
def db() -> None:
    """Create, upgrade and check the history store.

    The outbox file needs none of this: it migrates itself when it is opened.
    """


@db.command(
    examples=(
        "letopis db upgrade",
        "letopis --store postgresql://bot@db/history db upgrade --partitions 16",
    ),
)
@click.option(
    "--partitions",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Partitions of the log of a new store; an existing store keeps its own.",
)
@with_options
def upgrade(partitions: int) -> None:
    """Create the tables, or upgrade them to this release's revision."""
    from letopis.store.database.migrations import STORE, SchemaState, revision_state
    from letopis.store.database.migrations import upgrade as migrate

    def work(connection: sa.Connection) -> tuple[Revision, Revision]:
        before = revision_state(connection, STORE)
        if before.state in (SchemaState.MISSING, SchemaState.OLDER):
            migrate(connection, STORE, attributes={"partitions": partitions})
        return before, revision_state(connection, STORE)

    url, (before, after) = _on_store(work, create=True)
    if after.state is not SchemaState.CURRENT:
        raise CommandExit(Exit.CONFIGURATION, f"{url}: {after.advice(STORE, command='letopis db upgrade')}")
    if before.state is SchemaState.CURRENT:
        note(f"{url}: already at revision {after.revision}")
    else:
        note(f"{url}: now at revision {after.revision}")


@db.command(
    examples=(
        "letopis db current",
        "letopis db current --json | jq -r .state",
    ),
)
@JSON
@with_options
def current() -> None:
    """Show the revision of the tables."""
    from letopis.store.database.migrations import STORE

    url, found = _read_revision()
    emit(
        {"store": url, "revision": found.revision, "state": found.state, "head": STORE.head},
        text=f"{printable(found.revision or 'none')} ({found.state}; this release needs {STORE.head})",
    )


@db.command(
    examples=("letopis db check && systemctl start letopis-relay",),
)
@with_options
def check() -> None:
    """Exit with 0 if the tables match this release, otherwise with 78 and what to do."""
    from letopis.store.database.migrations import STORE, SchemaState

    url, found = _read_revision()
    line = f"{url}: {found.advice(STORE, command='letopis db upgrade')}"
    if found.state is not SchemaState.CURRENT:
        raise CommandExit(Exit.CONFIGURATION, line)
    note(line)


@db.command(
    name="new-identity",
    examples=("letopis --store postgresql://bot@db/history_staging db new-identity",),
)
@YES
@JSON
@with_options
def new_identity(yes: bool) -> None:
    """Give a copy of a history store an identity of its own.

    For a copy made for staging or a test: it then refuses the outboxes of the original, and an outbox must be bound to
    it with `letopis outbox rebind`. Nothing else changes. Never run it on the original: its outboxes would refuse to
    deliver. Exits with 2 if confirmation is required and stdin is not a terminal.
    """
    import anyio

    async def renew() -> tuple[str, StoreIdentity, StoreIdentity]:
        return await _renewed(yes=yes)

    name, before, after = anyio.run(renew)
    emit(
        {"store": name, "before": str(before.store_id), "id": str(after.store_id)},
        text=lambda: note(f"{name}: is now history store {after.store_id}, it was {before.store_id}"),
    )


@db.command(
    examples=(
        "letopis db rebuild --check",
        "letopis db rebuild --all",
        "letopis db rebuild --conversation telegram:4711",
    ),
)
@click.option("--check", is_flag=True, help="Write nothing: check all conversations, and exit with 1 if one differs.")
@click.option(
    "--all", "every", is_flag=True, help="Rebuild every conversation, not only those built by an older release."
)
@click.option("--conversation", metavar="ID", help="Only this conversation.")
@JSON
@with_options
def rebuild(check: bool, every: bool, conversation: str | None) -> None:
    """Rebuild the rows of conversations and messages from the log, while bots and relays keep running.

    By default those that an older release built, and those that are missing. If interrupted, run it again to continue.
    """
    import anyio

    with progress("checking" if check else "rebuilding", unit="conversations") as report:
        count, differing = anyio.run(_run, check, every, conversation, report)
    differences = [
        {"conversation_id": one.conversation_id, "count": one.difference_count, "names": list(one.differences)}
        for one in differing
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


@db.command(
    examples=("letopis db index",),
)
@JSON
@with_options
def index() -> None:
    """Bring the search index up to date, while bots and relays keep running.

    Searching does so too, in small steps: this is for a large history without an index. If interrupted, run it again to
    continue.
    """
    import anyio

    with progress("indexing", unit="events") as report:
        done = anyio.run(_index, report)
    emit({"events": done}, text=lambda: note(f"{done} events indexed"))


db.add_command(verify_store)
db.add_command(anchor)


def _differences_text(rebuilt: Rebuilt) -> str:
    more = rebuilt.difference_count - len(rebuilt.differences)
    names = ", ".join(rebuilt.differences) + (f" and {more} more" if more else "")
    return f"{printable(rebuilt.conversation_id)}: {names}"


def _read_revision() -> tuple[str, Revision]:
    from letopis.store.database.migrations import STORE, revision_state

    return _on_store(lambda connection: revision_state(connection, STORE), create=False)


def _on_store(work: Callable[[sa.Connection], Any], *, create: bool) -> tuple[str, Any]:
    """Run ``work`` in one transaction on the store; return the store's name and its result."""
    import anyio

    from letopis.outbox.cli.interface.locations import store_of
    from letopis.outbox.history.store_location import check_apart
    from letopis.store.database.engines import create_store_engine
    from letopis.store.database.fault_classification import translated
    from letopis.store.database.timeouts import Timeouts
    from letopis.store.database.urls import normalise_url, safe_url

    url = normalise_url(store_of(settings()))
    check_apart(Path(settings().outbox), url)
    name = printable(safe_url(url))
    if not create and url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise CommandExit(Exit.CONFIGURATION, f"{name}: there is no such file: `letopis db upgrade` creates it")

    async def transaction() -> Any:
        engine = create_store_engine(
            url, timeouts=Timeouts(statement=STATEMENT_TIMEOUT_SECONDS, lock=60.0), pool_size=1
        )
        if not create:
            engine = engine.execution_options(sqlite_begin="DEFERRED")
        try:
            with translated():
                async with engine.begin() as connection:
                    return await connection.run_sync(work)
        finally:
            await engine.dispose()

    return name, anyio.run(transaction)


async def _renewed(*, yes: bool) -> tuple[str, StoreIdentity, StoreIdentity]:
    from letopis.outbox.cli.interface.locations import store_of
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.urls import normalise_url, safe_url

    url = normalise_url(store_of(settings()))
    name = printable(safe_url(url))
    async with ConversationStore.open(url, migrate=False, pool_size=1) as store:
        before = await store.identity()
        confirm(
            f"{name}: outboxes that deliver to history store {before.store_id} will be refused here. Continue?", yes=yes
        )
        return name, before, await store.new_identity()


async def _index(report: ProgressReport) -> int:
    from letopis.store.maintenance.rebuild import events_to_index

    done = 0
    async with _store() as store:
        behind = await _counted(events_to_index)
        while indexed := await store.catch_up_search(INDEX_BATCH_EVENTS):
            done += indexed
            report(done, total=max(behind, done))
    return done


async def _counted(count: Callable[[AsyncEngine], Awaitable[int]]) -> int:
    """Return the amount of work in a store that exists."""
    from letopis.outbox.cli.interface.locations import store_of
    from letopis.store.database.engines import create_store_engine
    from letopis.store.database.timeouts import Timeouts
    from letopis.store.database.urls import normalise_url

    timeouts = Timeouts(statement=STATEMENT_TIMEOUT_SECONDS)
    engine = create_store_engine(normalise_url(store_of(settings())), timeouts=timeouts, pool_size=1)
    try:
        return await count(engine)
    finally:
        await engine.dispose()


def _store() -> AbstractAsyncContextManager[ConversationStore]:
    from letopis.outbox.cli.interface.locations import store_of
    from letopis.outbox.history.store_location import check_apart
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.urls import normalise_url

    url = normalise_url(store_of(settings()))
    check_apart(Path(settings().outbox), url)
    return ConversationStore.open(url, migrate=False, pool_size=2)


async def _run(
    check: bool, every: bool, conversation: str | None, report: ProgressReport
) -> tuple[Counter[str], list[Rebuilt]]:
    from letopis.store.maintenance.rebuild import Rebuilt, conversations_to_rebuild

    count, differing = Counter[str](), list[Rebuilt]()
    async with _store() as store:
        count_all = partial(conversations_to_rebuild, every=every or check)
        total = 1 if conversation is not None else await _counted(count_all)
        async for one in store.rebuild(check=check, every=every, conversation=conversation):
            count.update(conversations=1, events=one.events, written=one.written, differing=bool(one.differences))
            if one.differences and len(differing) < MAX_LISTED:
                differing.append(one)
            report(count["conversations"], total=total)
    return count, differing


def _summary(count: Counter[str], *, check: bool) -> str:
    done = "checked" if check else "rebuilt"
    return f"{count['conversations']} conversations with {count['events']} events {done}, {count['written']} changed"
