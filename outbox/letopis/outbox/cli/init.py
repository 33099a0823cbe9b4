"""``letopis init``: write a commented letopis.toml, create the outbox, say the next two commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import clean, note

if TYPE_CHECKING:
    from letopis.outbox.config import Settings

TEMPLATE: Final = """\
# Letopis reads this file in the folder where a command is started, or where --config or LETOPIS_CONFIG says.
# An option on the command line and a variable of the environment come before it.
# Relative paths start at this file's own folder.

# The outbox of the bot: LETOPIS_OUTBOX, --outbox.
outbox = {outbox}

# The history store: LETOPIS_STORE, --store. Without it, a SQLite file beside the outbox.
{store}
# Better for a URL with a password: a file that holds it and nothing else. LETOPIS_STORE_FILE.
# store_file = "/run/secrets/letopis-store"

# How the relay retries an event that the store refuses, before its conversation is blocked. An outage of the store
# is waited out and counts as no attempt.
# [relay]
# base = 1.0        # seconds before the first retry
# factor = 2.0      # each wait is so many times the one before
# cap = 60.0        # and never longer than this
# jitter = "full"   # "full": a random part of it; "none": exactly
# attempts = 3

# How `letopis relay` runs. SIGHUP reads everything but listen again.
# [daemon]
# listen = "127.0.0.1:9464"   # /healthz and /metrics; needs letopis[daemon]
# stop_timeout = 8            # seconds that the batch in flight has after the first signal
# log_level = "INFO"
# log_format = "auto"         # text on a terminal, else JSON

# Whom to tell of what stays stuck: https:// is a webhook, anything else needs letopis[alerts]. Or LETOPIS_ALERTS.
# [alerts]
# channels_file = "/run/secrets/letopis-alerts"   # one address a line
# language = "en"

# How long `letopis relay` keeps delivered events in the outbox, for reads during an outage and to fill a store that
# was restored from a backup. An event goes when it is beyond both. A bot that embeds History sets its own.
# [retention]
# keep_last = 200   # events a conversation
# keep_hours = 24
"""


@click.command()
@click.option(
    "--new-origin",
    is_flag=True,
    help="Give an outbox that exists a new identity: for a copy that is to live on beside its original. "
    "What is pending is kept and will be delivered under it. No bot or relay may have the file open.",
)
@with_options
def init(new_origin: bool) -> None:
    """Write letopis.toml in the current folder and create the outbox. Nothing that exists is overwritten."""
    import anyio

    from letopis.outbox.config import FILE

    found = settings()
    if new_origin:
        anyio.run(_new_origin, found)
        return
    target = Path(FILE)
    if found.file is not None or target.exists():
        raise Ended(
            Exit.FAILED,
            f"{found.file or target} exists and is left as it is: change it, or move it away and start anew",
        )
    anyio.run(_create, found)
    _write(target, found)
    note(f"wrote {target} and created {clean(str(found.outbox))}")
    note("next:")
    if found.store is not None and "://" in found.store and not found.store.startswith("sqlite"):
        click.echo("letopis db upgrade")
    else:
        click.echo("letopis status")
    click.echo("letopis relay")


async def _create(found: Settings) -> None:
    from letopis.outbox.file import OutboxFile
    from letopis.store.urls import normalise_url

    if found.store is not None:
        normalise_url(found.store)
    outbox = await OutboxFile.open(found.outbox)
    await outbox.close()


async def _new_origin(found: Settings) -> None:
    from letopis.outbox.rebirth import give_new_origin

    reborn = await give_new_origin(found.outbox)
    note(
        f"{clean(str(found.outbox))} is now outbox {reborn.origin.origin_id}: {reborn.pending} pending events in "
        f"{reborn.conversations} conversations will be delivered under the new identity"
    )


def _write(target: Path, found: Settings) -> None:
    """Write the file for its owner only: a store's URL may hold a password."""
    store = '# store = "postgresql://bot@localhost/history"\n'
    if found.store is not None and found.store_from == "--store":
        store = f"store = {_quoted(found.store)}\n"
    text = TEMPLATE.format(outbox=_quoted(str(found.outbox)), store=store)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # a descriptor, not a path
        file.write(text)


def _quoted(text: str) -> str:
    """Return a TOML basic string; JSON's escapes are among those that TOML has."""
    import json

    return json.dumps(text, ensure_ascii=False)
