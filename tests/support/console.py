"""Serve a console from a thread of its own, look at it in a real browser, and have axe-core judge the pages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from letopis.console.access import Gate
from letopis.console.application import app, console_of
from letopis.console.standalone import Server, bind, server_config
from letopis.outbox import History
from letopis.outbox.daemon.http import ListenAddress
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
    """Return the secret of a user's token."""
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
    """Start the system's Chromium; skip the test where there is none."""
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
        """Click what leads to another page, and wait for that."""
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
