"""``letopis outbox verify`` and ``salvage``, ``letopis db verify``: whether all is still what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.exits import Ended, Exit, shown
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, note, print_json

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from letopis.outbox.salvage import Salvaged
    from letopis.outbox.soundness import Kept

SHOWN: Final = 100
"""Problems that are named; the others are counted."""
A_DAY: Final = 86_400.0
"""Seconds that one question to the store may take: some go over all of it."""


@click.command(name="verify")
@click.option("--alone", is_flag=True, help="Do not ask the history store.")
@JSON
@with_options
def verify_outbox(alone: bool, as_json: bool) -> None:
    """Read all of the outbox file, and say whether it still holds what was appended.

    Its WAL, its structure, each event's digest, what is counted of each conversation; and what the history store knows
    of it, if that can be reached. Changes nothing. Exits with 1 if something is wrong.
    """
    import anyio

    from letopis.outbox.cli.places import existing_outbox, store_of
    from letopis.outbox.soundness import kept_in, problems
    from letopis.store.urls import normalise_url

    path = existing_outbox(settings())
    found = list(problems(path))
    compared = False
    if not alone and (kept := kept_in(path)) is not None:
        compared, contradictions = anyio.run(_compared, normalise_url(store_of(settings())), kept)
        found += contradictions
    if not (alone or compared):
        note("the history store was not asked: it cannot be reached, or is not there yet")
    _report(path.name, found, as_json=as_json, compared=compared)


@click.command(name="verify")
@JSON
@with_options
def verify_store(as_json: bool) -> None:
    """Read all of the history store, and say whether it still holds what was written.

    Each event's digest, positions, versions and sequences without a gap, and whether the rows of conversations and
    messages are what the log makes of them; of an SQLite file its structure and its WAL too. Changes nothing. Exits
    with 1 if something is wrong.
    """
    import anyio

    from letopis.outbox.cli.places import store_of
    from letopis.outbox.history import check_apart
    from letopis.store.urls import normalise_url, safe_url

    url = normalise_url(store_of(settings()))
    check_apart(Path(settings().outbox), url)
    if url.get_backend_name() == "sqlite" and not anyio.run(_there, url):
        raise Ended(Exit.CONFIGURATION, f"{clean(safe_url(url))}: there is no such file")
    _report(safe_url(url), anyio.run(problems_of_store, url), as_json=as_json)


@click.command()
@click.argument("damaged", metavar="DAMAGED")
@click.option("--to", "to", metavar="NEW", required=True, help="The new outbox file; it must not exist.")
@JSON
@with_options
def salvage(damaged: str, to: str, as_json: bool) -> None:
    """Take what proves itself by its digest out of a DAMAGED outbox file, into a new outbox.

    Says what was kept, and what is lost by conversation and sequence. The damaged file stays as it is; no bot and no
    relay may have it open. Exits with 1 if something is lost.
    """
    import anyio

    from letopis.outbox.salvage import salvage as run

    done = anyio.run(run, damaged, to)
    _receipt(done, clean(to), as_json=as_json)
    if not done.whole:
        raise Ended(Exit.FAILED)


async def _compared(url: URL, kept: Kept) -> tuple[bool, list[str]]:
    from letopis.outbox.soundness import differences
    from letopis.store.engines import Timeouts, create_store_engine
    from letopis.store.faults import StoreFault, translated
    from letopis.store.migration import STORE, State, revision_state
    from letopis.store.soundness import wal_problem

    embedded = url.get_backend_name() == "sqlite"
    if embedded and (not await _there(url) or wal_problem(Path(str(url.database)))):
        return False, []
    engine = create_store_engine(url, timeouts=Timeouts(statement=A_DAY), pool_size=1)
    try:
        with translated():
            async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
                if (await connection.run_sync(revision_state, STORE)).state is not State.CURRENT:
                    return False, []
            return True, [one async for one in differences(kept, engine)]
    except StoreFault:
        return False, []
    finally:
        await engine.dispose()


async def _there(url: URL) -> bool:
    from anyio import Path as File

    return await File(str(url.database)).is_file()


async def problems_of_store(url: URL) -> list[str]:
    from letopis.store.engines import Timeouts, create_store_engine
    from letopis.store.faults import StoreFault, translated
    from letopis.store.history import ConversationStore
    from letopis.store.migration import STORE, State, revision_state
    from letopis.store.soundness import problems, wal_problem

    embedded = url.get_backend_name() == "sqlite"
    if embedded and (problem := wal_problem(Path(str(url.database)))):
        return [problem]
    timeouts = Timeouts(statement=A_DAY)
    engine = create_store_engine(url, timeouts=timeouts, pool_size=1)
    found: list[str] = []
    try:
        with translated():
            async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
                revision = await connection.run_sync(revision_state, STORE)
            if revision.state is not State.CURRENT:
                return [revision.advice(STORE, command="letopis db upgrade")]
            found += [one async for one in problems(engine)]
        async with ConversationStore.open(url, migrate=False, pool_size=2, timeouts=timeouts) as store:
            async for one in store.rebuild(check=True, every=True):
                if one.differences:
                    found.append(f"conversation {one.conversation_id!r} differs from the log: {one.differences[0]}")
    except StoreFault as fault:
        # A server that is away says nothing about what it holds.
        if not embedded and fault.code != "damaged":
            raise
        found.append(f"it cannot be read to the end: {fault}")
    except ValueError:
        found.append("it cannot be read to the end: it holds values that are none")
    finally:
        await engine.dispose()
    return found


def _report(name: str, found: list[str], *, as_json: bool, compared: bool | None = None) -> None:
    if as_json:
        more = {} if compared is None else {"compared": compared}
        print_json({"name": name, "sound": not found, "problems": found[:SHOWN], "count": len(found), **more})
    else:
        for one in found[:SHOWN]:
            click.echo(shown(clean(one)))
    if found:
        raise Ended(Exit.FAILED, f"{clean(name)}: {len(found)} problem{'' if len(found) == 1 else 's'} found")
    if not as_json:
        note(f"{clean(name)}: all that it holds is what was written")


def _receipt(done: Salvaged, to: str, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "outbox": to,
                "origin_id": str(done.origin_id),
                "renewed": done.renewed,
                "kept": done.kept,
                "pending": done.pending,
                "let_go": done.let_go,
                "refused": done.refused,
                "gone": done.gone,
                "lost": [{"conversation_id": one, "sequences": list(what)} for one, what in done.lost.items()],
            }
        )
        return
    for conversation_id, sequences in done.lost.items():
        click.echo(f"{clean(conversation_id)}  {', '.join(map(str, sequences))}")
    note(f"{done.kept} events kept in {to}, {done.pending} of them pending; {done.lost_count} lost")
    if done.gone:
        note(f"{done.gone} pages of the file are gone: what was on them may have left no trace")
    if done.let_go:
        note(f"{done.let_go} delivered events were let go: the history store has them")
    if done.lost:
        note("their conversations are blocked: `letopis outbox skip --missing` gives up what is nowhere else")
