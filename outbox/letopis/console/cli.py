"""``letopis console``: show a history in the browser."""

from __future__ import annotations

import asyncio
import webbrowser
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli._options import settings, with_options
from letopis.outbox.cli._output import note

if TYPE_CHECKING:
    from letopis.outbox.config.settings import Settings
    from letopis.outbox.daemon.http import ListenAddress

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8300


@click.command()
@click.option(
    "--host",
    metavar="ADDRESS",
    envvar="LETOPIS_CONSOLE_HOST",
    show_envvar=True,
    help=f"The address to listen on; another than one of this machine needs a token. Default: {DEFAULT_HOST}.",
)
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65_535),
    envvar="LETOPIS_CONSOLE_PORT",
    show_envvar=True,
    help=f"The port; 0 takes a free one. Default: {DEFAULT_PORT}.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="A file that holds the token for actions. LETOPIS_CONSOLE_TOKEN holds the token itself. Without one, the "
    "console is read-only.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the console in the browser.")
@with_options
def console(host: str | None, port: int | None, token_file: str | None, open_browser: bool) -> None:
    """Show the outbox and its history in the browser, until interrupted.

    Reading is for this machine. Actions (retry, fix, skip, verify) need the token, and are recorded in the audit log.
    A bot and a relay may have the outbox open. Needs letopis[console].
    """
    found = settings()
    asyncio.run(_served(found, host=host, port=port, token_file=token_file, open_browser=open_browser))


async def _served(
    found: Settings, *, host: str | None, port: int | None, token_file: str | None, open_browser: bool
) -> None:
    from letopis.console.configuration import read_token
    from letopis.console.serving import bind, check_address, serve
    from letopis.outbox.cli._locations import existing_outbox
    from letopis.outbox.history.history import History
    from letopis.store.errors import ConfigurationError

    try:
        from letopis.console.application import app
    except ImportError as error:
        raise ConfigurationError("the console needs Starlette and Jinja2: pip install 'letopis[console]'") from error

    path = existing_outbox(found)
    folder = found.file.parent if found.file else None
    token = read_token(found.console, folder, given=token_file)
    address = _address(found, host, port)
    check_address(address, token=token)
    history = History(path, store=found.store, relay=False, watch=False, create=False)
    application = app(history, token=token)
    try:
        await history.prepare()
        listener = await asyncio.to_thread(bind, address)
        where = f"http://{_shown(address)}:{listener.getsockname()[1]}/"
        reading = "read-only: there is no token" if token is None else "actions need the token"
        note(f"the console is at {where} ({reading}); Ctrl-C ends it")
        if open_browser:
            await asyncio.to_thread(webbrowser.open, where)
        await serve(application, listener)
    finally:
        await history.close()


def _address(found: Settings, host: str | None, port: int | None) -> ListenAddress:
    from letopis.outbox.daemon.http import ListenAddress

    table = found.console
    return ListenAddress(
        host=host or str(table.get("host", DEFAULT_HOST)),
        port=int(table.get("port", DEFAULT_PORT)) if port is None else port,
    )


def _shown(address: ListenAddress) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host
