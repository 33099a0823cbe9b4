"""Redirects: an alert goes to the address that the operator wrote, and to no other that an answer names."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from letopis.outbox.alerting.channels import Alert, AlertFailed, open_channels

STATUSES: Final = (301, 302, 303, 307, 308)
_ALERT: Final = Alert(key="proof", title="Letopis", text="a proof")


@dataclass(slots=True)
class Site:
    """A server that answers with a status, and the paths that it was asked for."""

    url: str = ""
    status: int = 200
    asked: list[str] = field(default_factory=list)


@contextmanager
def serve() -> Iterator[Site]:
    """Serve on the loopback; a redirect leads to another path of the same server."""
    site = Site()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            site.asked.append(self.path)
            self.send_response(site.status if self.path == "/hook" else 200)
            if site.status // 100 == 3:
                self.send_header("Location", f"http://{site.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815  # its name there

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    site.url = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def redirected() -> tuple[int, list[str]]:
    """Answer alerts with every redirect; return how many were sent, and which led elsewhere."""
    tried, wrong = 0, []
    with serve() as site:
        for status in STATUSES:
            # An address cannot switch it on either.
            for address in (f"http://{site.url}/hook", f"json://{site.url}/hook?redirect=yes"):
                site.status, before = status, len(site.asked)
                tried += 1
                (channel,) = open_channels([address], private=True)
                with suppress(AlertFailed):
                    asyncio.run(channel.send(_ALERT))
                if site.asked[before:] != ["/hook"]:
                    wrong.append(f"{status}: {site.asked[before:]} were asked")
    return tried, wrong


def followed() -> list[str]:
    """The control: Apprise with its defaults goes where the answer says; return the other paths that were requested."""
    import apprise

    with serve() as site:
        site.status = 307
        channel = apprise.Apprise()
        channel.add(f"json://{site.url}/hook")
        channel.notify(title=_ALERT.title, body=_ALERT.text)
        return [path for path in site.asked if path != "/hook"]
