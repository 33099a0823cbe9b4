"""What the daemon answers over HTTP, and to whom."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from letopis.outbox.figures import Figures
from letopis.outbox.listening import Address, Answers, listening, parse_address
from letopis.store.errors import ConfigurationError
from tests.test_metrics import figures


class Asked:
    """One request to the application, without a server between."""

    def __init__(self, app: Answers, path: str, method: str = "GET", accept: str = "*/*") -> None:
        self._scope = {"type": "http", "path": path, "method": method, "headers": [(b"accept", accept.encode())]}
        self._app = app
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]

    async def _receive(self) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def answered(self) -> Asked:
        await self._app(self._scope, self._receive, self._send)
        return self


def app(found: Figures, *, live: bool = True) -> Answers:
    async def read() -> Figures:
        return found

    return Answers(live=lambda: live, figures=read)


async def test_alive_is_who_comes_round_the_loop() -> None:
    well = await Asked(app(figures()), "/healthz/live").answered()
    stuck = await Asked(app(figures(), live=False), "/healthz/live").answered()

    assert (well.status, json.loads(well.body)) == (200, {"live": True})
    assert (stuck.status, json.loads(stuck.body)) == (503, {"live": False})


async def test_being_alive_does_not_depend_on_reading_files() -> None:
    async def never() -> Figures:
        raise AssertionError("a look at liveness read the files")

    asked = await Asked(Answers(live=lambda: True, figures=never), "/healthz/live").answered()

    assert asked.status == 200


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 200), ({"ready": False}, 503), ({"sound": False}, 503)],
    ids=["all is well", "starting or ending", "a file that was named cannot be used"],
)
async def test_ready_is_whose_files_can_be_used(changes: dict[str, bool], status: int) -> None:
    asked = await Asked(app(figures(**changes)), "/healthz/ready").answered()

    assert asked.status == status
    assert json.loads(asked.body)["ready"] is (status == 200)


async def test_a_store_that_is_away_is_ready_and_degraded() -> None:
    from letopis.outbox.breaker import Breaker
    from letopis.outbox.clock import Clock
    from tests.relays import DOWN

    breaker = Breaker(clock=Clock(), uniform=lambda _, most: most)
    breaker.trip(DOWN, ())
    asked = await Asked(app(figures(breakers=[breaker])), "/healthz/ready").answered()

    found = json.loads(asked.body)
    assert (asked.status, found["ready"], found["degraded"]) == (200, True, True)
    assert found["stores"] == {"closed": 0, "open": 1, "half_open": 0}


async def test_metrics_are_served_in_the_format_that_is_asked_for() -> None:
    plain = await Asked(app(figures()), "/metrics").answered()
    opened = await Asked(app(figures()), "/metrics", accept="application/openmetrics-text; version=1.0.0").answered()

    assert plain.headers[b"content-type"].startswith(b"text/plain")
    assert b"letopis_outbox_pending_events 6.0" in plain.body
    assert opened.body.endswith(b"# EOF\n")


async def test_nothing_else_is_there_and_nothing_can_be_changed() -> None:
    missing = await Asked(app(figures()), "/../etc/passwd").answered()
    posted = await Asked(app(figures()), "/metrics", method="POST").answered()
    head = await Asked(app(figures()), "/metrics", method="HEAD").answered()

    assert missing.status == 404
    assert (posted.status, posted.headers[b"allow"]) == (405, b"GET, HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("9464", "127.0.0.1", 9464),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("0.0.0.0:9464", "0.0.0.0", 9464),  # noqa: S104
        ("[::1]:9464", "::1", 9464),
        (" localhost:1 ", "localhost", 1),
    ],
)
def test_an_address_is_a_port_or_host_and_port(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host=host, port=port)


@pytest.mark.parametrize("text", ["", "host", ":9464", "host:", "1:70000", "-1", "127.0.0.1:http"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Also a colon with no host before it, which elsewhere means the whole network."""
    with pytest.raises(ConfigurationError, match="port"):
        parse_address(text)


def test_only_this_machine_is_the_loopback() -> None:
    assert all(parse_address(one).loopback for one in ("1", "127.0.0.2:1", "[::1]:1", "localhost:1"))
    assert not any(parse_address(one).loopback for one in ("0.0.0.0:1", "[::]:1", "192.168.1.1:1"))


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def answering(found: Figures) -> tuple[Callable[[], bool], Callable[[], Awaitable[Figures]]]:
    async def read() -> Figures:
        return found

    return lambda: True, read


async def test_it_answers_while_it_is_listening_and_no_longer() -> None:
    live, read = answering(figures())
    async with listening(parse_address("0"), live=live, figures=read) as address:
        status, body = await asyncio.to_thread(_get, address.port, "/metrics")

    assert (address.host, status) == ("127.0.0.1", 200)
    assert b"letopis_build_info" in body
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(_get, address.port, "/metrics")


async def test_a_port_that_is_taken_is_said_with_its_address() -> None:
    live, read = answering(figures())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            async with listening(parse_address(str(port)), live=live, figures=read):
                pytest.fail("it listens where somebody else does")


async def test_a_host_that_does_not_exist_is_wrong_configuration() -> None:
    live, read = answering(figures())
    with pytest.raises(ConfigurationError, match=r"no-such-host\.invalid"):
        async with listening(parse_address("no-such-host.invalid:1"), live=live, figures=read):
            pytest.fail("it listens nowhere")


async def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    live, read = answering(figures())

    with pytest.raises(ConfigurationError, match=r"letopis\[daemon\]"):
        async with listening(parse_address("0"), live=live, figures=read):
            pytest.fail("it listens without a server")
