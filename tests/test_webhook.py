"""The webhook and its guard: what may be posted to, that the address is pinned, and that a bad peer holds nobody up."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from letopis.outbox.webhook import (
    MAX_REQUEST,
    Webhook,
    WebhookFailed,
    WebhookRefused,
    is_public,
    parse_webhook,
    post,
)
from letopis.store.errors import ConfigurationError

# How a URL can be made to point inside: by number, by wrapping, by name. Each must end before a byte is sent.
INSIDE = [
    "https://127.0.0.1/",
    "https://localhost/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://017700000001/",
    "https://127.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1:8443/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b:1::a00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "https://[fe80::1]/",
    "https://[fd00:ec2::254]/",
    "https://[ff02::1]/",
    "https://[2001:db8::1]/",
]
MALFORMED = [
    "",
    "example.com",
    "ftp://example.com/",
    "file:///etc/passwd",
    "http://example.com/",
    "https://",
    "https:///path",
    "https://user:hunter2@example.com/",
    "https://gh0st@example.com/",
    "https://example.com:0/",
    "https://example.com:99999/",
    "https://example.com:port/",
    "https://exa mple.com/",
    "https://example.com/\r\nHost: inside",
    "https://example.com/\x00",
    "https://example.com\\@inside/",
    "https://exämple.com/",
    "https://[fe80::1%25eth0]/",
    "https://[::1/",
    "https://example.com/" + "x" * 2_100,
]


@pytest.mark.parametrize("url", INSIDE)
def test_an_address_inside_is_refused(url: str) -> None:
    webhook = parse_webhook(url)
    with pytest.raises((WebhookRefused, WebhookFailed)) as refused:
        post(webhook, b"{}", headers={}, seconds=2)

    # A resolver that does not know this spelling is as good.
    assert getattr(refused.value, "code", "unknown_host") == "unknown_host"
    assert webhook.host not in str(refused.value)


@pytest.mark.parametrize("url", MALFORMED)
def test_what_is_no_webhook_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_webhook(url)

    assert "hunter2" not in str(refused.value)
    assert "gh0st" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("2002:808:808::", True),
        ("2002:a00:1::", False),
        ("192.0.0.8", False),
        ("fe80::1%eth0", False),
        ("2606:4700::5efe:7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("3fff::1", False),
        ("nonsense", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_name_with_one_address_inside_is_refused() -> None:
    """It is made to be resolved twice."""
    with pytest.raises(WebhookRefused):
        post(parse_webhook("https://rebind.test/"), b"{}", headers={}, resolver=lambda *_: ["8.8.8.8", "10.0.0.1"])


def test_a_name_that_means_nothing_is_a_failure() -> None:
    def fails(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "unknown")

    for resolver in (fails, lambda *_: []):
        with pytest.raises(WebhookFailed) as failed:
            post(parse_webhook("https://nowhere.test/"), b"{}", headers={}, resolver=resolver)
        assert (failed.value.code, failed.value.unsure) == ("unknown_host", False)


@dataclass
class Site:
    """A real server on the loopback, and what it was asked."""

    port: int = 0
    status: int = 204
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def serve(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            site.asked.append((self.path, dict(self.headers.items()), body))
            self.send_response(site.status)
            self.send_header("Location", f"http://127.0.0.1:{site.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_machine_of_ones_own_is_posted_to_when_that_is_said() -> None:
    with serve() as site:
        url = f"http://localhost:{site.port}/hook?key=1"
        with pytest.raises(ConfigurationError):
            parse_webhook(url)
        webhook = parse_webhook(url, private=True)
        with pytest.raises(WebhookRefused):
            post(Webhook(host="localhost", port=site.port, path="/", tls=False), b"{}", headers={})

        assert post(webhook, b'{"a": 1}', headers={"Content-Type": "application/json"}) == 204
        ((path, headers, body),) = site.asked
        assert (path, body) == ("/hook?key=1", b'{"a": 1}')
        assert headers["Host"] == f"localhost:{site.port}"
        assert headers["Content-Type"] == "application/json"


def test_the_address_is_pinned_and_the_name_kept() -> None:
    """The name is looked up once; the connection goes to what was found and checked then."""
    lookups: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        lookups.append(host)
        return ["127.0.0.1"]

    with serve() as site:
        webhook = parse_webhook(f"http://hooks.example.test:{site.port}/x", private=True)
        assert post(webhook, b"{}", headers={}, resolver=resolver) == 204

    assert lookups == ["hooks.example.test"]
    assert site.asked[0][1]["Host"] == f"hooks.example.test:{site.port}"


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 429, 500, 503])
def test_nothing_but_success_is_success_and_redirects_are_not_followed(status: int) -> None:
    with serve() as site:
        site.status = status
        with pytest.raises(WebhookFailed) as failed:
            post(parse_webhook(f"http://127.0.0.1:{site.port}/", private=True), b"{}", headers={})

    assert (failed.value.code, failed.value.unsure) == (str(status), False)
    assert len(site.asked) == 1


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client that trusts one authority, and a server with a certificate of it for ``hooks.example.test``."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, so there is no certificate to test with")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=hooks.example.test", "-addext", "subjectAltName=DNS:hooks.example.test"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, key)
    return ssl.create_default_context(cafile=str(certificate)), theirs


def test_tls_checks_the_name_and_not_the_address(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    ours, theirs = tls
    with serve(theirs) as site:

        def go(name: str) -> int:
            webhook = parse_webhook(f"https://{name}:{site.port}/", private=True)
            return post(webhook, b"{}", headers={}, resolver=lambda *_: ["127.0.0.1"], context=ours)

        assert go("hooks.example.test") == 204
        with pytest.raises(WebhookFailed) as failed:
            go("other.example.test")
        assert failed.value.code == "tls"
        assert not failed.value.unsure
    assert len(site.asked) == 1


def test_nobody_there_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(WebhookFailed) as failed:
        post(parse_webhook(f"http://127.0.0.1:{port}/", private=True), b"{}", headers={}, seconds=2)

    assert (failed.value.code, failed.value.unsure) == ("unreachable", False)


def silent(taken: socket.socket) -> None:
    taken.recv(65_536)
    time.sleep(5)


def dripping(taken: socket.socket) -> None:
    """Each byte comes in time, the answer never does."""
    taken.recv(65_536)
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000:
        try:
            taken.send(bytes([byte]))
        except OSError:
            return
        time.sleep(0.1)


@pytest.mark.parametrize("peer", [silent, dripping])
def test_a_peer_that_never_ends_is_left_in_time(peer: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            taken, _ = server.accept()
            with taken:
                peer(taken)

        threading.Thread(target=accept, daemon=True).start()
        webhook = parse_webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", private=True)
        started = time.monotonic()
        with pytest.raises(WebhookFailed) as failed:
            post(webhook, b"{}", headers={}, seconds=0.5)

    assert time.monotonic() - started < 3
    assert (failed.value.code, failed.value.unsure) == ("timeout", True)


def test_a_peer_that_answers_no_http_or_too_much_does_no_harm() -> None:
    answers = [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 200_000]
    outcomes: list[str | int] = []
    for answer in answers:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def accept(server: socket.socket = server, answer: bytes = answer) -> None:
                taken, _ = server.accept()
                with taken:
                    # All of it: what lies unread when the socket is closed makes the kernel take the answer back.
                    heard = b""
                    while not heard.endswith(b"{}") and (part := taken.recv(65_536)):
                        heard += part
                    taken.sendall(answer)

            threading.Thread(target=accept, daemon=True).start()
            webhook = parse_webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", private=True)
            try:
                outcomes.append(post(webhook, b"{}", headers={}, seconds=5))
            except WebhookFailed as failed:
                outcomes.append(failed.code)

    assert outcomes == ["broken", 200]


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(WebhookRefused):
        post(parse_webhook("https://example.com/"), b"x" * (MAX_REQUEST + 1), headers={})
