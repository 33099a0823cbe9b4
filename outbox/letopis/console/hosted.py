"""Serve the consoles of a relay's outboxes below ``/console/``, beside its health and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from letopis.console.access import Gate
from letopis.console.application import console_of
from letopis.console.headers import SecurityHeaders
from letopis.console.rendering import render_list
from letopis.console.visit import SESSION_COOKIE
from letopis.ops.config.settings import AlertSettings
from letopis.ops.daemon.daemon import DaemonSettings
from letopis.ops.daemon.discovery import find_outboxes, may_be_outbox
from letopis.outbox.history.history import History
from letopis.store.errors import ConfigurationError

PREFIX: Final = "/console"
MAX_OPEN: Final = 16
"""How many outboxes have their console open; the least recently used one is closed for another."""


def hosting(gate: Gate) -> Callable[[DaemonSettings], AbstractAsyncContextManager[ASGIApp]]:
    """Return a factory for a relay's consoles, to be called once its settings are known."""

    @asynccontextmanager
    async def hosted(settings: DaemonSettings) -> AsyncIterator[ASGIApp]:
        if settings.listen is None:
            raise ConfigurationError("--console needs --listen: it is served there")
        gate.require_entrance()
        consoles = HostedConsoles(settings.outboxes, store=settings.store, gate=gate, alerts=settings.alerts)
        try:
            yield consoles
        finally:
            await consoles.close()

    return hosted


class HostedConsoles:
    """An ASGI application: the list of outboxes and, below it, each outbox's console, opened on request.

    :param outboxes: paths and patterns, as given to the relay.
    :param store: the store of all outboxes; ``None`` for the SQLite file beside each.
    :param gate: of all consoles: signing in to one signs in to all.
    :param alerts: as the relay was started with.
    """

    def __init__(self, outboxes: tuple[str, ...], *, store: str | None, gate: Gate, alerts: AlertSettings) -> None:
        self._outboxes = outboxes
        self._store = store
        self._gate = gate
        self._alerts = alerts
        self._open: dict[Path, tuple[History, Starlette]] = {}
        self._lock = asyncio.Lock()
        self._list = SecurityHeaders(self._answer_list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, whose path begins with ``/console``."""
        name, _, _ = scope["path"].removeprefix(PREFIX).lstrip("/").partition("/")
        named = await asyncio.to_thread(self.named)
        path = named.get(unquote(name))
        if path is None:
            await self._list(scope, receive, send)
            return
        root = f"{scope.get('root_path', '')}{PREFIX}/{name}"
        if scope["path"] == root:
            await RedirectResponse(f"{root}/", status_code=307)(scope, receive, send)
            return
        console = await self._console(path)
        await console({**scope, "root_path": root}, receive, send)

    def named(self) -> Mapping[str, Path]:
        """Return the existing outboxes, by their names in URLs."""
        found: dict[str, Path] = {}
        for match in find_outboxes(self._outboxes):
            if not match.path.is_file() or (match.matched and not may_be_outbox(match.path)):
                continue
            name, number = match.path.name, 1
            while name in found:
                number += 1
                name = f"{match.path.name}-{number}"
            found[name] = match.path
        return found

    async def close(self) -> None:
        """Close all open consoles."""
        while self._open:
            await self._close(next(iter(self._open)))

    async def _console(self, path: Path) -> Starlette:
        async with self._lock:
            if path in self._open:
                self._open[path] = self._open.pop(path)  # the most recently used one
                return self._open[path][1]
            while len(self._open) >= MAX_OPEN:
                await self._close(next(iter(self._open)))
            history = History(path, store=self._store, relay=False, watch=False, create=False)
            console = console_of(
                history, self._gate, home=f"{PREFIX}/", cookie_path=f"{PREFIX}/", alerts=lambda: self._alerts
            )
            self._open[path] = (history, console)
            return console

    async def _close(self, path: Path) -> None:
        history, console = self._open.pop(path)
        await console.state.console.close()
        await history.close()

    async def _answer_list(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self._list_response(Request(scope)))(scope, receive, send)

    async def _list_response(self, request: Request) -> Response:
        named = await asyncio.to_thread(self.named)
        if request.url.path.rstrip("/") != PREFIX:
            return PlainTextResponse("there is no such outbox\n", status_code=404)
        # The first console has the form to sign in for all.
        if len(named) == 1 or (named and not self._gate.may_read(request.cookies.get(SESSION_COOKIE))):
            return RedirectResponse(f"{PREFIX}/{quote(next(iter(named)))}/", status_code=307)
        return HTMLResponse(render_list({name: f"{PREFIX}/{quote(name)}/" for name in named}))
