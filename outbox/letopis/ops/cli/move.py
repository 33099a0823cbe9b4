"""``letopis move`` and ``letopis outbox rebind``: change the history store of bots that keep running."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit, name_store
from letopis.ops.cli.interface.locations import store_of, with_outbox
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import counted, emit, note, printable, wants_json
from letopis.ops.cli.interface.progress import progress
from letopis.ops.cli.interface.selection import YES, as_operator, confirm

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.relay.store_binding import Rebound
    from letopis.store.ops.move.mover import Moved, MoveProgress


@verb(
    "letopis move --to postgresql://bot@db/history",
    "letopis --store postgresql://bot@old/history move --to postgresql://bot@new/history",
    "letopis move --cancel",
    json=True,
)
@click.option(
    "--to",
    "target",
    metavar="URL",
    help="The new history store: an empty database, or the target of an interrupted move. Or LETOPIS_MOVE_TO, or "
    "LETOPIS_MOVE_TO_FILE for a file that holds it.",
)
@click.option("--cancel", is_flag=True, help="Abandon an unfinished move: the old store takes deliveries again.")
def move(target: str | None, cancel: bool) -> None:
    """Move the history to another store while bots keep running.

    The store may be of any kind. Each event is read back and compared. If interrupted, run it again to continue. At the
    end deliveries wait in the outboxes for some seconds; from then on only the new store takes them.
    """
    from letopis.ops.config.settings import move_target
    from letopis.outbox.file.inspection import check_apart
    from letopis.store.database.urls import normalise_url

    source = normalise_url(store_of(settings()))
    check_apart(Path(settings().outbox), source)
    if cancel:
        if target is not None:
            raise click.UsageError("--cancel takes no --to: it reopens the old store, which --store names")
        _cancel(source)
        return
    target = move_target(target)
    if target is None:
        raise click.UsageError("name the target: --to postgresql://user@host/database")
    goal = normalise_url(target)
    check_apart(Path(settings().outbox), goal)
    name_store(None)  # from here on a fault may be of either store
    from letopis.store.ops.move.mover import move as run

    stage = ""
    with progress("copying", unit="events") as report:

        def show(step: MoveProgress) -> None:
            nonlocal stage
            if step.stage != stage and step.stage == "closed":
                note("the old store is closed: deliveries wait in the outboxes while the rest is copied ...")
            stage = step.stage
            report(step.events, total=step.total)

        done = asyncio.run(run(source, goal, progress=show))
    if not done.already:
        asyncio.run(_note_in_outbox(done))
    counts = ("events", "conversations", "messages", "lanes", "origins", "owners")
    emit(
        {
            "source": done.source,
            "target": done.target,
            "store_id": str(done.store_id),
            "already": done.already,
            **{name: getattr(done, name) for name in counts},
            "projections": list(done.projections),
            "seconds": round(done.seconds, 3),
            "paused_seconds": round(done.paused, 3),
        },
        text="",
    )
    _advise(done)


async def _note_in_outbox(done: Moved) -> None:
    """Have ``letopis status`` tell where the history is, also if no relay runs that would find out."""
    from letopis.outbox.event_log.bound_store import note_moved
    from letopis.store.database.store_identity import moved_fault
    from letopis.store.errors import LetopisError

    async def write(file: OutboxFile) -> None:
        note = partial(note_moved, fault=moved_fault(done.target), store_id=done.store_id, now_us=file.now_us())
        await file.write(note)

    with suppress(LetopisError, CommandExit):  # no outbox here: the history is moved all the same
        await with_outbox(settings(), write)


def _cancel(source: URL) -> None:
    from letopis.store.ops.move.mover import cancel_move

    was = asyncio.run(cancel_move(source))
    emit({"cancelled": was is not None, "target": was}, text="")
    if was is None:
        raise CommandExit(Exit.NOTHING, "there is no move to abandon: the store takes deliveries")
    note(f"the move to {printable(was)} is abandoned: the store takes deliveries again")


def _advise(done: Moved) -> None:
    goal = printable(done.target)
    if done.already:
        note(f"nothing to do: the history is in {goal} already")
    else:
        note(
            f"the history is in {goal}, verified: {counted(done.conversations, 'conversation')}, {done.messages}"
            f" messages, {done.events} events; deliveries waited for {done.paused:.1f} s"
        )
    note("now name the new store to every bot and relay (store= in Python, LETOPIS_STORE, or store in letopis.toml)")
    note(f"{printable(done.source)} takes no deliveries any more; archive it once nothing uses it any more")
    note("run `letopis db index` on the new store to build its search index now")
    if done.projections:
        names = ", ".join(map(printable, done.projections))
        note(f"checkpoints were copied, the tables of these projections were not: {names}; copy or rebuild those")


@verb(
    "letopis --store postgresql://bot@db/history outbox rebind",
    "letopis --store postgresql://bot@db/history outbox rebind --yes --json",
    json=True,
)
@YES
def rebind(yes: bool) -> None:
    """Bind the outbox to the history store of --store, because its own is gone for good.

    Delivered events that the outbox still holds are sent again. Those that it has pruned are lost: they are listed by
    conversation before anything is changed, and these conversations are blocked until
    `letopis outbox skip --missing`. A store that was restored from a backup, or moved, needs none of this.

    Before the first delivery it confirms the store if the bot names it differently. Exits with 2 if confirmation is
    required and stdin is not a terminal.
    """
    done = asyncio.run(with_outbox(settings(), lambda file: _rebound(file, yes=yes)))
    before = {"id": done.before.store_id and str(done.before.store_id), "destination": done.before.destination}
    store = {"id": str(done.store_id), "destination": done.destination}
    emit(
        {"before": before, "store": store, "resent": done.resent, "lost": dict(done.lost)},
        text=lambda: note(f"the outbox is bound to {_place(done)} now"),
    )


async def _rebound(file: OutboxFile, *, yes: bool) -> Rebound:
    from letopis.outbox.event_log.bound_store import read_binding
    from letopis.outbox.file.inspection import check_apart
    from letopis.outbox.relay.store_binding import destination_of
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.urls import normalise_url

    config = settings()
    url = normalise_url(store_of(config))
    check_apart(file.path, url)
    bound = await file.read(read_binding)
    if config.store is None and bound.destination != destination_of(url):
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
