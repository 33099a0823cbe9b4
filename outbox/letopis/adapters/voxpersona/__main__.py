"""``python -m letopis.adapters.voxpersona``: import the JSON folders of the seed's bot."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import anyio
import click

from letopis.adapters.voxpersona.drop_in import OUTBOX
from letopis.adapters.voxpersona.importing import Imported, import_folder
from letopis.adapters.voxpersona.reading import Note
from letopis.ops.config.settings import load_settings
from letopis.outbox import History
from letopis.store import InvalidInput, LetopisError


@click.command(name="python -m letopis.adapters.voxpersona")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--daily", type=click.Path(path_type=Path), help="The folder of the daily files of before the chats.")
@click.option("--reports", type=click.Path(path_type=Path), help="The folder that paths of reports begin at.")
@click.option(
    "--timezone", metavar="NAME", help="That of the times, for example Europe/Moscow. Default: the machine's."
)
@click.option("--dry-run", is_flag=True, help="Read and check everything, and write nothing.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Deliver, and wait at most this long.")
@click.option("--outbox", metavar="PATH", help=f"The outbox. Default: LETOPIS_OUTBOX, or {OUTBOX} in FOLDER.")
@click.option("--store", metavar="URL", help="The history store. Default: LETOPIS_STORE, or a file beside the outbox.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    folder: Path,
    daily: Path | None,
    reports: Path | None,
    timezone: str | None,
    dry_run: bool,
    wait: float | None,
    outbox: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Import the chats in FOLDER, which holds a folder user_... for each user; nothing in it is changed.

    Damage is reported, and imported as far as possible. Repeating the command imports what is new.
    Exits with 1 if a message was refused, and with 75 if the history store lacks something after --wait.
    """
    try:
        tz = None if timezone is None else ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise click.UsageError("--timezone is the name of no time zone: write it like Europe/Moscow") from None

    def tell(note: Note) -> None:
        click.echo(f"{note.path}: {note.what}".encode("ascii", "backslashreplace").decode(), err=True)

    async def run() -> tuple[Imported, int | None]:
        given: dict[str, Any] = {"daily": daily, "reports": reports, "timezone": tz, "tell": tell}
        if dry_run:
            return await import_folder(None, folder, **given), None
        found = load_settings(outbox=outbox, store=store)
        path = folder / OUTBOX if found.outbox_from == "default" else found.outbox
        async with History(path, store=found.store, relay=wait is not None, watch=False) as history:
            result = await import_folder(history, folder, **given)
            if wait is not None:
                await history.drained(wait)
            return result, (await history.status()).pending

    try:
        if not folder.is_dir():  # before an outbox is made in it
            raise InvalidInput("folder", "is no folder: give the one that holds the folders user_...")
        result, pending = anyio.run(run)
    except LetopisError as error:
        raise click.ClickException(str(error)) from error
    _report(result, pending, dry_run=dry_run, as_json=as_json)
    if result.refused:
        sys.exit(1)
    if wait is not None and pending:
        sys.exit(75)


def _report(result: Imported, pending: int | None, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **asdict(result), "pending": pending}))
        return
    words = "can be imported" if dry_run else "imported"
    click.echo(f"{result.users} users, {result.chats} chats, {result.messages} messages", err=True)
    click.echo(
        f"{result.new} messages {words}, {result.known} already there, {result.refused} refused, "
        f"{result.deleted} of deleted chats, notes: {len(result.notes)}",
        err=True,
    )
    if pending:
        click.echo(f"{pending} events are pending: the bot delivers them, or `letopis relay --once`", err=True)


if __name__ == "__main__":
    command()
