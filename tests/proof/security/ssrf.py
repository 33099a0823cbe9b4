"""SSRF: a webhook that is made to point inside: no request reaches a listener there, by whatever name it is called."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from letopis.outbox.webhook import Webhook, WebhookFailed, WebhookRefused, parse_webhook, post
from letopis.store import ConfigurationError
from tests.test_webhook import INSIDE, serve


@dataclass(slots=True)
class Listener:
    """Who listens on the loopback, and how often somebody came."""

    port: int = 0
    came: list[str] = field(default_factory=list)


@contextmanager
def listening() -> Iterator[Listener]:
    """Listen on every address of the loopback."""
    listener = Listener()
    sockets = [socket.create_server(("127.0.0.1", 0))]
    listener.port = sockets[0].getsockname()[1]
    if socket.has_ipv6:
        with suppress(OSError):  # no loopback of that kind here
            sockets.append(socket.create_server(("::1", listener.port), family=socket.AF_INET6))
    ending = threading.Event()

    def accept(server: socket.socket) -> None:
        server.settimeout(0.05)
        while not ending.is_set():
            try:
                connection, peer = server.accept()
            except OSError:
                continue
            listener.came.append(str(peer))
            connection.close()

    threads = [threading.Thread(target=accept, args=(one,), daemon=True) for one in sockets]
    for thread in threads:
        thread.start()
    try:
        yield listener
    finally:
        ending.set()
        for thread in threads:
            thread.join()
        for one in sockets:
            one.close()


def aimed() -> tuple[int, list[str]]:
    """Aim every URL at a listener of ours, over TLS and plain; return how many there were, and what got through."""
    tried, wrong = 0, []
    with listening() as listener:
        for url in INSIDE:
            parsed = parse_webhook(url)
            for tls in (True, False):
                tried += 1
                webhook = Webhook(host=parsed.host, port=listener.port, path=parsed.path, tls=tls)
                try:
                    post(webhook, b"{}", headers={}, seconds=2)
                except (WebhookRefused, WebhookFailed):
                    pass
                else:
                    wrong.append(f"{url} was posted to")
                if listener.came:
                    wrong.append(f"{url} reached the listener: {listener.came}")
                    listener.came.clear()
            try:
                parse_webhook(url.replace("https:", "http:"))
            except ConfigurationError:
                tried += 1
            else:
                wrong.append(f"{url} is taken without TLS")
        for answers in (
            ["8.8.8.8", "127.0.0.1"],
            ["::ffff:127.0.0.1"],
            ["64:ff9b::7f00:1"],
            ["100.64.0.1", "10.0.0.1"],
        ):
            tried += 1
            webhook = Webhook(host="rebound.test", port=listener.port, path="/", tls=False)
            try:
                post(webhook, b"{}", headers={}, seconds=2, resolver=lambda *_, found=answers: found)
            except WebhookRefused:
                continue
            wrong.append(f"a name that means {answers} was posted to")
        wrong += [f"somebody reached the listener: {one}" for one in listener.came]
    return tried, wrong


def redirected() -> tuple[int, list[str]]:
    """Let a peer that is allowed send us on to one that is not; return the tries, and who was asked besides."""
    wrong, tried = [], 0
    with serve() as site:
        for status in (301, 302, 303, 307, 308):
            site.status, before = status, len(site.asked)
            tried += 1
            with suppress(WebhookFailed):
                post(parse_webhook(f"http://127.0.0.1:{site.port}/", private=True), b"{}", headers={})
            if len(site.asked) != before + 1:
                wrong.append(f"{status}: {[path for path, *_ in site.asked[before:]]} were asked")
    return tried, wrong


def rebound() -> tuple[int, list[str]]:
    """A name that means something else at each look is looked up once."""
    looks: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        looks.append(host)
        return ["127.0.0.1"] if len(looks) == 1 else ["10.0.0.1"]

    with serve() as site:
        post(parse_webhook(f"http://rebound.test:{site.port}/", private=True), b"{}", headers={}, resolver=resolver)
    return 1, [] if len(looks) == 1 else [f"looked up {len(looks)} times"]


def allowed() -> int:
    """The control: with private peers allowed, the request arrives."""
    with serve() as site:
        post(parse_webhook(f"http://127.0.0.1:{site.port}/", private=True), b"{}", headers={})
        return len(site.asked)
