"""What the daemon answers over HTTP, and to whom."""

import asyncio
import contextlib
import json
import socket
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from letopis.ops.daemon import http as daemon_http
from letopis.ops.daemon.health import FileCondition, HealthSnapshot, OutboxMetrics, aggregate
from letopis.ops.daemon.http import MAX_CONCURRENT_REQUESTS, HealthApp, ListenAddress, parse_address, serve_http
from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.concurrency.clock import Clock
from letopis.outbox.relay.outcome import RelayStats
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.store.errors import ConfigurationError
from tests.support.relays import DOWN
from tests.unit.ops.daemon.test_prometheus import figures


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def ask(app: HealthApp, path: str, method: str = "GET", accept: str = "*/*") -> Answer:
    """Make one request to the application, without a server between."""
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "path": path, "method": method, "headers": [(b"accept", accept.encode())]}
    await app(scope, receive, send)
    start, *parts = sent
    return Answer(start["status"], dict(start["headers"]), b"".join(part["body"] for part in parts))


async def well() -> HealthSnapshot:
    return figures()


async def never() -> HealthSnapshot:
    raise AssertionError("a look at liveness read the files")


def app(*, live: bool = True, **changes: Any) -> HealthApp:
    async def read() -> HealthSnapshot:
        return figures(**changes)

    return HealthApp(live=lambda: live, snapshot=read)


def serve(port: str = "0", **options: Any) -> AbstractAsyncContextManager[ListenAddress]:
    return serve_http(parse_address(port), **({"live": lambda: True, "snapshot": well} | options))


@pytest.mark.parametrize(("live", "status"), [(True, 200), (False, 503)])
async def test_liveness_is_of_the_loop_whatever_the_files_are(live: bool, status: int) -> None:
    asked = await ask(HealthApp(live=lambda: live, snapshot=never), "/healthz/live")
    assert (asked.status, json.loads(asked.body)) == (status, {"live": live})


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 200), ({"ready": False}, 503), ({"sound": False}, 503)],
    ids=["all is well", "starting or ending", "a file that was named cannot be used"],
)
async def test_ready_is_whose_files_can_be_used(changes: dict[str, bool], status: int) -> None:
    asked = await ask(app(**changes), "/healthz/ready")
    assert asked.status == status
    assert json.loads(asked.body)["ready"] is (status == 200)


async def test_a_store_that_is_away_is_ready_and_degraded() -> None:
    breaker = Breaker(clock=Clock(), uniform=lambda _, most: most)
    breaker.trip(DOWN, ())
    asked = await ask(app(breakers=[breaker]), "/healthz/ready")
    found = json.loads(asked.body)
    assert (asked.status, found["ready"], found["degraded"]) == (200, True, True)
    assert found["stores"] == {"closed": 0, "open": 1, "half_open": 0}


def test_late_deliveries_and_a_log_with_gaps_are_degraded() -> None:
    now = 1_000_000_000
    late = OutboxMetrics(
        condition=FileCondition.WORKING, pending=1, oldest_pending_us=now - 31_000_000, progress_us=now - 31_000_000
    )
    cases = {
        "late": [late],
        "progressing": [replace(late, progress_us=now - 1_000_000)],
        "fresh": [replace(late, oldest_pending_us=now - 1_000_000)],
        "gaps": [OutboxMetrics(condition=FileCondition.WORKING, incidents={str(IncidentKind.HISTORY_INCOMPLETE): 1})],
    }

    nothing = {"breakers": [], "relay": RelayStats(), "alerts": {}, "deliveries": []}
    found = {
        name: aggregate(files, now_us=now, ready=True, sound=True, **nothing).degraded for name, files in cases.items()
    }

    assert found == {"late": True, "progressing": False, "fresh": False, "gaps": True}


