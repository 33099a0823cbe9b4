"""``letopis console``: show a history in the browser."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import click

from letopis.outbox.cli.interface.command import Verb
from letopis.outbox.cli.interface.options import settings, with_options
from letopis.outbox.cli.interface.output import note


@click.command(
    cls=Verb,
    examples=(
        "letopis console --open",
        "LETOPIS_CONSOLE_TOKEN_FILE=/run/secrets/letopis-console letopis console --host 10.0.0.5",
    ),
)
@click.option(
    "--host",
    metavar="ADDRESS",
    envvar="LETOPIS_CONSOLE_HOST",
    show_envvar=True,
    help="The address to listen on; one that other machines reach needs a token. Default: 127.0.0.1.",
)
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65_535),
    envvar="LETOPIS_CONSOLE_PORT",
    show_envvar=True,
    help="The port; 0 takes a free one. Default: 8300.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="A file that holds the token for actions; LETOPIS_CONSOLE_TOKEN holds the token itself. Without a token the "
    "console is read-only.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the console in the browser.")
@with_options
def console(host: str | None, port: int | None, token_file: str | None, open_browser: bool) -> None:
    """Show the outbox and its history in the browser, until interrupted.

    Reading is for this machine. Actions (retry, fix, skip, verify) need the token, and are recorded in the audit log of
    the outbox. A bot and a relay may have the outbox open. Needs letopis[console].
    """
    from letopis.outbox.cli.interface.locations import existing_outbox

    found = settings()
    path = existing_outbox(found)
    serving = load_console("standalone")
    asyncio.run(
        serving.run(path, found, host=host, port=port, token_file=token_file, open_browser=open_browser, tell=note)
    )


def load_console(module: str) -> Any:
    """Import a module of the console, which stands above this package and needs an extra.

    :raises ConfigurationError: the extra is not installed.
    """
    from letopis.store.errors import ConfigurationError

    try:
        return import_module(f"letopis.console.{module}")
    except ImportError as error:
        raise ConfigurationError("the console needs more packages: pip install 'letopis[console]'") from error
