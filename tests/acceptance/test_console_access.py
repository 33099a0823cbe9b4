"""Who gets into the console: sessions, tokens with names and roles, links, and limits for strangers."""

import asyncio
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from letopis.console.configuration import read_gate
from letopis.console.insight import Insight
from letopis.console.pages import overview
from letopis.ops.daemon import http as daemon_http
from letopis.store import Message
from tests.support.console import ACTIONS, PAGES, READER, TOKEN, House, ask, open_raw, secret_of, sign_in
from tests.support.console_story import plant_blocked
from tests.support.daemons import DaemonProcess
from tests.support.fix_command import Done, append_to

PLAIN_PROXY = {"host": "127.0.0.1:8300", "connection": "close"}
"""What nginx sends for ``proxy_pass http://127.0.0.1:8300;`` and nothing else."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("console")
    with House(folder / "bot.outbox.db", relay=False, watch=False) as running:
        running.run(running.history.append("c1", Message.user("hello, this is private"), owner="1"))
        running.run(plant_blocked(running.history, 3))
        yield running


@pytest.mark.parametrize("headers", [PLAIN_PROXY, {"host": "[::1]:8300", "x_real_ip": "127.0.0.1"}])
def test_no_page_without_a_session(house: House, headers: dict[str, str]) -> None:
    """More senders ask in ``tests/proof/security/console.py``."""
    for page in (*PAGES, "live"):
        answer = ask(house.port, f"/{page}", **headers)
        assert answer.code == 401, page
        assert answer.headers["content-type"].startswith("text/html")
        for shown in ("this is private", "c1</a>", "many-00", "bot.outbox.db"):
            assert shown not in answer.text, page


def test_with_a_session_every_page_is_shown_behind_a_proxy_too(house: House) -> None:
    """The control of the test above."""
    cookie, _ = sign_in(house.port, secret_of(READER))
    for page in (one for one in PAGES if "version" not in one):
        assert ask(house.port, f"/{page}", cookie=cookie, **PLAIN_PROXY).code == 200
    assert "this is private" in ask(house.port, "/conversation?id=c1", cookie=cookie).text


def test_a_reader_reads_and_changes_nothing(house: House) -> None:
    cookie, token = sign_in(house.port, secret_of(READER))
    form = {"conversation": "many-00", "reason": "x", "subject": "outbox", "event": "x", "form_token": token}
    insight = Insight(house.history)
    before = house.run(insight.stuck(limit=10))

    for action in ACTIONS:
        answer = ask(house.port, f"/{action}", form, cookie=cookie)
        assert answer.code == 403
        assert "Readers can change nothing" in answer.text
    assert house.run(insight.stuck(limit=10)) == before
    assert ask(house.port, "/session/end", form, cookie=cookie).code == 303


def test_the_audit_log_names_the_token_and_no_name_that_is_sent(house: House) -> None:
    answer = ask(house.port, "/session", {"token": secret_of("Bea"), "name": "somebody else"})
    token = ask(house.port, "/", cookie=answer.cookie).form_token
    form = {"conversation": "many-01", "name": "somebody else", "form_token": token}
    assert ask(house.port, "/stuck/retry", form, cookie=answer.cookie).code == 303

    retried, signed_in = house.run(Insight(house.history).audit(limit=2))
    assert (signed_in.action, signed_in.actor, signed_in.via) == ("sign_in", "Bea", "console")
    assert (retried.action, retried.actor, retried.via) == ("retry", "Bea", "console")


def test_signing_out_ends_the_session_for_every_copy_of_its_cookie(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "MAX_STREAM_SECONDS", 600.0)
    cookie, token = sign_in(house.port)
    other, _ = sign_in(house.port)
    with open_raw(house.port, f"GET /live HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n\r\n".encode()) as stream:
        assert b" 200 " in stream.recv(100)
        assert ask(house.port, "/session/end", {"form_token": token}, cookie=cookie).code == 303
        assert ask(house.port, "/audit", cookie=cookie).code == 401
        assert ask(house.port, "/stuck/retry", {"all": "1", "form_token": token}, cookie=cookie).code == 401
        assert ask(house.port, "/audit", cookie=other).code == 200
        while stream.recv(65_536):  # the open stream ends too
            pass


def test_a_right_token_passes_beside_wrong_ones(house: House) -> None:
    stopped = threading.Event()

    def guess() -> set[int]:
        codes = set()
        while not stopped.is_set():
            codes.add(ask(house.port, "/session", {"token": "wrong"}).code)
        return codes

    with ThreadPoolExecutor(12) as guessing:
        tries = [guessing.submit(guess) for _ in range(12)]
        try:
            assert all(sign_in(house.port)[0] for _ in range(4))
        finally:
            stopped.set()
        codes = set().union(*(one.result() for one in tries))
    assert 403 in codes
    assert codes <= {403, 429}


def test_a_wrong_token_opens_nothing_and_is_not_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    guess = "a guess of sixteen or more"
    answer = ask(house.port, "/session", {"token": guess})

    assert (answer.code, answer.cookie) == (403, "")
    assert "Wrong token." in answer.text
    assert guess not in answer.text + caplog.text
    assert "a wrong token was given" in caplog.text


@pytest.mark.parametrize(
    ("path", "user", "start", "limit", "code"),
    [
        ("/session", None, "token=", 6 * 1024, 400),
        ("/stuck/fix", None, "data=", 0, 401),
        ("/stuck/fix", READER, "data=", 0, 403),
        ("/stuck/fix", "Ann", "form_token=wrong&data=", 6 * 1024, 403),
        # The control: with its token, a form may be large.
        ("/stuck/fix", "Ann", "form_token={}&data=", 34 * 1024**2, 400),
    ],
)
def test_little_is_read_of_a_form_whose_sender_is_not_known(
    house: House, path: str, user: str | None, start: str, limit: int, code: int
) -> None:
    """It is sent without an end, in chunks; to every path: ``tests/proof/security/console.py``."""
    gate = house.application.state.console.gate
    cookie = gate.sign_in(secret_of(user)) if user else ""
    session = gate.session(cookie)
    large = limit > 1024**2
    form = chain([start.format(session and session.form_token).encode()], repeat(b"x" * (1024**2 if large else 1024)))
    taken: list[bytes] = []
    codes: list[int] = []

    async def receive() -> dict[str, Any]:
        taken.append(next(form))
        return {"type": "http.request", "body": taken[-1], "more_body": True}

    async def send(message: Any) -> None:
        codes.extend([message["status"]] if "status" in message else [])

    headers = {"host": "x", "content-type": "application/x-www-form-urlencoded", "cookie": f"letopis_console={cookie}"}
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path}
    scope |= {"query_string": b"", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    house.run(house.application(scope, receive, send))

    assert codes == [code]
    assert sum(map(len, taken)) <= limit
    assert (sum(map(len, taken)) > 32 * 1024**2) == large


def test_half_sent_requests_end_and_keep_nobody_out(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the command; the relay's is tested in ``tests/unit/ops/daemon/test_http.py``."""
    assert daemon_http.REQUEST_TIMEOUT_SECONDS <= 10
    monkeypatch.setattr(daemon_http, "REQUEST_TIMEOUT_SECONDS", 1.0)
    form = b"POST /session HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n"
    halves = (b"", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ", form + b"content-length: 100\r\n\r\ntoken=")
    kept = [open_raw(house.port, sent) for sent in halves for _ in range(40)]
    try:
        assert sign_in(house.port)[0]
        for connection in kept:
            with suppress(ConnectionError):  # it was aborted
                while connection.recv(1024):
                    pass
    finally:
        for connection in kept:
            connection.close()


# As the relay and the command serve it.


@pytest.fixture
def outbox(elsewhere: None) -> None:
    asyncio.run(append_to("bot.outbox.db", "c1", Message.user("hello")))


@pytest.mark.usefixtures("elsewhere")
def test_the_relay_serves_it_beside_its_health(tmp_path: Path, letopis: Callable[..., Done]) -> None:
    for name in ("one", "two"):
        asyncio.run(append_to(f"{name}.outbox.db", "c1", Message.user("hello")))
    words = f"Ann:operator:{TOKEN} Ray:reader:{secret_of(READER)}"
    arguments = ("--outbox", "*.outbox.db", "--listen", "0", "--console")
    with DaemonProcess(*arguments, folder=tmp_path, LETOPIS_CONSOLE_TOKENS=words) as running:
        port = running.port()
        assert ask(port, "/healthz/live").code == 200
        for path in ("/console", "/console/", "/console/two.outbox.db"):
            assert ask(port, path, **PLAIN_PROXY).code == 307
        for name in ("one", "two"):
            for page in PAGES:
                assert ask(port, f"/console/{name}.outbox.db/{page}", **PLAIN_PROXY).code == 401
        assert ask(port, "/console/three.outbox.db/").code == 404

        root = "/console/two.outbox.db"
        cookie, token = sign_in(port, root=root)
        answer = ask(port, f"{root}/", cookie=cookie)
        assert answer.code == 200
        assert 'href="/console/two.outbox.db/stuck"' in answer.text
        assert "content-security-policy" in answer.headers
        listed = ask(port, "/console/", cookie=cookie).text
        assert re.findall(r'href="([^"]+)"', listed) == ["/console/one.outbox.db/", "/console/two.outbox.db/"]
        assert ask(port, "/console/one.outbox.db/", cookie=cookie).code == 200  # signed in to all
        form = {"form_token": token, "reason": "a test"}
        assert ask(port, f"{root}/relay/pause", form, cookie=cookie).code == 303
        assert ask(port, f"{root}/session/end", form, cookie=cookie).code == 303
        assert ask(port, "/console/one.outbox.db/", cookie=cookie).code == 401
        assert TOKEN not in "".join(running.lines)
    assert "a test" in letopis("status", "--outbox", "two.outbox.db").out


@pytest.mark.usefixtures("outbox")
def test_the_relay_refuses_a_console_that_nobody_could_read(
    letopis: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = letopis("relay", "--console")
    closed = letopis("relay", "--console", "--listen", "0")
    monkeypatch.setenv("LETOPIS_CONSOLE_TOKENS", f"Ann:{TOKEN}")
    wrong = letopis("relay", "--console", "--listen", "0")

    assert (without.code, closed.code, wrong.code) == (78, 78, 78)
    assert "--listen" in without.err
    assert "LETOPIS_CONSOLE_TOKENS" in closed.err
    assert "open_reading = true" in closed.err
    assert TOKEN not in wrong.err


def test_open_reading_reads_and_does_nothing_else(tmp_path: Path) -> None:
    gate = read_gate({"open_reading": True}, None, environ={})
    with House(tmp_path / "bot.outbox.db", gate=gate, relay=False, watch=False) as house:
        assert ask(house.port, "/", host="history.example").code == 200
        assert "no tokens" in ask(house.port, "/session").text
        assert ask(house.port, "/session", {"token": ""}).code == 403
        assert {ask(house.port, f"/{action}", {"all": "1"}).code for action in ACTIONS} == {401}


@pytest.mark.usefixtures("outbox")
def test_the_command_prints_a_link_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "letopis.ops.cli", "console", "--port", "0"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    with process, open(ours, encoding="utf-8") as shown:  # noqa: PTH123  # a descriptor, not a path
        port = int(re.findall(r":(\d+)/", shown.readline())[0])
        assert ask(port, "/").code == 401
        [path] = re.findall(rf"http://127.0.0.1:{port}(/session\?once=\S+)", shown.readline())
        assert ask(port, f"{path}x").code == 403
        first = ask(port, path)
        assert (first.code, first.headers["location"]) == (303, "/")
        assert "Sign-in" in ask(port, "/audit", cookie=first.cookie).text
        again = ask(port, path)
        assert (again.code, again.cookie) == (403, "")
        assert "used already" in again.text and "session/end" not in again.text
        process.terminate()
        assert process.wait(timeout=30) == 0


@pytest.mark.usefixtures("outbox")
@pytest.mark.parametrize("words", [(), ("--host", "0.0.0.0", "--open")], ids=["in a log", "to others"])  # noqa: S104
def test_the_command_refuses_to_be_closed_to_all_or_open_to_others(
    words: tuple[str, ...], letopis: Callable[..., Done]
) -> None:
    done = letopis("console", "--port", "0", *words)

    assert done.code == 78
    assert "LETOPIS_CONSOLE_TOKENS" in done.err
    assert "once=" not in done.err
