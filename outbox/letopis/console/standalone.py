"""Serve the console as a program of its own, on one address, until a signal."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn

from letopis.console.application import console_of
from letopis.console.configuration import read_address, read_gate
from letopis.ops.config.settings import Settings, load_alerts
from letopis.ops.daemon.http import CLOSE, MAX_CONCURRENT_REQUESTS, ListenAddress, limited_protocol
from letopis.ops.daemon.systemd import on_signals
from letopis.outbox.history.history import History

logger = logging.getLogger("letopis.console")

SHUTDOWN_TIMEOUT_SECONDS: Final = 1
"""Time for open requests to finish at shutdown; live streams are cut off."""
CONNECTION_TIMEOUT_SECONDS: Final = 3600.0
"""Longest life of a connection, for long exports."""


async def run(
    outbox: Path,
    settings: Settings,
    *,
    host: str | None,
    port: int | None,
    tokens_file: str | None,
    user: str,
    tell: Callable[[str], None],
    show_link: Callable[[str], None] | None,
) -> None:
    """Serve the console of one outbox until SIGINT or SIGTERM.

    :param host: overrides the settings; likewise ``port`` and ``tokens_file``.
    :param user: who is signed in by the link.
    :param tell: called with the console's address.
    :param show_link: called with a link that signs in once; ``None`` without a terminal to show it.
    :raises ConfigurationError: there is no way to read the console, other machines could reach it and there is no
        token, or a setting is wrong.
    :raises OSError: the address is not one of this machine, or it is in use.
    """
    folder = settings.file.parent if settings.file else None
    gate = read_gate(settings.console, folder, given=tokens_file)
    address = read_address(settings.console, host=host, port=port)
    if show_link is None or not address.loopback:
        gate.require_entrance()
    history = History(outbox, store=settings.store, relay=False, watch=False, create=False)
    application = console_of(history, gate, alerts=partial(load_alerts, settings.alerts, folder=folder))
    try:
        await history.prepare()
        listener = await asyncio.to_thread(bind, address)
        where = f"http://{ListenAddress(host=address.host, port=listener.getsockname()[1])}/"
        tell(f"the console is at {where}")
        if show_link is not None:
            await asyncio.to_thread(show_link, f"{where}session?once={gate.create_link(user)}")
        await serve(application, listener)
    finally:
        await history.close()


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
        http=limited_protocol(CONNECTION_TIMEOUT_SECONDS),
        headers=CLOSE,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
    )
