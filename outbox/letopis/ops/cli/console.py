"""``letopis console``: show a history in the browser."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import Any

import click

from letopis.ops.cli.interface.locations import existing_outbox
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import env_option, note
from letopis.ops.cli.interface.selection import current_user


@verb(
    "letopis console --open", "LETOPIS_CONSOLE_TOKENS_FILE=/run/secrets/letopis-console letopis console --host 10.0.0.5"
)
@env_option(
    "--host",
    prefix="LETOPIS_CONSOLE_",
    metavar="ADDRESS",
    help="The address to listen on; one that other machines reach needs a token. Default: 127.0.0.1.",
)
@env_option(
    "--port",
    prefix="LETOPIS_CONSOLE_",
    metavar="PORT",
    type=click.IntRange(0, 65_535),
    help="The port; 0 takes a free one. Default: 8300.",
)
@click.option(
    "--tokens-file",
    metavar="FILE",
    help="A file that holds the tokens that users sign in with, a NAME:ROLE:SECRET on each line; the role is reader or "
    "operator. LETOPIS_CONSOLE_TOKENS holds the tokens themselves.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the console in the browser, signed in.")
def console(host: str | None, port: int | None, tokens_file: str | None, open_browser: bool) -> None:
    """Show the outbox and its history in the browser, until interrupted.

    In a terminal, it prints a link that signs you in as an operator, once. Others sign in with a token. Actions (retry,
    fix, skip, verify) are recorded in the audit log of the outbox. A bot and a relay may have the outbox open. Needs
    letopis[console].
    """
    import webbrowser

    config = settings()
    path = existing_outbox(config)
    serving = load_console("standalone")
    terminal = sys.stderr.isatty()

    def show_link(link: str) -> None:
        if terminal:  # it must not be in a log
            note(f"this link signs you in, once: {link}")
        if open_browser:
            webbrowser.open(link)

    asyncio.run(
        serving.run(
            path,
            config,
            host=host,
            port=port,
            tokens_file=tokens_file,
            user=current_user() or "operator",
            tell=note,
            show_link=show_link if terminal or open_browser else None,
        )
    )


def load_console(module: str) -> Any:
    """Import a module of the console, which stands above this package and needs an extra."""
    from letopis.store.errors import ConfigurationError

    try:
        return import_module(f"letopis.console.{module}")
    except ImportError as error:
        raise ConfigurationError("the console needs more packages: pip install 'letopis[console]'") from error
