"""``letopis history hold``: forbid the erasure of an owner or a conversation, release it, or list what is held."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import open_source
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import emit, note, printable, table
from letopis.ops.cli.interface.render import minute

if TYPE_CHECKING:
    from letopis.store.erasures import ErasureRegister, HeldKind, Hold
    from letopis.store.errors import Held


@verb(
    "letopis history hold",
    "letopis history hold telegram:4711 --reason 'case 17/2026'",
    "letopis history hold --owner 42 --reason 'case 17/2026' --by legal",
    "letopis history hold --owner 42 --release",
    json=True,
)
@click.argument("conversation", required=False)
@click.option("--owner", metavar="ID", help="Hold this owner, with all conversations and records.")
@click.option("--reason", metavar="TEXT", help="Why; shown to those who want to erase it.")
@click.option("--by", metavar="NAME", help="Who asked for it.")
@click.option("--release", is_flag=True, help="Release the hold.")
def hold(conversation: str | None, owner: str | None, reason: str | None, by: str | None, release: bool) -> None:
    """Hold an owner or a conversation: nothing of it is erased until it is released. Without either, list the holds.

    Erasures, resets, deletions and redactions are refused; those that another outbox has appended already are set aside
    when they arrive. Export is not refused. The history store must be reachable. Exits with 3 if there is nothing to
    release or to list.
    """
    if conversation is not None and owner is not None:
        raise click.UsageError("Name a conversation, or an owner with --owner.")
    named = conversation is not None or owner is not None
    if named and release == (reason is not None):
        raise click.UsageError("Give --reason to hold it, or --release.")
    if not named and (release or reason or by):
        raise click.UsageError("Name a conversation, or an owner with --owner.")
    kind: HeldKind = "conversation" if owner is None else "owner"
    subject = conversation if owner is None else owner

    async def run() -> list[Hold]:
        async with open_source(settings()) as source:
            register: ErasureRegister = (source.store if hasattr(source, "store") else source).erasures
            if subject is None:
                return await register.holds()
            if not release:
                return [await register.hold(kind, subject, reason=reason or "", requested_by=by)]
            if not await register.release(kind, subject):
                raise CommandExit(Exit.NOTHING, f"{kind} {subject!r} is not on hold")
            return []

    holds = asyncio.run(run())
    shown = [
        {
            "kind": held.kind,
            "subject": held.subject,
            "reason": held.reason,
            "by": held.requested_by,
            "held_at": held.held_at.isoformat(),
        }
        for held in holds
    ]
    rows = [(held.kind, held.subject, minute(held.held_at), held.requested_by or "", held.reason) for held in holds]
    text = table(("KIND", "ID", "SINCE", "BY", "REASON"), [tuple(map(printable, row)) for row in rows])
    emit({"holds": shown}, text=text if holds else "")
    if release:
        note(f"{kind} {printable(subject or '')} is released")
    elif not holds:
        raise CommandExit(Exit.NOTHING, "nothing is on hold")


async def hold_on(source: Any, conversation_id: str) -> Held | None:
    """Return the hold on a conversation, or on its owner; ``None`` if there is none, or the store does not answer."""
    from letopis.store.database.faults import StoreFault
    from letopis.store.errors import Held

    try:
        await (source.store if hasattr(source, "store") else source).erasures.check_not_held(
            conversation=conversation_id
        )
    except Held as held:
        return held
    except StoreFault:
        return None
    return None
