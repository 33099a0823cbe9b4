"""Limit the number and age of HTTP connections, so that no client can keep others out."""

from __future__ import annotations

import asyncio
from typing import Any, Final

REQUEST_TIMEOUT_SECONDS: Final = 10.0
"""Time in which a request has to arrive, head and body."""
CONNECTION_TIMEOUT_SECONDS: Final = 30.0
"""Longest life of a connection; each carries one request."""
MAX_WAITING_PER_CLIENT: Final = 16
"""Connections of one client without a complete request; beyond that the oldest is closed for a new one."""
MAX_WAITING_CONNECTIONS: Final = 64
"""The same for all clients together."""


def limited_protocol(connection_seconds: float | None = None) -> type[Any]:
    """Return uvicorn's protocol with a time limit, whose waiting connections make room for others.

    :param connection_seconds: the longest life of a connection, 30 s by default.
    :raises ImportError: the extra ``letopis[daemon]`` is not installed.
    """
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
            self._make_room()

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop the timers."""
            for timer in self._timers:
                timer.cancel()
            super().connection_lost(exc)

        def _close_if_waiting(self) -> None:
            if _is_waiting(self):
                self.transport.abort()

        def _make_room(self) -> None:
            waiting: list[Any] = sorted((one for one in self.connections if _is_waiting(one)), key=_opened_at)
            host = self.client and self.client[0]
            of_client = [one for one in waiting if (one.client and one.client[0]) == host]
            # The newest stay: a client that sends its request at once, as a liveness probe does, is never kept out.
            for one in {*of_client[:-MAX_WAITING_PER_CLIENT], *waiting[:-MAX_WAITING_CONNECTIONS]}:
                one.transport.abort()

    return LimitedConnection


def _is_waiting(connection: Any) -> bool:
    """Return True if the client has not sent its whole request, nor got an answer."""
    cycle = connection.cycle
    waits = cycle is None or (cycle.more_body and not cycle.response_started)
    return waits and not connection.transport.is_closing()


def _opened_at(connection: Any) -> float:
    return float(connection._timers[1].when()) if connection._timers else 0.0
