"""Ask a console over HTTP, as a browser, a script or an attacker does."""

import http.client
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlencode

from tests.support.console import TOKEN

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
