"""``letopis history import`` and ``export``: conversations as files."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from letopis.outbox.cli.exits import Ended, Exit, shown
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.outfile import written
from letopis.outbox.cli.output import JSON, clean, note, print_json, progress

if TYPE_CHECKING:
    from letopis.outbox.intake import Counts
    from letopis.store.transfer.jsonl import Refused


PATIENCE: Final = 60.0
"""Seconds that an export waits for one page of a store that is slow."""


@click.group(name="import")
@with_options
def import_() -> None:
    """Take conversations in from a file, through the outbox."""


@click.group()
@with_options
def export() -> None:
    """Write conversations to a file."""


@import_.command(name="jsonl")
@click.argument("file", metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Check every line and write nothing.")
@click.option("--wait", is_flag=True, help="Deliver what the outbox holds, and end when the history store has it all.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="With --wait: wait at most so long, then exit 75.",
)
@JSON
@with_options
def import_jsonl(file: str, dry_run: bool, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Append the messages of a JSON Lines FILE ("-" is stdin) to the outbox.

    A line that is there already changes nothing, so a file may be imported again. A line that cannot be kept is named
    with its number, the others go on, and the exit code is 1. The history store need not be reachable.
    """
    import anyio

    from letopis.store.transfer.jsonl import read_lines
    from letopis.store.transfer.occurrences import Occurrences

    with _reading(file) as (stream, size), Occurrences() as count, progress("import", size) as moved:
        lines = read_lines(stream, count=count)
        if dry_run:
            from letopis.outbox.intake import try_out

            counts, pending = try_out(lines, _tell), None
        else:
            counts, pending = anyio.run(_import, lines, wait, timeout, lambda now: moved(now.bytes))
    _report(counts, pending, dry_run=dry_run, as_json=as_json)
    if counts.refused:
        raise Ended(Exit.FAILED)
    if wait and pending:
        raise Ended(Exit.LATER, f"{pending} events are still on their way; nothing is lost")


async def _import(lines: Iterator[Any], wait: bool, patience: float | None, moved: Any) -> tuple[Counts, int]:
    from letopis.outbox.history import History
    from letopis.outbox.intake import Intake

    found = settings()
    async with History.open(
        found.outbox, store=found.store, relay=wait, policy=found.policy, retention=found.retention
    ) as history:
        with Intake(outbox=history.outbox, store=history.store, tell=_tell, progress=moved) as intake:
            counts = await intake.take(lines)
        if wait:
            await history.drained(patience)
        return counts, (await history.status()).pending


def _tell(refused: Refused) -> None:
    note(shown(f"line {refused.number}: {refused.reason}"))


def _report(counts: Counts, pending: int | None, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "imported": counts.imported,
                "already_there": counts.known,
                "refused": counts.refused,
                "pending": pending,
            }
        )
        return
    words = "can be imported" if dry_run else "imported"
    note(f"{counts.imported} {words}, {counts.known} already there, {counts.refused} refused")
    if pending:
        note(f"{pending} events wait in the outbox: the relay delivers them (`letopis relay --once` does it now)")
    elif pending == 0:
        note("the history store has everything")


@export.command(name="jsonl")
@click.argument("file", metavar="FILE")
@click.option("--conversation", metavar="ID", help="Only this conversation.")
@click.option("--owner", metavar="ID", help="Only the conversations of this owner.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@with_options
def export_jsonl(file: str, conversation: str | None, owner: str | None, force: bool) -> None:
    """Write conversations as JSON Lines to FILE ("-" is stdout), one message a line, each conversation in order.

    What still waits in the outbox is in it. FILE appears when it is whole. Exits with 3 if nothing matched, and with 75
    if the history store cannot be reached.
    """
    import anyio

    if conversation is not None and owner is not None:
        raise click.UsageError("Give --conversation or --owner, not both.")
    with written(file, force=force) as stream:
        lines, conversations = anyio.run(_export, stream, conversation, owner)
        if not conversations:
            raise Ended(Exit.NOTHING, "nothing matched")
    note(f"{lines} messages of {conversations} conversation{'' if conversations == 1 else 's'} exported")


async def _export(stream: BinaryIO, conversation: str | None, owner: str | None) -> tuple[int, int]:
    from letopis.outbox.cli.places import opened_source
    from letopis.outbox.outflow import Flow, Incomplete

    async with opened_source(settings(), patience=PATIENCE) as source:
        flow = Flow(source)
        lines = flow.of_one(conversation) if conversation is not None else flow.of_all(owner=owner)
        try:
            async for line in lines:
                stream.write(line)
        except Incomplete as error:
            raise Ended(Exit.LATER, str(error)) from error
    return flow.lines, flow.conversations


@contextmanager
def _reading(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file for reading, with its size where it has one."""
    try:
        # Not sys.stdin.buffer: the interpreter could not end while a thread still waits for a line from it.
        stream = open(sys.stdin.fileno(), "rb", closefd=False) if file == "-" else Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise Ended(Exit.USAGE, f"{clean(file)} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(stream.fileno())
        yield stream, found.st_size if stat.S_ISREG(found.st_mode) else None
    except KeyboardInterrupt:
        raise  # the thread may still wait for a line of a pipe, and closing would wait for the thread
    except BaseException:  # whatever ended the block, a cancellation too, the file is closed
        stream.close()
        raise
    else:
        stream.close()
