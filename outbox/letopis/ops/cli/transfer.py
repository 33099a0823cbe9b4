"""``letopis history import`` and ``export``: read and write conversations as files."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from letopis.ops.cli.interface.command import VerbGroup
from letopis.ops.cli.interface.exit_codes import CommandExit, Exit, one_line
from letopis.ops.cli.interface.locations import open_source
from letopis.ops.cli.interface.options import settings, verb, with_options
from letopis.ops.cli.interface.output import FORCE, TIMEOUT, counted, emit, note, open_output, printable
from letopis.ops.cli.interface.progress import BYTES, ProgressReport, can_redraw, deliver, progress

if TYPE_CHECKING:
    from letopis.ops.transfer.importer import ImportCounts
    from letopis.outbox.history.exporter import Exporter
    from letopis.store.transfer.jsonl import Line, Refused
    from letopis.store.transfer.record_lines import RecordLine

    AnyLine = Line | RecordLine | Refused

PAGE_TIMEOUT_SECONDS: Final = 60.0  # an export waits this long for one page of a slow store


@click.group(name="import", cls=VerbGroup)
@with_options
def import_() -> None:
    """Import conversations from a file, through the outbox."""


@click.group(cls=VerbGroup)
@with_options
def export() -> None:
    """Export conversations to a file."""


@verb(
    "letopis history import jsonl old.jsonl --dry-run",
    "letopis history import jsonl old.jsonl --wait --timeout 3600",
    "zcat old.jsonl.gz | letopis history import jsonl - --json",
    group=import_,
    name="jsonl",
    json=True,
)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Check every line and write nothing.")
@click.option(
    "--wait", is_flag=True, help="Deliver all pending events, and exit when the history store has everything."
)
@TIMEOUT
def import_jsonl(file: str, dry_run: bool, wait: bool, timeout: float | None) -> None:
    """Append the messages and records of a JSON Lines FILE ("-" is stdin) to the outbox.

    A line that was imported before changes nothing, so a file may be imported again. A line that is refused is reported
    with its number, the others are imported, and the exit code is 1. The history store need not be reachable.
    """
    from letopis.store.transfer.jsonl import SeenKeys, read_lines

    with (
        _reading(file) as (stream, size),
        SeenKeys() as count,
        progress("checking" if dry_run else "importing", size, unit=BYTES) as report,
    ):
        lines = read_lines(stream, count=count)
        if dry_run:
            from letopis.ops.transfer.importer import try_out

            counts, pending = try_out(_counted(lines, report), _tell), None
        else:
            counts, pending = asyncio.run(_import(lines, wait, timeout, report))
    emit(
        {
            "dry_run": dry_run,
            "imported": counts.imported,
            "already_there": counts.known,
            "refused": counts.refused,
            "pending": pending,
        },
        text=lambda: _report(counts, pending, dry_run=dry_run),
    )
    if counts.refused:
        raise CommandExit(Exit.FAILED)
    if wait and pending:
        raise CommandExit(Exit.LATER, f"{pending} events are still pending; nothing is lost")


async def _import(
    lines: Iterator[Any], wait: bool, longest: float | None, report: ProgressReport
) -> tuple[ImportCounts, int]:
    from letopis.ops.transfer.importer import Importer
    from letopis.outbox.history.history import History

    config = settings()
    async with History(
        config.outbox, store=config.store, relay=wait, policy=config.policy, retention=config.retention
    ) as history:
        intake = Importer(history.outbox, history.store, _tell, lambda counts: report(counts.bytes))
        with intake:
            counts = await intake.take(lines)
        if wait:
            await deliver(history, report, longest=longest)
        return counts, (await history.status()).pending


def _counted(lines: Iterable[AnyLine], report: ProgressReport) -> Iterator[AnyLine]:
    """Yield the lines, and report how many bytes of them were read."""
    done = 0
    for line in lines:
        yield line
        done += line.size
        report(done)


def _tell(refused: Refused) -> None:
    note(one_line(f"line {refused.number}: {refused.reason}"))


def _report(counts: ImportCounts, pending: int | None, *, dry_run: bool) -> None:
    words = "can be imported" if dry_run else "imported"
    note(f"{counts.imported} {words}, {counts.known} already there, {counts.refused} refused")
    if pending:
        note(f"{pending} events are pending: the relay delivers them (`letopis relay --once` does it now)")
    elif pending == 0 and counts.imported + counts.known:
        note(f"the history store has everything{' that was imported' if counts.refused else ''}")
    if counts.refused and not dry_run:
        lines = "1 line was" if counts.refused == 1 else f"{counts.refused} lines were"
        note(f"{lines} NOT imported: correct what is named above and import the file again; the others are kept")


@verb(
    "letopis history export jsonl everything.jsonl",
    "letopis history export jsonl --owner 42 - | gzip >42.jsonl.gz",
    "letopis history export jsonl --person 42 --deliveries --page 42.html 42.jsonl",
    "letopis --store postgresql://bot@db/history history export jsonl all.jsonl --force",
    group=export,
    name="jsonl",
)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--conversation", metavar="ID", help="Only this conversation.")
@click.option("--owner", metavar="ID", help="Only this owner's conversations, and the owner's own records.")
@click.option(
    "--person",
    metavar="ID",
    help="What this person owns, as with --owner, and the messages that they wrote in conversations of others.",
)
@click.option("--deliveries", is_flag=True, help="Also write how each message was delivered.")
@click.option("--page", metavar="FILE", type=click.Path(), help="Also write it as one HTML page, for reading.")
@click.option("--no-records", is_flag=True, help="Write messages alone.")
@FORCE
def export_jsonl(
    file: str,
    conversation: str | None,
    owner: str | None,
    person: str | None,
    deliveries: bool,
    page: str | None,
    no_records: bool,
    force: bool,
) -> None:
    """Write conversations as JSON Lines to FILE ("-" is stdout), one message a line, each conversation in order.

    Records follow the conversation that they belong to, those of owners and spaces come last, one a line. Pending
    events are included. FILE appears when it is complete. Exits with 3 if nothing matched, and with 75 if the history
    store cannot be reached.
    """
    if sum(name is not None for name in (conversation, owner, person)) > 1:
        raise click.UsageError("Give one of --conversation, --owner and --person.")
    chosen = _Choice(conversation, owner, person, records=not no_records, deliveries=deliveries)
    with ExitStack() as files, progress("counting", unit="messages") as report:
        stream = files.enter_context(open_output(file, force=force))
        readable = None if page is None else files.enter_context(open_output(page, force=force))
        done = asyncio.run(_export(stream, readable, chosen, report))
        if not (done.conversations or done.records):
            raise CommandExit(Exit.NOTHING, "nothing matched")
    records = f" and {counted(done.records, 'record')}" if done.records else ""
    note(f"{done.lines} messages of {counted(done.conversations, 'conversation')}{records} exported")


@verb(
    "letopis history export training --format preference pairs.jsonl",
    "letopis history export training --format messages --owner 42 - | gzip >42.jsonl.gz",
    group=export,
    name="training",
)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["messages", "preference", "otel"]),
    default="messages",
    show_default=True,
    help="What a line is.",
)
@click.option("--conversation", metavar="ID", help="Only this conversation.")
@click.option("--owner", metavar="ID", help="Only this owner's conversations.")
@FORCE
def export_training(file: str, kind: str, conversation: str | None, owner: str | None, force: bool) -> None:
    """Write a set for training or evaluation as JSON Lines to FILE ("-" is stdout).

    messages: one conversation a line. preference: one pair a line, of the answer that is shown and one that was
    regenerated. otel: one conversation a line, as OpenTelemetry's attributes of GenAI. Conversations on hold, and turns
    with something redacted or interrupted, are left out. Exits with 3 if nothing matched, and with 75 if the history
    store cannot be reached.
    """
    if conversation is not None and owner is not None:
        raise click.UsageError("Give one of --conversation and --owner.")
    with open_output(file, force=force) as stream:
        lines, conversations = asyncio.run(_export_training(stream, kind, conversation, owner))
        if not lines:
            raise CommandExit(Exit.NOTHING, "nothing matched")
    note(f"{counted(lines, 'line')} of {counted(conversations, 'conversation')} exported")


async def _export_training(stream: BinaryIO, kind: str, conversation: str | None, owner: str | None) -> tuple[int, int]:
    from letopis.ops.transfer.training import TrainingSet
    from letopis.outbox.history.exporter import Incomplete

    async with open_source(settings(), read_timeout=PAGE_TIMEOUT_SECONDS) as source:
        chosen = TrainingSet(source, kind)
        try:
            async for line in chosen.of(owner=owner, conversation=conversation):
                stream.write(line)
        except Incomplete as error:
            raise CommandExit(Exit.LATER, str(error)) from error
    return chosen.lines, chosen.conversations


@dataclass(frozen=True, slots=True)
class _Choice:
    """What to export: one conversation, or what is an owner's or a person's, or everything."""

    conversation: str | None
    owner: str | None
    person: str | None
    records: bool
    deliveries: bool

    @property
    def title(self) -> str:
        name = self.conversation or self.person or self.owner
        return "History" if name is None else f"History of {name}"


async def _export(stream: BinaryIO, readable: BinaryIO | None, chosen: _Choice, report: ProgressReport) -> Exporter:
    from letopis.outbox.history.exporter import Exporter, Incomplete, RecordSource
    from letopis.store.model.events import utc_now
    from letopis.store.transfer.transcript_page import TranscriptPage

    async with open_source(settings(), read_timeout=PAGE_TIMEOUT_SECONDS) as source:
        flow = Exporter(
            source,
            RecordSource(source) if chosen.records else None,
            page=None if readable is None else TranscriptPage(readable, title=chosen.title, now=utc_now()),
            deliveries=chosen.deliveries,
            every=chosen.person is not None,
        )
        total = None
        if chosen.conversation is not None:
            lines = flow.of_one(chosen.conversation)
        elif chosen.person is not None:
            lines = flow.of_person(chosen.person)
        else:
            lines = flow.of_all(owner=chosen.owner)
        try:
            if can_redraw(sys.stderr):
                total = await _expected(source, flow, chosen)
            async for line in lines:
                stream.write(line)
                report(flow.lines, total=total, title="exporting")
        except Incomplete as error:
            raise CommandExit(Exit.LATER, str(error)) from error
    return flow


async def _expected(source: Any, flow: Exporter, chosen: _Choice) -> int | None:
    """Return about how many lines there will be, for the progress; ``None`` if that takes as long as the export."""
    if chosen.person is not None:
        return None
    if chosen.conversation is None:
        return await flow.count(owner=chosen.owner)
    from letopis.outbox.history.authored import conversation_of

    listed = await conversation_of(source, chosen.conversation)
    return 0 if listed is None else int(listed.message_count)


@contextmanager
def _reading(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file for reading; yield it with its size, if it has one."""
    try:
        # Not sys.stdin.buffer: the interpreter could not exit while a thread still reads from it.
        stream = open(sys.stdin.fileno(), "rb", closefd=False) if file == "-" else Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise CommandExit(Exit.USAGE, f"{printable(file)} cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(stream.fileno())
        yield stream, status.st_size if stat.S_ISREG(status.st_mode) else None
    except KeyboardInterrupt:
        raise  # a thread may still read from a pipe, and closing would wait for it
    except BaseException:  # whatever ended the block, even a cancellation, close the file
        stream.close()
        raise
    stream.close()
