"""Serve on this machine: a webhook, which keeps what it is sent, and whatever else a handler does."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Quiet(BaseHTTPRequestHandler):
    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on the loopback for the time of a block; give the host and the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Site:
    """A server that answers with a status, and what was posted to it: path, headers and body of each."""

    url: str = ""
    status: int = 200
    asked: list[tuple[str, dict[str, str], str]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.asked]


@contextmanager
def serve() -> Iterator[Site]:
    """Serve on the loopback; what is posted gets the status, and a redirect leads to /elsewhere."""
    site = Site()

    class Answer(Quiet):
        def do_POST(self) -> None:
            site.asked.append((self.path, dict(self.headers.items()), self.body().decode()))
            self.send_response(200 if self.path == "/elsewhere" else site.status)
            if site.status // 100 == 3:
                self.send_header("Location", f"http://{site.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815  # its name there

    with listening(Answer) as site.url:
        yield site
