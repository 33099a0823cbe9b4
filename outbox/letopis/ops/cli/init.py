"""``letopis init`` and ``letopis demo``: begin with an outbox of your own, or see a demonstration first."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import note, printable, supports_style

if TYPE_CHECKING:
    from letopis.ops.config.settings import Settings

TEMPLATE: Final = """\
# Letopis reads this file in the folder where a command is started, or where --config or LETOPIS_CONFIG says.
# Precedence: command-line option, environment variable, this file, default.
# Relative paths start at this file's folder.

# The outbox of the bot: LETOPIS_OUTBOX, --outbox.
outbox = {outbox}

# The history store: LETOPIS_STORE, --store. Without it, a SQLite file beside the outbox.
{store}
# Better for a URL with a password: a file that holds only the URL. LETOPIS_STORE_FILE.
# store_file = "/run/secrets/letopis-store"

# How the relay retries an event that the store refuses, before its conversation is blocked. Outages of the store
# do not count as attempts.
# [relay]
# base = 1.0        # seconds before the first retry
# factor = 2.0      # each wait is this many times the previous one
# cap = 60.0        # longest wait
# jitter = "full"   # "full": a random part of the wait; "none": all of it
# attempts = 3

# How `letopis relay` runs. SIGHUP reloads everything but listen.
# [daemon]
# listen = "127.0.0.1:9464"   # /healthz and /metrics; needs letopis[daemon]
# stop_timeout = 8            # seconds for the batch in flight after the first signal
# log_level = "INFO"
# log_format = "auto"         # text on a terminal, otherwise JSON
# trace_conversations = false # name conversations on OpenTelemetry spans; needs letopis[otel]

# The page for the browser: `letopis console`, or beside the relay with --console; needs letopis[console]. In a
# terminal a link signs you in; a service needs tokens, one NAME:ROLE:SECRET per line, with the role reader or operator.
[console]
host = "127.0.0.1"   # LETOPIS_CONSOLE_HOST; another address than one of this machine needs a token
port = 8300          # LETOPIS_CONSOLE_PORT
# tokens_file = "/run/secrets/letopis-console"   # LETOPIS_CONSOLE_TOKENS_FILE

# Where alerts about stuck events go; needs letopis[alerts]. Or LETOPIS_ALERTS.
# [alerts]
# channels_file = "/run/secrets/letopis-alerts"   # one address per line: https://..., tgram://...
# language = "en"

# How long `letopis relay` keeps delivered events in the outbox, for reads during an outage and to refill a store
# that was restored from a backup. An event is pruned when it is beyond both. A bot that embeds History sets its own.
# [retention]
# keep_last = 200   # events per conversation
# keep_hours = 24

# How long content stays in the history store; without it, for ever. `letopis history retain --dry-run` tells first.
# [retention.content]
# max_age_days = 365
"""


@verb(
    "letopis init",
    "letopis init --store postgresql://bot@db/history",
    "letopis --outbox copy.outbox.db init --new-origin",
)
@click.option(
    "--new-origin",
    is_flag=True,
    help="Give an existing outbox a new identity, for a copy that is used beside its original. "
    "Pending events are kept and delivered under it. No bot or relay may have the file open.",
)
def init(new_origin: bool) -> None:
    """Write letopis.toml in the current folder and create the outbox. Nothing is overwritten."""
    from letopis.ops.config.settings import FILE

    config = settings()
    if new_origin:
        from letopis.ops.new_origin import assign_new_origin

        reborn = asyncio.run(assign_new_origin(config.outbox))
        note(
            f"{printable(str(config.outbox))} is now outbox {reborn.origin.origin_id}: {reborn.pending} pending events"
            f" in {reborn.conversations} conversations will be delivered under the new identity"
            + (f"; {reborn.paused} of them are paused: `letopis outbox resume` continues them" if reborn.paused else "")
        )
        return
    target = Path(FILE)
    if config.file is not None or target.exists():
        raise CommandExit(
            Exit.FAILED, f"{config.file or target} exists: edit it, or move it away and run `letopis init` again"
        )
    asyncio.run(_create(config))
    store = '# store = "postgresql://bot@localhost/history"\n'
    if config.store is not None and config.store_from == "--store":
        store = f"store = {_quoted(config.store)}\n"
    text = TEMPLATE.format(outbox=_quoted(str(config.outbox)), store=store)
    # For its owner only: the store's URL may hold a password.
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # a descriptor, not a path
        file.write(text)
    note(f"wrote {target} and created {printable(str(config.outbox))}")
    note("next:")
    served = config.store is not None and "://" in config.store and not config.store.startswith("sqlite")
    click.echo("letopis db upgrade" if served else "letopis status")
    click.echo("letopis relay")


async def _create(config: Settings) -> None:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.store.database.urls import normalise_url

    if config.store is not None:
        normalise_url(config.store)
    outbox = await OutboxFile.open(config.outbox)
    await outbox.close()


def _quoted(text: str) -> str:
    """Return a TOML basic string; JSON's escapes are valid TOML."""
    import json

    return json.dumps(text, ensure_ascii=False)


@verb("letopis demo", "letopis demo --keep story")
@click.option("--keep", metavar="DIR", help="Play in this new or empty folder, and keep it.")
def demo(keep: str | None) -> None:
    """See it work: a bot, an outage, a poisoned conversation, in half a minute.

    Needs no network, token or server, and touches nothing outside its own folder. Exits with 0 only if the history
    holds exactly what was appended.
    """
    script = import_module("letopis.examples.demo")
    # The relay logs the outage and the refusal; here the story tells of them.
    logging.getLogger("letopis").addHandler(logging.NullHandler())
    logging.getLogger("letopis").propagate = False
    began = time.monotonic()
    bold = supports_style(sys.stdout)

    def tell(line: str) -> None:
        # A line with an indent is a detail, one without is a step of the story.
        click.echo(click.style(line, bold=True) if bold and line and not line.startswith(" ") else line)
        sys.stdout.flush()

    with ExitStack() as stack:
        folder = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="letopis-demo-")))
            if keep is None
            else _new(keep)
        )
        try:
            outcome = asyncio.run(script.play(folder, tell))
        except script.DemoFailed as error:
            raise CommandExit(Exit.FAILED, f"the demonstration failed: {error}") from error
    if not outcome.holds:
        raise CommandExit(Exit.FAILED, "the demonstration failed: the history differs from what was appended")
    tell(f"     Exactly. {time.monotonic() - began:.0f} s.")
    if keep is not None:
        outbox = printable(str(folder / "bot.outbox.db"))
        note(
            f"\nlook around:\n  letopis --outbox {outbox} status\n  letopis --outbox {outbox} history show telegram:101"
        )


def _new(keep: str) -> Path:
    folder = Path(keep)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandExit(Exit.USAGE, f"{printable(keep)} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
