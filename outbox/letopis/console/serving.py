"""Serve the console by itself, on one address, until a signal."""

from __future__ import annotations

import logging
import socket
from typing import Any, Final

from letopis.outbox.daemon.http import ListenAddress
from letopis.store.errors import ConfigurationError

logger = logging.getLogger("letopis.console")

SHUTDOWN_TIMEOUT_SECONDS: Final = 1
"""Time that open requests have at the end; pages that follow live are cut off."""
MAX_CONCURRENT_REQUESTS: Final = 64


def check_address(address: ListenAddress, *, token: str | None) -> None:
    """Check that a console on this address is not open to everybody.

    :raises ConfigurationError: other machines could reach it, and there is no token.
    """
    if not address.loopback and token is None:
        raise ConfigurationError(
            f"the console would be open to every machine that reaches {address}: set LETOPIS_CONSOLE_TOKEN or"
            " LETOPIS_CONSOLE_TOKEN_FILE, or leave --host out"
        )


def bind(address: ListenAddress) -> socket.socket:
    """Return a socket that listens at an address.

    :raises OSError: there is no such address here, or something else listens there.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, str(address)) from error
    return listener


async def serve(application: Any, listener: socket.socket) -> None:
    """Serve an application on a listening socket until SIGINT or SIGTERM.

    :raises ConfigurationError: the extra ``letopis[console]`` is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigurationError("the console needs uvicorn: pip install 'letopis[console]'") from error
    server = uvicorn.Server(
        uvicorn.Config(
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
    )
    # Its log records quote what unknown clients send.
    logging.getLogger("uvicorn").disabled = logging.getLogger("uvicorn.error").disabled = True
    await server.serve(sockets=[listener])
