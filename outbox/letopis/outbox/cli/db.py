"""``letopis db``: the tables of the history store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, note, print_json
from letopis.outbox.cli.rebuild import index, rebuild
from letopis.outbox.cli.soundness import verify_store

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.store.migration import Revision

A_DAY: Final = 86_400.0
"""Seconds that one statement of a migration may take: a large table is rebuilt by one."""


@click.group()
@with_options
def db() -> None:
    """Make or check the tables of the history store.

    The outbox file needs none of this: it migrates itself when it is opened.
    """


@db.command()
@click.option(
    "--partitions",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Of the log, for a store that is made now; one that exists keeps what it has.",
)
@with_options
def upgrade(partitions: int) -> None:
    """Make the tables, or bring them to this release's revision."""
    from letopis.store.migration import STORE, State, revision_state
    from letopis.store.migration import upgrade as migrate

    def work(connection: sa.Connection) -> tuple[Revision, Revision]:
        before = revision_state(connection, STORE)
        if before.state in (State.MISSING, State.OLDER):
            migrate(connection, STORE, attributes={"partitions": partitions})
        return before, revision_state(connection, STORE)

    url, (before, after) = _on_store(work, create=True)
    if after.state is not State.CURRENT:
        raise Ended(Exit.CONFIGURATION, f"{url}: {after.advice(STORE, command='letopis db upgrade')}")
    if before.state is State.CURRENT:
        note(f"{url}: at revision {after.revision} already, nothing to do")
    else:
        note(f"{url}: now at revision {after.revision}")


@db.command()
@JSON
@with_options
def current(as_json: bool) -> None:
    """Show the revision that the tables are at."""
    from letopis.store.migration import STORE

    url, found = _look()
    if as_json:
        print_json({"store": url, "revision": found.revision, "state": found.state, "head": STORE.head})
    else:
        click.echo(f"{clean(found.revision or 'none')} ({found.state}; this release needs {STORE.head})")


@db.command()
@with_options
def check() -> None:
    """Exit with 0 if the tables are as this release needs them, else with 78 and what to do."""
    from letopis.store.migration import STORE, State

    url, found = _look()
    said = f"{url}: {found.advice(STORE, command='letopis db upgrade')}"
    if found.state is not State.CURRENT:
        raise Ended(Exit.CONFIGURATION, said)
    note(said)


db.add_command(rebuild)
db.add_command(index)
db.add_command(verify_store)


def _look() -> tuple[str, Revision]:
    from letopis.store.migration import STORE, revision_state

    return _on_store(lambda connection: revision_state(connection, STORE), create=False)


def _on_store(work: Callable[[sa.Connection], Any], *, create: bool) -> tuple[str, Any]:
    """Run ``work`` in one transaction on the store; return what it gave, and the store's name for people."""
    import anyio

    from letopis.outbox.cli.places import store_of
    from letopis.outbox.history import check_apart
    from letopis.store.engines import Timeouts, create_store_engine
    from letopis.store.faults import translated
    from letopis.store.urls import normalise_url, safe_url

    url = normalise_url(store_of(settings()))
    check_apart(Path(settings().outbox), url)
    name = clean(safe_url(url))
    if not create and url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise Ended(Exit.CONFIGURATION, f"{name}: there is no such file: `letopis db upgrade` makes it")

    async def transaction() -> Any:
        engine = create_store_engine(url, timeouts=Timeouts(statement=A_DAY, lock=60.0), pool_size=1)
        if not create:
            engine = engine.execution_options(sqlite_begin="DEFERRED")
        try:
            with translated():
                async with engine.begin() as connection:
                    return await connection.run_sync(work)
        finally:
            await engine.dispose()

    return name, anyio.run(transaction)
