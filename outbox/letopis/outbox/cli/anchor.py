"""``letopis db anchor``: write digests of the log to a file, for a later ``letopis db verify --anchor``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli.interface.command import Verb
from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit
from letopis.outbox.cli.interface.options import settings, with_options
from letopis.outbox.cli.interface.output import note, open_output, printable
from letopis.outbox.cli.interface.progress import ProgressReport, progress

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from letopis.store.maintenance.anchor import AnchorCheck, PartitionComparison
    from letopis.store.maintenance.anchor_format import Anchor

MAX_ANCHOR_BYTES: Final = 256 * 1024 * 1024
"""A block of 100 events takes about 200 bytes."""
STATEMENT_TIMEOUT_SECONDS: Final = 300.0


@click.command(
    cls=Verb,
    examples=(
        "letopis db anchor --out /mnt/backup/history.anchor.json",
        "letopis db anchor | aws s3 cp - s3://vault/history.anchor.json",
    ),
)
@click.option("--out", "file", metavar="FILE", type=click.Path(), default="-", help="Write to FILE, not to stdout.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@with_options
def anchor(file: str, force: bool) -> None:
    """Write digests of the log to a small file, for `letopis db verify --anchor`.

    The file holds no content. Keep it where nobody who can write to the database can change it: beside the database it
    proves nothing. Bots and relays keep running; events that they deliver meanwhile are left out. Nothing is checked:
    verify the log first. FILE appears when it is complete, for its owner only.
    """
    import anyio

    from letopis.outbox.cli.interface.locations import store_of
    from letopis.outbox.history.store_location import check_apart
    from letopis.store.database.urls import normalise_url, safe_url
    from letopis.store.maintenance.anchor_format import dump

    url = normalise_url(store_of(settings()))
    name = printable(safe_url(url))
    check_apart(Path(settings().outbox), url)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise CommandExit(Exit.CONFIGURATION, f"{name}: there is no such file")
    with open_output(file, force=force) as stream:
        with progress("reading", unit="events") as report:
            made = anyio.run(_make, url, report)
        stream.write(dump(made))
    events = sum(one.position for one in made.partitions)
    note(f"{name}: anchored {events} events; keep the anchor where nobody who writes to the database can change it")


def open_anchor(file: str) -> AnchorCheck:
    """Read an anchor, to compare a log with it.

    :raises InvalidInput: the file cannot be read, or holds no anchor.
    """
    from letopis.store.errors import InvalidInput
    from letopis.store.maintenance.anchor import AnchorCheck
    from letopis.store.maintenance.anchor_format import load

    try:
        with Path(file).open("rb") as stream:
            document = stream.read(MAX_ANCHOR_BYTES + 1)
    except OSError as error:
        raise InvalidInput("anchor", f"cannot be read: {error.strerror or type(error).__name__}") from error
    if len(document) > MAX_ANCHOR_BYTES:
        raise InvalidInput("anchor", f"is larger than {MAX_ANCHOR_BYTES // 1024**2} MB")
    return AnchorCheck(load(document))


def comparison_lines(check: AnchorCheck) -> Iterator[str]:
    """Yield a line for each partition that the anchor confirms."""
    for one in check.partitions:
        if one.unchanged:
            yield f"partition {one.partition}: unchanged up to position {one.position}{_redactions(one)}"


def comparison_json(check: AnchorCheck) -> dict[str, Any]:
    """Return the comparison for ``--json``."""
    return {
        "made_at": check.anchor.made_at.isoformat(),
        "partitions": [
            {
                "partition": one.partition,
                "position": one.position,
                "head": one.head,
                "unchanged": one.unchanged,
                "redacted": one.redacted,
            }
            for one in check.partitions
        ],
    }


def _redactions(one: PartitionComparison) -> str:
    if not one.redacted:
        return ""
    return f", but for {one.redacted} redacted since"


async def _make(url: URL, report: ProgressReport) -> Anchor:
    from letopis.store.database.engines import create_store_engine
    from letopis.store.database.fault_classification import translated
    from letopis.store.database.migrations import STORE, SchemaState, revision_state
    from letopis.store.database.timeouts import Timeouts
    from letopis.store.maintenance.anchor import make_anchor
    from letopis.store.model.events import utc_now

    engine = create_store_engine(url, timeouts=Timeouts(statement=STATEMENT_TIMEOUT_SECONDS), pool_size=1)
    try:
        with translated():
            async with engine.execution_options(sqlite_begin="DEFERRED").connect() as connection:
                revision = await connection.run_sync(revision_state, STORE)
        if revision.state is not SchemaState.CURRENT:
            raise CommandExit(Exit.CONFIGURATION, revision.advice(STORE, command="letopis db upgrade"))
        return await make_anchor(engine, now=utc_now(), checked=lambda done, total: report(done, total=total))
    finally:
        await engine.dispose()
