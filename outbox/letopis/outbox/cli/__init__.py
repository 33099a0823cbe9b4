"""The ``letopis`` command: its verbs, each imported when it is called, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import click

from letopis.outbox.cli.exits import run
from letopis.outbox.cli.lazy import LazyGroup
from letopis.outbox.cli.options import with_options

VERBS: Final = {
    "demo": (
        "letopis.outbox.cli.demo:demo",
        "See it work: a bot, an outage, a poisoned conversation, in half a minute.",
    ),
    "init": ("letopis.outbox.cli.init:init", "Write letopis.toml and create the outbox."),
    "relay": ("letopis.outbox.cli.relay:relay", "Deliver what outboxes hold to the history store."),
    "healthcheck": ("letopis.outbox.cli.healthcheck:healthcheck", "Say by the exit code whether the relay is well."),
    "status": ("letopis.outbox.cli.status:status", "Show what is pending, blocked and delivered."),
    "doctor": ("letopis.outbox.cli.doctor:doctor", "Look for what is wrong, and say how to mend it."),
    "outbox": ("letopis.outbox.cli.outbox:outbox", "List what is pending; retry, fix or skip what is stuck."),
    "pause": ("letopis.outbox.cli.pause:pause", "Hold the relay back."),
    "resume": ("letopis.outbox.cli.pause:resume", "Let the relay go on."),
    "history": ("letopis.outbox.cli.history:history", "List, show, import and export conversations."),
    "db": ("letopis.outbox.cli.db:db", "Make or check the tables of the history store."),
    "alerts": ("letopis.outbox.cli.alerts:alerts", "Try the channels by which operators are told."),
}
"""The verbs in the order in which a newcomer meets them, with the place of each and its line of help."""


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version of the installed distribution and end."""
    if not wanted or context.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"letopis {version('letopis')}")
    context.exit()


@click.group(
    name="letopis",
    cls=LazyGroup,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 failed or unhealthy, 2 wrong usage, 3 nothing matched, 75 try again later, "
    "78 wrong configuration.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
@with_options
def cli() -> None:
    """Keep the conversations of chat bots and LLM agents, and never silently lose a reply.

    Options may stand before or after the verb. What is not given comes from the environment, then from letopis.toml.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(cli, arguments))
