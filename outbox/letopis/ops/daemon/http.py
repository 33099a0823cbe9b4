"""Serve ``/healthz/live``, ``/healthz/ready`` and ``/metrics`` over HTTP, read-only, with limited connections."""

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

from letopis.ops.daemon.health import HealthSnapshot
from letopis.ops.daemon.prometheus import exposition
from letopis.store.errors import ConfigurationError, without_credentials

logger: Final = logging.getLogger("letopis.ops.daemon")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]  # an ASGI application

LOOPBACK: Final = "127.0.0.1"
MAX_CONCURRENT_REQUESTS: Final = 32  # requests answered at a time; more get 503. Liveness does not count
CLOSE: Final = [("connection", "close")]  # in every answer: a connection carries one request, so its time is limited
SHUTDOWN_TIMEOUT_SECONDS: Final = 1  # time that open requests have when the daemon ends


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def parse_address(text: str) -> ListenAddress:
    """Return the address that ``HOST:PORT`` or a port means; a port alone is one of the loopback interface."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or int(port) > 65_535 or (colon and not host):
        raise ConfigurationError(
            f"{without_credentials(text)[:60]!a} is no address to listen on: give a port from 0 to 65535, which means"
            " 127.0.0.1, or HOST:PORT"
        )
    return ListenAddress(host=host or LOOPBACK, port=int(port))


@dataclass(slots=True, kw_only=True, eq=False)
class HealthApp:
    """An ASGI application that answers from a daemon's health, to every client; no answer holds anything of a user.

    ``/healthz/ready`` answers 503 during start-up and shutdown, and if an outbox file that was named cannot be used or
    would be delivered to another store than its own. An unavailable store, or a late delivery, is ready and degraded.
    """

    live: Callable[[], bool]
    snapshot: Callable[[], Awaitable[HealthSnapshot]]
    console: App | None = None
    _in_progress: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self.console is not None and f"{scope['path']}/".startswith("/console/"):
            await self.console(scope, receive, send)
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
            live = self.live()
            return _json(200 if live else 503, {"live": live})
        if self._in_progress >= MAX_CONCURRENT_REQUESTS:
            return _json(503, {"error": "too many requests at once"})
        self._in_progress += 1
        try:
            health = await self.snapshot()
        finally:
            self._in_progress -= 1
        if scope["path"] == "/healthz/ready":
            ready = health.ready and health.sound
            return _json(
                200 if ready else 503,
                {
                    "ready": ready,
                    "degraded": health.degraded,
                    "outboxes": dict(health.files),
                    "delivering": [
                        {
                            "outbox": file.name,
                            "condition": file.condition,
                            "store": file.bound.destination,
                            "store_id": file.bound.store_id and str(file.bound.store_id),
                        }
                        for file in health.listed
                    ],
                    "stores": dict(health.breakers),
                    "pending": health.pending,
                    "late": health.late,
                    "oldest_pending_seconds": round(health.oldest_pending_seconds, 3),
                },
            )
        accept = b", ".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        body, content_type = exposition(health, accept)
        return 200, content_type, body


def _json(status: int, value: Any) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(value).encode() + b"\n"


@asynccontextmanager
async def serve_http(
    address: ListenAddress,
    *,
    live: Callable[[], bool],
    snapshot: Callable[[], Awaitable[HealthSnapshot]],
    console: App | None = None,
) -> AsyncIterator[ListenAddress]:
    """Serve at ``address`` during a ``with`` block; yields it with the port that replaces port 0."""
    # uvicorn: besides click it brings h11 alone, and three answers need no framework on top of it.
    try:
        import prometheus_client  # noqa: F401 - fails now, not at the first scrape
        import uvicorn
    except ImportError as error:
        raise ConfigurationError("to answer over HTTP: pip install 'letopis[daemon]', or leave --listen out") from error

    class Server(uvicorn.Server):
        """A server that leaves signals to the daemon."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    listener = await asyncio.to_thread(_bound, address)
    server = Server(
        uvicorn.Config(
            HealthApp(live=live, snapshot=snapshot, console=console),
            http=limited_protocol(),
            headers=CLOSE,
            ws="none",
            loop="none",
            lifespan="off",
            # It also bounds how many failing accepts are logged each second when no file can be opened.
            backlog=MAX_CONCURRENT_REQUESTS,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
        )
    )
    # Its log records have another format, and quote what unknown clients send.
    logging.getLogger("uvicorn").disabled = logging.getLogger("uvicorn.error").disabled = True
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="letopis-listening")
    bound = ListenAddress(host=address.host, port=listener.getsockname()[1])
    logger.info(
        "listening on %s%s", bound, "" if bound.loopback else ": every client that reaches it can read the metrics"
    )
    try:
        yield bound
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()


def _bound(address: ListenAddress) -> socket.socket:
    """Return a socket bound to an address; resolving a name may block."""
    try:
        family, kind, protocol, _, socket_address = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"there is no address {address.host[:100]!r} to listen on") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_REUSEPORT"):  # not on Windows, where it would share the port with any process
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(socket_address)
        listener.listen(MAX_CONCURRENT_REQUESTS)  # early clients wait for the server instead of being refused
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, str(address)) from error
    return listener


REQUEST_TIMEOUT_SECONDS: Final = 10.0  # time in which a request has to arrive, head and body
CONNECTION_TIMEOUT_SECONDS: Final = 30.0  # longest life of a connection; each carries one request
MAX_WAITING_PER_CLIENT: Final = 16  # connections of one client without a complete request; a new one closes the oldest
MAX_WAITING_CONNECTIONS: Final = 64  # the same for all clients together


def limited_protocol(connection_seconds: float | None = None) -> type[Any]:
    """Return uvicorn's protocol with a time limit, whose waiting connections make room for others."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedConnection(H11Protocol):
        """A connection with a time limit, which makes room for others while it waits for a request."""

        _timers: tuple[asyncio.TimerHandle, ...] = ()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
            """Start the timers, and close the oldest waiting connections if there are too many."""
            super().connection_made(transport)
            self._timers = (
                self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._close_if_waiting),
                self.loop.call_later(connection_seconds or CONNECTION_TIMEOUT_SECONDS, transport.abort),
            )
            waiting: list[Any] = [connection for connection in self.connections if _is_waiting(connection)]
            waiting.sort(key=lambda connection: connection._timers[1].when() if connection._timers else 0.0)
            host = self.client and self.client[0]
            of_client = [connection for connection in waiting if (connection.client and connection.client[0]) == host]
            # The newest stay: a client that sends its request at once, as a liveness probe does, is never kept out.
            for connection in {*of_client[:-MAX_WAITING_PER_CLIENT], *waiting[:-MAX_WAITING_CONNECTIONS]}:
                connection.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in self._timers:
                timer.cancel()
            super().connection_lost(exc)

        def _close_if_waiting(self) -> None:
            if _is_waiting(self):
                self.transport.abort()

    return LimitedConnection


def _is_waiting(connection: Any) -> bool:
    """Return True if the client has not sent its whole request, nor got an answer."""
    cycle = connection.cycle
    waits = cycle is None or (cycle.more_body and not cycle.response_started)
    return waits and not connection.transport.is_closing()
