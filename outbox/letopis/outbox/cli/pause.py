"""``letopis pause`` and ``letopis resume``: the whole relay of an outbox, wherever it runs."""

from __future__ import annotations

import asyncio

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import note


@click.command()
@click.option("--reason", metavar="TEXT", help="Why, for whoever wonders: `letopis status` shows it.")
@with_options
def pause(reason: str | None) -> None:
    """Hold the relay back, in whichever process it runs, until `letopis resume`.

    The batch under way is finished. The bot goes on: what is said waits in the outbox, and nobody is alerted of it.
    A restart changes nothing about it. For single conversations there is `letopis outbox pause`.
    """
    from letopis.outbox import verbs
    from letopis.outbox.cli.choosing import whoever
    from letopis.outbox.cli.opened import changed_outbox

    asyncio.run(changed_outbox(settings(), lambda file: verbs.pause_relay(file, reason=reason, by=whoever())))
    note("the relay is held back; `letopis resume` lets it go on")


@click.command()
@with_options
def resume() -> None:
    """Let the relay go on after `letopis pause`; exits with 3 if it was not held back."""
    from letopis.outbox import verbs
    from letopis.outbox.cli.opened import changed_outbox

    if not asyncio.run(changed_outbox(settings(), verbs.resume_relay)):
        raise Ended(Exit.NOTHING, "the relay was not held back")
    note("the relay goes on")
