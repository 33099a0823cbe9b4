"""Define the ``letopis`` command and its verbs, each imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import click

from letopis.ops.cli.interface.command import LazyGroup
from letopis.ops.cli.interface.exit_codes import run
from letopis.ops.cli.interface.options import with_options

VERBS: Final = {
    "demo": (
        "letopis.ops.cli.init:demo",
        "See it work: a bot, an outage, a poisoned conversation, in half a minute.",
    ),
    "init": ("letopis.ops.cli.init:init", "Write letopis.toml and create the outbox."),
    "relay": ("letopis.ops.cli.relay:relay", "Deliver pending events to the history store."),
    "healthcheck": ("letopis.ops.cli.health:healthcheck", "Exit 0 if the relay is healthy, 1 if not."),
    "status": ("letopis.ops.cli.status:status", "Show what is pending, blocked and delivered."),
    "doctor": ("letopis.ops.cli.health:doctor", "Diagnose problems and suggest fixes."),
    "move": ("letopis.ops.cli.move:move", "Move the history to another store while bots keep running."),
    "outbox": ("letopis.ops.cli.outbox:outbox", "List what is pending; retry, fix or skip what is stuck."),
    "pause": ("letopis.ops.cli.relay:pause", "Pause delivery."),
    "resume": ("letopis.ops.cli.relay:resume", "Resume delivery."),
    "history": ("letopis.ops.cli.history:history", "List, show, import and export conversations."),
    "follow": ("letopis.ops.cli.follow:follow", "Print the log of the history store as it grows."),
    "db": ("letopis.ops.cli.db:db", "Create, upgrade and check the history store."),
    "alerts": ("letopis.ops.cli.health:alerts", "Send a test alert."),
    "console": ("letopis.ops.cli.console:console", "Show the outbox and its history in the browser."),
}
"""The verbs in the order of a first use, with module and short help."""

ELSEWHERE: Final = {
    "help": ("letopis --help",),
    "list": ("letopis history list", "letopis outbox list"),
    "show": ("letopis history show", "letopis outbox show"),
    "export": ("letopis history export", "letopis outbox export"),
    "verify": ("letopis db verify", "letopis outbox verify"),
    "check": ("letopis db check", "letopis status --check"),
    "delete": ("letopis history erase",),
    "migrate": ("letopis db upgrade",),
    "test": ("letopis alerts test",),
    "training": ("letopis history export training",),
    **{name: (f"letopis history {name}",) for name in ("search", "stats", "import", "erase", "hold", "retain", "tag")},
    **{name: (f"letopis outbox {name}",) for name in ("retry", "fix", "skip", "rebind", "salvage")},
    **{name: (f"letopis db {name}",) for name in ("anchor", "upgrade", "current", "rebuild", "index", "new-identity")},
}
"""Words that users try without their group."""


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
    elsewhere=ELSEWHERE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 failed or unhealthy, 2 wrong usage, 3 nothing matched, 75 try again later, "
    "78 wrong configuration.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
@with_options
def cli() -> None:
    """Store the conversations of chat bots and LLM agents, and never silently lose a reply.

    Options may come before or after the command. Precedence: option, environment variable, letopis.toml, default.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    sys.exit(run(cli, arguments))