async def test_nothing_else_is_there_and_nothing_can_be_changed() -> None:
    plain = await ask(app(), "/metrics")
    opened = await ask(app(), "/metrics", accept="application/openmetrics-text; version=1.0.0")
    missing = await ask(app(), "/../etc/passwd")
    posted = await ask(app(), "/metrics", method="POST")
    head = await ask(app(), "/metrics", method="HEAD")
    assert (missing.status, plain.headers[b"content-type"][:10]) == (404, b"text/plain")
    names = {family.name for family in parse_openmetrics(opened.body.decode())}
    assert "letopis_relay_delivered_events" in names and b"letopis_outbox_pending_events 6.0" in plain.body
    assert (posted.status, posted.headers[b"allow"]) == (405, b"GET, HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("9464", "127.0.0.1", 9464, True),
        ("127.0.0.2:0", "127.0.0.2", 0, True),
        ("0.0.0.0:9464", "0.0.0.0", 9464, False),  # noqa: S104
        ("[::1]:9464", "::1", 9464, True),
        ("[::]:1", "::", 1, False),
        (" localhost:1 ", "localhost", 1, True),
        ("192.168.1.1:1", "192.168.1.1", 1, False),
    ],
)
def test_an_address_is_a_port_or_host_and_port(text: str, host: str, port: int, loopback: bool) -> None:
    found = parse_address(text)
    assert (found, found.loopback) == (ListenAddress(host=host, port=port), loopback)


@pytest.mark.parametrize("text", ["", "host", ":9464", "host:", "1:70000", "-1", "127.0.0.1:http"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Also a colon with no host before it, which elsewhere means the whole network."""
    with pytest.raises(ConfigurationError, match="port"):
        parse_address(text)


async def test_what_cannot_be_listened_to_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = ((port, OSError, f"127.0.0.1:{port}"), ("no-such-host.invalid:1", ConfigurationError, "no-such-host"))
        for address, error, says in (*cases, ("0", ConfigurationError, "letopis.daemon.")):
            if address == "0":
                monkeypatch.setitem(sys.modules, "uvicorn", None)
            with pytest.raises(error, match=says):
                async with serve(address):
                    pytest.fail("it listens")


async def raw(port: int, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def is_live(port: int) -> bool:
    reader, writer = await raw(port, b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


async def listening(_: Any, receive: Any, send: Any) -> None:
    """An application that reads a request to its end before it answers."""
    while (await receive()).get("more_body"):
        pass


@pytest.mark.parametrize(
    "held",
    [
        b"",
        b"GET /healthz/live HT",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /console/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n",
    ],
)
async def test_who_holds_connections_keeps_nobody_out(held: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_http, "REQUEST_TIMEOUT_SECONDS", 1.0)

    async with serve(console=listening) as bound:
        kept = [await raw(bound.port, held) for _ in range(200)]
        assert await is_live(bound.port)
        # A request that trickles in is cut off in time all the same.
        begun = asyncio.get_running_loop().time()
        reader, writer = kept[-1]
        while not reader.at_eof() and asyncio.get_running_loop().time() - begun < 40:
            writer.write(b"a")
            try:
                await asyncio.wait_for(reader.read(1), 0.1)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert asyncio.get_running_loop().time() - begun < 30
        for _, one in kept:
            one.close()


async def test_liveness_is_answered_while_the_figures_hang() -> None:
    asked, go_on = 0, asyncio.Event()

    async def read() -> HealthSnapshot:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return figures()

    async with serve(snapshot=read) as bound:
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        kept = [await raw(bound.port, request) for _ in range(MAX_CONCURRENT_REQUESTS + 8)]
        assert await is_live(bound.port)
        refused = [reader for reader, _ in kept[MAX_CONCURRENT_REQUESTS:]]
        assert all([(await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 503") for reader in refused])
        assert asked == MAX_CONCURRENT_REQUESTS
        go_on.set()
        for _, one in kept:
            one.close()


async def test_a_connection_that_is_never_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_http, "CONNECTION_TIMEOUT_SECONDS", 0.5)

    async def read() -> HealthSnapshot:
        await asyncio.Event().wait()
        return figures()

    async with serve(snapshot=read) as bound:
        reader, writer = await raw(bound.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
