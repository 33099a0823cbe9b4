"""``letopis demo``: the whole thing at work, without network, token or server."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import with_options
from letopis.outbox.cli.output import clean, fancy, note


@click.command()
@click.option(
    "--keep", metavar="DIR", help="Play in this folder, which must be new or empty, and leave it to be looked at."
)
@with_options
def demo(keep: str | None) -> None:
    """See it work: a bot, an outage, a poisoned conversation, in half a minute.

    Needs no network, no token and no server, and touches nothing outside its own folder. Exits with 0 only if in the
    end the history is exactly what was said.
    """
    import logging
    import sys

    import anyio

    from letopis.outbox.demo import DemoFailed, play

    # The relay tells of the outage and of the refusal as it does in a log; here the story does.
    logging.getLogger("letopis").addHandler(logging.NullHandler())
    logging.getLogger("letopis").propagate = False
    began = time.monotonic()
    bold = fancy(sys.stdout)

    def say(line: str) -> None:
        # With an indent it is a detail, without one a step of the story.
        click.echo(click.style(line, bold=True) if bold and line and not line.startswith(" ") else line)
        sys.stdout.flush()

    with ExitStack() as stack:
        folder = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="letopis-demo-")))
            if keep is None
            else _new(keep)
        )
        try:
            outcome = anyio.run(play, folder, say)
        except DemoFailed as error:
            raise Ended(Exit.FAILED, f"the demonstration failed: {error}") from error
    if not outcome.holds:
        raise Ended(Exit.FAILED, "the demonstration failed: the history is not what was said")
    say(f"     It is, to the letter. {time.monotonic() - began:.0f} s.")
    if keep is not None:
        outbox = clean(str(folder / "bot.outbox.db"))
        note(
            f"\nlook around:\n  letopis --outbox {outbox} status\n  letopis --outbox {outbox} history show telegram:101"
        )


def _new(keep: str) -> Path:
    folder = Path(keep)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Ended(Exit.USAGE, f"{clean(keep)} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
