"""``letopis demo``: play the demonstration in a folder of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import click

from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit
from letopis.outbox.cli.interface.options import verb
from letopis.outbox.cli.interface.output import note, printable, supports_style


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
