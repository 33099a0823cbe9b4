"""Serve the console as a program of its own, on one address, until a signal."""

from __future__ import annotations

import asyncio
import logging
import socket
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn

from letopis.console.application import app
from letopis.console.configuration import read_address, read_token
from letopis.outbox.config.settings import Settings
from letopis.outbox.daemon.http import ListenAddress
from letopis.outbox.daemon.signals import on_signals
from letopis.outbox.history.history import History
from letopis.store.errors import ConfigurationError

logger = logging.getLogger("letopis.console")

SHUTDOWN_TIMEOUT_SECONDS: Final = 1
"""Time for open requests to finish at shutdown; live streams are cut off."""
MAX_CONCURRENT_REQUESTS: Final = 64


async def run(
    outbox: Path,
    settings: Settings,
    *,
    host: str | None,
    port: int | None,
    token_file: str | None,
    open_browser: bool,
    tell: Callable[[str], None],
) -> None:
    """Serve the console of one outbox until SIGINT or SIGTERM.

    :param host: overrides the settings; likewise ``port`` and ``token_file``.
    :param tell: called with the console's address.
    :raises ConfigurationError: other machines could reach the console, and there is no token; or a setting is wrong.
    :raises OSError: the address is not one of this machine, or it is in use.
    """
    folder = settings.file.parent if settings.file else None
    token = read_token(settings.console, folder, given=token_file)
    address = read_address(settings.console, host=host, port=port)
    check_address(address, token=token)
    history = History(outbox, store=settings.store, relay=False, watch=False, create=False)
    application = app(history, token=token)
    try:
        await history.prepare()
        listener = await asyncio.to_thread(bind, address)
        where = f"http://{ListenAddress(host=address.host, port=listener.getsockname()[1])}/"
        limits = "read-only, there is no token" if token is None else "actions need the token"
        tell(f"the console is at {where} ({limits})")
        if open_browser:
            await asyncio.to_thread(webbrowser.open, where)
        await serve(application, listener)
    finally:
        await history.close()


def check_address(address: ListenAddress, *, token: str | None) -> None:
    """Check that a console on this address is not open to everyone.

    :raises ConfigurationError: other machines could reach the console, and there is no token.
    """
    if not address.loopback and token is None:
        raise ConfigurationError(
            f"the console would be open to every machine that reaches {address}: set LETOPIS_CONSOLE_TOKEN or"
            " LETOPIS_CONSOLE_TOKEN_FILE, or leave --host out"
        )


def bind(address: ListenAddress) -> socket.socket:
    """Return a socket that listens on an address.

    :raises OSError: the address is not one of this machine, or it is in use.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(MAX_CONCURRENT_REQUESTS)  # early clients wait for the server instead of being refused
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, str(address)) from error
    return listener


async def serve(application: Any, listener: socket.socket) -> None:
    """Serve an application on a listening socket until SIGINT or SIGTERM."""
    server = Server(server_config(application))

    def stop() -> None:
        server.should_exit = True

    # Its log records quote input from unknown clients.
    logging.getLogger("uvicorn").disabled = logging.getLogger("uvicorn.error").disabled = True
    with on_signals({"SIGINT": stop, "SIGTERM": stop}):
        await server.serve(sockets=[listener])


class Server(uvicorn.Server):
    """A server that does not handle signals: uvicorn's own would raise them again when it ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


def server_config(application: Any) -> uvicorn.Config:
    """Return the server's configuration."""
    return uvicorn.Config(
        application,
        ws="none",
        lifespan="on",
        limit_concurrency=MAX_CONCURRENT_REQUESTS,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
    )
