"""Serve a console from a thread of its own, ask it over HTTP, look at it in a browser, and have axe-core judge it."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import pytest

from letopis.console.access import Gate
from letopis.console.application import app, console_of
from letopis.console.standalone import Server, bind, server_config
from letopis.ops.daemon.http import ListenAddress
from letopis.outbox import History
from tests.support.paths import ROOT
from tests.support.required import program

T = TypeVar("T")

OPERATORS: Final = ("Ann", "Bea", "Cleo <b>", "Dan", "Eve")
READER: Final = "Ray"
AXE: Final = ROOT / "tests" / "support" / "vendor" / "axe.min.js"
AXE_SHA256: Final = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
CHROMIUM_OPTIONS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PHONE: Final = {"width": 390, "height": 844}
DESK: Final = {"width": 1280, "height": 900}
RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")  # what axe-core looks for


def secret_of(name: str) -> str:
    return f"a-secret-of-the-tests-for-{name}"


TOKEN: Final = secret_of("Ann")
TOKENS: Final = (
    *(f"{name}:operator:{secret_of(name)}" for name in OPERATORS),
    f"{READER}:reader:{secret_of(READER)}",
)


class House:
    """A history, its console, and the event loop that both run in, in a thread."""

    def __init__(
        self,
        path: Path,
        *,
        gate: Gate | None = None,
        around: Callable[[Any], Any] = lambda application: application,
        **options: Any,
    ) -> None:
        self._path = path
        self._gate = gate
        self._around = around
        self._options = options
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="console-house")

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, page: str = "") -> str:
        return f"{self.origin}/{page}"

    def run(self, work: Awaitable[T]) -> T:
        return asyncio.run_coroutine_threadsafe(_awaited(work), self._loop).result(timeout=60)

    def __enter__(self) -> House:
        self._thread.start()
        self._ready.result(timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with History(self._path, **self._options) as history:
                self.history = history
                gate = self._gate
                self.application = app(history, tokens=TOKENS) if gate is None else console_of(history, gate)
                listener = bind(ListenAddress(host="127.0.0.1", port=0))
                self.port = listener.getsockname()[1]
                server = Server(server_config(self._around(self.application)))
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has a flag, no event
                    await asyncio.sleep(0.01)
                self._ready.set_result(None)
                await self._stop.wait()
                server.should_exit = True
                await serving
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise


async def _awaited(work: Awaitable[T]) -> T:
    return await work


@contextmanager
def chromium() -> Iterator[Any]:
    executable = program("chromium", "chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: the group pages")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_OPTIONS))
        yield browser
        browser.close()


class Tab:
    """One tab, which notes what a page must not do: refused by the policy, errors, requests to elsewhere."""

    def __init__(
        self, browser: Any, house: House, *, user: str | None = READER, scripts: bool = True, **options: Any
    ) -> None:
        self.house = house
        self._user = user
        self.context = browser.new_context(
            viewport=options.pop("viewport", DESK), java_script_enabled=scripts, reduced_motion="reduce", **options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.refused: list[str] = []
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)
        if scripts:
            self.page.add_init_script(
                "window.refused = []; document.addEventListener('securitypolicyviolation',"
                " (event) => window.refused.push(event.violatedDirective + ' ' + event.blockedURI))"
            )
        self._scripts = scripts

    def __enter__(self) -> Tab:
        if self._user is not None:
            self.sign_in(self._user)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.refused == [], "the content security policy refused something"
            assert self.errors == []
            assert self.elsewhere == []

    def go(self, page: str = "") -> Any:
        answer = self.page.goto(self.house.url(page), wait_until="load")
        self.note()
        return answer

    def note(self) -> None:
        if self._scripts:
            self.refused += self.page.evaluate("window.refused || []")

    def text(self) -> str:
        return str(self.page.inner_text("main"))

    def sign_in(self, name: str = "Ann") -> None:
        self.go("session")
        self.page.fill("input[name=token]", secret_of(name))
        self.page.click("main button")
        self.page.wait_for_selector("form[action$='session/end']")

    def click(self, selector: str) -> None:
        with self.page.expect_navigation():
            self.page.click(selector)
        self.note()

    def findings(self) -> list[str]:
        # By the browser's own debugger: the policy of the page forbids such a script, which is right.
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate(
            "async (tags) => (await axe.run(document, {runOnly: {type: 'tag', values: tags}})).violations.map("
            "(one) => one.id + ': ' + one.nodes.map((node) => node.html.slice(0, 150) + ' ' +"
            " (node.any[0]?.message ?? node.all[0]?.message ?? node.none[0]?.message ?? '')).join(' | '))",
            list(RULES),
        )
        return list(found)

    def sideways(self) -> int:
        """Return how many pixels of the page are reached by scrolling sideways only."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def _said(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.refused.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.house.origin, "data:", "about:")):
            self.elsewhere.append(request.url)


PAGES = (
    *("", "stuck", "conversations", "conversations?q=hello", "statistics", "integrity", "audit"),
    *("conversation?id=c1", "conversation?id=c1&version=1", "conversation?id=c1&print=1"),
)
ACTIONS = (
    *("stuck/retry", "stuck/skip", "stuck/skip-missing", "stuck/fix", "stuck/restore", "stuck/pause", "stuck/resume"),
    *("stuck/export", "relay/pause", "relay/resume", "integrity/verify", "conversation/redact", "conversation/rename"),
    *("conversation/archive", "conversation/unarchive", "conversation/reset", "conversation/delete"),
    *("conversation/export", "alerts/test"),
)


@dataclass
class Answer:
    code: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def cookie(self) -> str:
        return (self.headers["set-cookie"] or "").partition(";")[0]

    @property
    def form_token(self) -> str:
        found = re.search(r'name="form_token" value="(\w+)"', self.text)
        return "" if found is None else found[1]


def ask(port: int, path: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        if form is None:
            connection.request("GET", path, headers=named)
        else:
            kind = {"content-type": "application/x-www-form-urlencoded"}
            connection.request("POST", path, body=urlencode(form), headers=kind | named)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read().decode())
    finally:
        connection.close()


def sign_in(port: int, secret: str = TOKEN, *, root: str = "") -> tuple[str, str]:
    answer = ask(port, f"{root}/session", {"token": secret})
    assert answer.code == 303, answer.text
    return answer.cookie, ask(port, f"{root}/session", cookie=answer.cookie).form_token


def open_raw(port: int, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(sent)
    return connection


def pour(port: int, path: str, chunks: Iterable[bytes], **headers: str) -> int:
    """Send a form in chunks until the server has enough; return how many bytes it let in."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n{lines}"
    connection = open_raw(port, f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    count = 0
    try:
        for chunk in chunks:
            connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            count += len(chunk)
    except OSError:
        pass  # it was closed
    finally:
        connection.close()
    return count
