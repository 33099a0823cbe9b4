"""``letopis outbox verify`` and ``salvage``, ``letopis db verify`` and ``anchor``: check and recover stored data."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit, one_line
from letopis.ops.cli.interface.locations import existing_outbox, store_engine, store_revision, store_url
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import FORCE, counted, emit, note, open_output, printable, remark, wants_json
from letopis.ops.cli.interface.progress import ProgressReport, progress, unseen

if TYPE_CHECKING:
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

    from letopis.ops.salvage.salvage import Salvaged
    from letopis.ops.verify import ReferenceLog
    from letopis.store.ops.anchors import Anchor, AnchorCheck

MAX_LISTED: Final = 100  # problems that are listed; the others are counted
STATEMENT_TIMEOUT_SECONDS: Final = 86_400.0  # some queries read the whole store


@verb("letopis outbox verify", "letopis outbox verify --alone --json", name="verify", json=True)
@click.option("--alone", is_flag=True, help="Do not compare with the history store.")
def verify_outbox(alone: bool) -> None:
    """Check that the outbox file still holds what was appended.

    Reads all of it: the WAL, the structure, each event's digest, each conversation's counters; and compares it with the
    history store, if that can be reached. Changes nothing. Exits with 1 if something is wrong.
    """
    from letopis.ops.verify import find_problems, read_reference

    path = existing_outbox(settings())
    with progress("checking", unit="events") as report:
        problems = list(find_problems(path, checked=lambda done, total: report(done, total=total)))
    compared = False
    if not alone and (kept := read_reference(path)) is not None:
        url, name = store_url(settings())
        compared, contradictions = asyncio.run(_compared(url, kept))
        problems += contradictions
        if not compared:
            note(
                f"the history store {name} was not compared: it cannot be reached, or does not"
                " exist yet; name another with --store"
            )
    _report(path.name, problems, compared=compared)


@verb(
    "letopis db verify",
    "letopis --store postgresql://bot@db/history db verify --json",
    "letopis db verify --anchor /mnt/backup/history.anchor.json",
    "letopis db verify --receipt 42.receipt.json",
    name="verify",
    json=True,
)
@click.option(
    "--anchor", metavar="FILE", type=click.Path(), help="Also check that the log up to this anchor has not changed."
)
@click.option(
    "--receipt",
    metavar="FILE",
    type=click.Path(),
    help="Check only what this receipt of an erasure says, not the rest.",
)
def verify_store(anchor: str | None, receipt: str | None) -> None:
    """Check that the history store still holds what was written.

    Reads all of it: each event's digest, gaps in positions, versions and sequences, and whether the rows of
    conversations and messages match the log; the structure and WAL of an SQLite file too. Changes nothing. Exits with 1
    if something is wrong.

    Whoever can write to the database can replace an event together with its digest, or remove the newest ones: an
    anchor of `letopis db anchor`, kept elsewhere, shows that. It proves nothing about newer events.
    """
    from letopis.store.errors import InvalidInput
    from letopis.store.ops.anchors import AnchorCheck, load

    url, name = store_url(settings(), missing="there is no such file")
    if receipt is not None:
        if anchor is not None:
            raise click.UsageError("Give --anchor or --receipt, not both.")
        _verify_receipt(url, name, receipt)
        return
    try:
        check = None if anchor is None else AnchorCheck(load(_read_document(anchor, "anchor")))
    except InvalidInput as error:
        _report(name, [f"the anchor {error.reason}"], anchor=None)
        return
    with progress("checking", unit="events") as report:
        problems = asyncio.run(problems_of_store(url, report, check))
    if check is None:
        _report(name, problems)
        return
    for compared in () if wants_json() else check.partitions:
        if compared.unchanged:
            but = f", but for {compared.redacted} redacted since" if compared.redacted else ""
            click.echo(f"partition {compared.partition}: unchanged up to position {compared.position}{but}")
    names = ("partition", "position", "head", "unchanged", "redacted")
    partitions = [{name: getattr(compared, name) for name in names} for compared in check.partitions]
    _report(name, problems, anchor={"made_at": check.anchor.made_at.isoformat(), "partitions": partitions})


@verb("letopis outbox salvage bot.outbox.db --to recovered.outbox.db", json=True)
@click.argument("damaged", metavar="DAMAGED", type=click.Path())
@click.option(
    "--to", "to", metavar="NEW", type=click.Path(), required=True, help="The new outbox file; it must not exist."
)
def salvage(damaged: str, to: str) -> None:
    """Recover all events with a valid checksum from a damaged outbox into a new one.

    Prints how many were recovered, and the lost ones by conversation and sequence. The damaged file is not changed; no
    bot and no relay may have it open. Exits with 1 if something is lost.
    """
    from letopis.ops.salvage.salvage import salvage as run

    done = asyncio.run(run(damaged, to))
    emit(
        {
            "outbox": printable(to),
            "origin_id": str(done.origin_id),
            **{name: getattr(done, name) for name in ("renewed", "kept", "pending", "let_go", "refused", "gone")},
            "lost": [{"conversation_id": name, "sequences": list(what)} for name, what in done.lost.items()],
        },
        text=lambda: _tell_salvaged(done, printable(to)),
    )
    if not done.whole:
        raise CommandExit(Exit.FAILED)


async def _compared(url: URL, kept: ReferenceLog) -> tuple[bool, list[str]]:
    from letopis.ops.verify import differences
    from letopis.store.database.faults import StoreFault
    from letopis.store.database.migrations import SchemaState
    from letopis.store.ops.verify import wal_problem

    if url.get_backend_name() == "sqlite":
        path = Path(str(url.database))
        if not await asyncio.to_thread(path.is_file) or wal_problem(path):
            return False, []
    try:
        async with store_engine(url) as engine:
            if (await store_revision(engine)).state is not SchemaState.CURRENT:
                return False, []
            return True, [problem async for problem in differences(kept, engine)]
    except StoreFault:
        return False, []


async def problems_of_store(url: URL, report: ProgressReport = unseen, anchor: AnchorCheck | None = None) -> list[str]:
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.faults import StoreFault
    from letopis.store.database.migrations import STORE, SchemaState
    from letopis.store.database.timeouts import Timeouts
    from letopis.store.ops.rebuild import conversations_to_rebuild, rebuild
    from letopis.store.ops.verify import find_problems, wal_problem

    embedded = url.get_backend_name() == "sqlite"
    if embedded and (problem := wal_problem(Path(str(url.database)))):
        return [problem]
    problems: list[str] = []
    try:
        async with store_engine(url, statement=STATEMENT_TIMEOUT_SECONDS) as engine:
            revision = await store_revision(engine)
            if revision.state is not SchemaState.CURRENT:
                return [revision.advice(STORE, command="letopis db upgrade")]
            wrong = find_problems(engine, checked=lambda done, total: report(done, total=total))
            problems += [problem async for problem in wrong]
            if anchor is not None:
                compare = partial(report, title="comparing with the anchor", unit="events")
                differences = anchor.problems(engine, checked=lambda done, total: compare(done, total=total))
                problems[:0] = [problem async for problem in differences]
            total, done = await conversations_to_rebuild(engine, every=True), 0
        timeouts = Timeouts(statement=STATEMENT_TIMEOUT_SECONDS)
        async with ConversationStore.open(url, migrate=False, pool_size=2, timeouts=timeouts) as store:
            async for rebuilt in rebuild(store, check=True, every=True):
                done += 1
                report(done, total=total, title="comparing", unit="conversations")
                if rebuilt.differences:
                    name, difference = rebuilt.conversation_id, rebuilt.differences[0]
                    problems.append(f"conversation {name!r} differs from the log: {difference}")
    except StoreFault as fault:
        # An unavailable server says nothing about its data.
        if not embedded and fault.code != "damaged":
            raise
        problems.append(f"it cannot be read to the end: {fault}")
    except ValueError:
        problems.append("it cannot be read to the end: it holds invalid values")
    return problems


def _report(name: str, problems: list[str], **more: Any) -> None:
    emit(
        {"name": name, "sound": not problems, "problems": problems[:MAX_LISTED], "count": len(problems), **more},
        text="\n".join(one_line(printable(problem)) for problem in problems[:MAX_LISTED]),
    )
    if problems:
        raise CommandExit(Exit.FAILED, f"{printable(name)}: {counted(len(problems), 'problem')} found")
    remark(f"{printable(name)}: no problems found")


def _tell_salvaged(done: Salvaged, to: str) -> None:
    for conversation_id, sequences in done.lost.items():
        click.echo(f"{printable(conversation_id)}  {', '.join(map(str, sequences))}")
    note(f"{done.kept} events recovered to {to}, {done.pending} of them pending; {done.lost_count} lost")
    if done.gone:
        note(f"{done.gone} pages of the file are lost: events on them may have left no trace")
    if done.let_go:
        note(f"{done.let_go} delivered events were left out: the history store has them")
    if done.lost:
        note("their conversations are blocked: `letopis outbox skip --missing` gives up events that exist nowhere else")


MAX_ANCHOR_BYTES: Final = 256 * 1024 * 1024  # a block of 100 events takes about 200 bytes
ANCHOR_STATEMENT_TIMEOUT_SECONDS: Final = 300.0


@verb(
    "letopis db anchor --out /mnt/backup/history.anchor.json",
    "letopis db anchor | aws s3 cp - s3://vault/history.anchor.json",
)
@click.option("--out", "file", metavar="FILE", type=click.Path(), default="-", help="Write to FILE, not to stdout.")
@FORCE
def anchor(file: str, force: bool) -> None:
    """Write digests of the log to a small file, for `letopis db verify --anchor`.

    The file holds no content. Keep it where nobody who can write to the database can change it: beside the database it
    proves nothing. Bots and relays keep running; events that they deliver meanwhile are left out. Nothing is checked:
    verify the log first. FILE appears when it is complete, for its owner only.
    """
    from letopis.store.ops.anchors import dump

    url, name = store_url(settings(), missing="there is no such file")
    with open_output(file, force=force) as stream:
        with progress("reading", unit="events") as report:
            made = asyncio.run(_make(url, report))
        stream.write(dump(made))
    events = sum(partition.position for partition in made.partitions)
    note(f"{name}: anchored {events} events; keep the anchor where nobody who writes to the database can change it")


def _read_document(file: str, what: str) -> bytes:
    from letopis.store.errors import InvalidInput

    try:
        with Path(file).open("rb") as stream:
            document = stream.read(MAX_ANCHOR_BYTES + 1)
    except OSError as error:
        raise InvalidInput(what, f"cannot be read: {error.strerror or type(error).__name__}") from error
    if len(document) > MAX_ANCHOR_BYTES:
        raise InvalidInput(what, f"is larger than {MAX_ANCHOR_BYTES // 1024**2} MB")
    return document


def _verify_receipt(url: URL, name: str, file: str) -> None:
    """Compare a history store with the receipt of an erasure."""
    from letopis.store.errors import InvalidInput
    from letopis.store.ops.receipts import UNPROVEN, ReceiptCheck, load

    async def compare(check: ReceiptCheck) -> list[str]:
        async with store_engine(url, statement=STATEMENT_TIMEOUT_SECONDS) as engine:
            await _check_current(engine)
            return [problem async for problem in check.problems(engine)]

    try:
        check = load(_read_document(file, "receipt"))
    except InvalidInput as error:
        _report(name, [f"the receipt {error.reason}"], outboxes=[], unproven=[])
        return
    problems = asyncio.run(compare(check))
    if not wants_json():
        for outbox in check.outboxes:
            click.echo(printable(f"outbox {outbox.name} ({outbox.origin_id.hex[:8]}): {outbox.state}"))
        for what in UNPROVEN:
            note(f"not in the store, and so on the word of the receipt alone: {what}")
    _report(name, problems, outboxes=check.outboxes, unproven=UNPROVEN)


async def _check_current(engine: AsyncEngine) -> None:
    from letopis.store.database.migrations import STORE, SchemaState

    revision = await store_revision(engine)
    if revision.state is not SchemaState.CURRENT:
        raise CommandExit(Exit.CONFIGURATION, revision.advice(STORE, command="letopis db upgrade"))


async def _make(url: URL, report: ProgressReport) -> Anchor:
    from letopis.store.model.events import utc_now
    from letopis.store.ops.anchors import make_anchor

    async with store_engine(url, statement=ANCHOR_STATEMENT_TIMEOUT_SECONDS) as engine:
        await _check_current(engine)
        return await make_anchor(engine, now=utc_now(), checked=lambda done, total: report(done, total=total))
