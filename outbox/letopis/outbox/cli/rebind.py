"""``letopis outbox rebind``: bind an outbox to another history store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from letopis.outbox.cli.interface.command import Verb
from letopis.outbox.cli.interface.options import settings, with_options
from letopis.outbox.cli.interface.output import JSON, emit, note, printable, wants_json
from letopis.outbox.cli.interface.selection import YES, as_operator, confirm

if TYPE_CHECKING:
    from letopis.outbox.event_log.rebind import Rebound
    from letopis.outbox.file.outbox_file import OutboxFile


@click.command(
    cls=Verb,
    examples=(
        "letopis --store postgresql://bot@db/history outbox rebind",
        "letopis --store postgresql://bot@db/history outbox rebind --yes --json",
    ),
)
@YES
@JSON
@with_options
def rebind(yes: bool) -> None:
    """Bind the outbox to the history store of --store, because its own is gone for good.

    Delivered events that the outbox still holds are sent again. Those that it has pruned are lost: they are listed by
    conversation before anything is changed, and these conversations are blocked until
    `letopis outbox skip --missing`. A store that was restored from a backup, or moved, needs none of this.

    Before the first delivery it confirms the store if the bot names it differently. Exits with 2 if confirmation is
    required and stdin is not a terminal.
    """
    from letopis.outbox.cli.interface.locations import with_outbox

    done = asyncio.run(with_outbox(settings(), lambda file: _rebound(file, yes=yes)))
    emit(_json(done), text=lambda: note(f"the outbox is bound to {_place(done)} now"))


async def _rebound(file: OutboxFile, *, yes: bool) -> Rebound:
    from letopis.outbox.cli.interface.locations import store_of
    from letopis.outbox.event_log.bound_store import read_binding
    from letopis.outbox.event_log.destination import destination_of
    from letopis.outbox.history.store_location import check_apart
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.urls import normalise_url

    found = settings()
    url = normalise_url(store_of(found))
    check_apart(file.path, url)
    bound = await file.read(read_binding)
    if found.store is None and bound.destination != destination_of(url):
        raise click.UsageError("Name the history store with --store.")
    store = ConversationStore(url, pool_size=2)
    try:
        ahead = await as_operator(file).rebind(store, dry_run=True)
        if not wants_json():
            _tell(ahead)
        confirm("Bind the outbox to this store?", yes=yes)
        return await as_operator(file).rebind(store)
    finally:
        await store.close()


def _tell(ahead: Rebound) -> None:
    """Print the consequences before anything is changed."""
    before = ahead.before
    if before.store_id is not None:
        known = printable(before.destination or "an unknown place")
        note(f"the outbox is bound to history store {before.store_id} at {known}")
    elif before.destination is not None:
        note(f"the outbox is not bound yet; the bot named {printable(before.destination)}")
    note(f"the store is {_place(ahead)}")
    note(f"{ahead.resent} delivered events will be sent again")
    if ahead.lost:
        total = sum(ahead.lost.values())
        note(f"{total} events of {len(ahead.lost)} conversations were pruned from the outbox, and are lost:")
        for name, count in ahead.lost.items():
            click.echo(f"{count:>8}  {printable(name)}")


def _place(done: Rebound) -> str:
    return f"{printable(done.destination)}, history store {done.store_id}"


def _json(done: Rebound) -> dict[str, Any]:
    before = done.before
    return {
        "before": {
            "id": None if before.store_id is None else str(before.store_id),
            "destination": before.destination,
        },
        "store": {"id": str(done.store_id), "destination": done.destination},
        "resent": done.resent,
        "lost": dict(done.lost),
    }
