"""Listening: how a daemon is, over HTTP: ``/healthz/live``, ``/healthz/ready`` and ``/metrics``; read-only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from letopis.outbox.figures import Figures
from letopis.outbox.metrics import exposition
from letopis.store.errors import ConfigurationError

logger: Final = logging.getLogger("letopis.outbox.daemon")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOOPBACK: Final = "127.0.0.1"
AT_ONCE: Final = 32
"""Requests that are answered at the same time; more get 503."""
ENDING: Final = 1
"""Seconds that open requests have when the daemon ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to listen, or to ask."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def parse_address(text: str) -> Address:
    """Return the address that ``HOST:PORT`` or a bare port names; the bare port is one of the loopback interface.

    :raises ConfigurationError: it is neither.
    """
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or int(port) > 65_535 or (colon and not host):
        raise ConfigurationError("the address to listen on is a port, which means 127.0.0.1, or HOST:PORT")
    return Address(host=host or LOOPBACK, port=int(port))


class Answers:
    """The ASGI application: answers from a daemon's figures.

    ``/healthz/live`` answers 503 where a relay does not come round its loop any more: start the process anew.
    ``/healthz/ready`` answers 503 during start-up and shutdown, and where an outbox file that was named cannot be used.
    A history store that is away is *ready*, with ``degraded`` true: the outbox is there for that.

    No answer holds an id, a name or a text of anybody's. There is no access control: who may connect may read.

    :param live: whether every relay comes round its loop; asked without reading any file.
    :param figures: all the rest.
    """

    def __init__(self, *, live: Callable[[], bool], figures: Callable[[], Awaitable[Figures]]) -> None:
        self._live = live
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        status, content_type, body = await self._answer(scope)
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope) -> tuple[int, str, bytes]:
        if scope["path"] not in ("/healthz/live", "/healthz/ready", "/metrics"):
            return _json(404, {"error": "there are /healthz/live, /healthz/ready and /metrics"})
        if scope["method"] not in ("GET", "HEAD"):
            return _json(405, {"error": "GET or HEAD"})
        if scope["path"] == "/healthz/live":
            live = self._live()
            return _json(200 if live else 503, {"live": live})
        found = await self._figures()
        if scope["path"] == "/healthz/ready":
            ready = found.ready and found.sound
            return _json(
                200 if ready else 503,
                {
                    "ready": ready,
                    "degraded": found.degraded,
                    "outboxes": dict(found.files),
                    "stores": dict(found.breakers),
                    "pending": found.pending,
                    "oldest_owed_seconds": round(found.oldest_owed_seconds, 3),
                },
            )
        accept = b", ".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        body, content_type = exposition(found, accept)
        return 200, content_type, body


def _json(status: int, value: Any) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(value).encode() + b"\n"


@asynccontextmanager
async def listening(
    address: Address, *, live: Callable[[], bool], figures: Callable[[], Awaitable[Figures]]
) -> AsyncIterator[Address]:
    """Answer at ``address`` for the time of a ``with`` block; yields it with the port that port 0 became.

    :raises ConfigurationError: the extra ``letopis[daemon]`` is not installed, or there is no such address here.
    :raises OSError: something else listens there.
    """
    # uvicorn: besides click it brings h11 alone, and three answers need no framework on top of it.
    try:
        import prometheus_client  # noqa: F401 - asked for now, not at the first scrape
        import uvicorn
    except ImportError as error:
        raise ConfigurationError("to answer over HTTP: pip install 'letopis[daemon]', or leave --listen out") from error

    class Server(uvicorn.Server):
        """A server that leaves the signals to the daemon."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Capture none."""
            yield

    ear = await asyncio.to_thread(_bound, address)
    server = Server(
        uvicorn.Config(
            Answers(live=live, figures=figures),
            http="h11",
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=AT_ONCE,
            timeout_graceful_shutdown=ENDING,
        )
    )
    # Its own lines are not ours to shape, and quote what strangers send.
    logging.getLogger("uvicorn").disabled = logging.getLogger("uvicorn.error").disabled = True
    serving = asyncio.create_task(server.serve(sockets=[ear]), name="letopis-listening")
    bound = Address(host=address.host, port=ear.getsockname()[1])
    logger.info("listening on %s%s", bound, "" if bound.loopback else ": whoever reaches it can read the figures")
    try:
        yield bound
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        ear.close()


def _bound(address: Address) -> socket.socket:
    """Return a socket bound to an address; resolving a name may block."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"there is no address {address.host[:100]!r} to listen on") from error
    ear = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_REUSEPORT"):  # that is: not on Windows, where it would share the port with anybody
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.bind(place)
        ear.listen()  # so that who asks before the server takes over waits, and is not refused
        ear.setblocking(False)
    except OSError as error:
        ear.close()
        raise OSError(error.errno, error.strerror, str(address)) from error
    return ear
