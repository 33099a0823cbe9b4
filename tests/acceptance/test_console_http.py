"""The console over HTTP: who is let in, what is refused, where it is mounted, and what it says without its store."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import letopis.console as web
from letopis.console.headers import HEADERS
from letopis.outbox import History
from letopis.outbox.history.insight import Insight
from letopis.store import ConversationStore, Message
from letopis.store.errors import ConfigurationError
from tests.support.console import TOKEN, House
from tests.support.console_story import plant_blocked, until
from tests.support.daemons import DaemonProcess, letopis
from tests.support.required import required
from tests.support.servers import PostgresServer

PAGES = (
    "",
    "stuck",
    "conversations",
    "conversations?q=hello",
    "conversation?id=c1",
    "conversation?id=c1&version=1",
    "statistics",
    "integrity",
    "audit",
)
ACTIONS = (
    "stuck/retry",
    "stuck/skip",
    "stuck/skip-missing",
    "stuck/fix",
    "stuck/restore",
    "stuck/pause",
    "stuck/resume",
    "stuck/export",
    "relay/pause",
    "relay/resume",
    "integrity/verify",
    "session/end",
)


@dataclass
class Answer:
    """What the server answered."""

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
    """Send one request, a POST if there is a form."""
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


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("console")
    with House(folder / "bot.outbox.db", relay=False, watch=False) as running:
        running.run(running.history.append("c1", Message.user("hello"), owner="1"))
        running.run(plant_blocked(running.history, 3))
        yield running


@pytest.fixture
def session(house: House) -> tuple[str, str]:
    """The cookie of a session, and the token of its forms."""
    answer = ask(house.port, "/session", {"token": TOKEN, "name": "Ann", "next": ""})
    assert answer.code == 303
    return answer.cookie, ask(house.port, "/stuck", cookie=answer.cookie).form_token


def states(house: House) -> list[str]:
    return [one.state for one in house.run(Insight(house.history).stuck(limit=10))]


def test_every_answer_has_the_headers(house: House) -> None:
    for page in (*PAGES, "nothing", "stuck/nothing", "static/console.css", "static/nothing", "session"):
        answer = ask(house.port, f"/{page}")
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, page
        if "static" not in page:
            assert answer.headers["cache-control"] == "no-store", page


def test_what_is_named_by_its_hash_stays_in_the_cache(house: House) -> None:
    page = ask(house.port, "/").text
    for path in re.findall(r'(?:href|src)="(/static/[^"]+)"', page):
        answer = ask(house.port, path)
        assert answer.code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert ask(house.port, "/static/console.css").headers["cache-control"] == "no-store"
    assert ask(house.port, "/static/..%2f__init__.py").code == 404


def test_a_wrong_token_opens_nothing(house: House) -> None:
    began = time.monotonic()
    answer = ask(house.port, "/session", {"token": "wrong", "name": "Ann"})

    assert answer.code == 403
    assert answer.cookie == ""
    assert "Wrong token." in answer.text
    assert time.monotonic() - began > 0.4  # guessing is slow


def test_many_wrong_tokens_are_refused_without_a_look(tmp_path: Path) -> None:
    with House(tmp_path / "bot.outbox.db", relay=False, watch=False) as house:
        gate = house.application.state.console.gate
        for _ in range(10):
            gate.sign_in("wrong", "")
        assert ask(house.port, "/session", {"token": TOKEN}).code == 429


@pytest.mark.parametrize("path", ACTIONS)
def test_an_action_takes_a_session_a_form_of_it_and_a_page_of_ours(
    house: House, session: tuple[str, str], path: str
) -> None:
    cookie, token = session
    form = {"conversation": "many-00", "reason": "x", "subject": "outbox", "event": "x", "form_token": token}
    before = states(house)

    assert ask(house.port, f"/{path}", form).code == 401
    assert ask(house.port, f"/{path}", form, cookie=f"{cookie}x").code == 401
    assert ask(house.port, f"/{path}", {**form, "form_token": "x"}, cookie=cookie).code == 403
    assert ask(house.port, f"/{path}", {}, cookie=cookie).code == 403
    assert ask(house.port, f"/{path}", form, cookie=cookie, sec_fetch_site="cross-site").code == 403
    assert ask(house.port, f"/{path}", form, cookie=cookie, sec_fetch_site="same-site").code == 403
    assert ask(house.port, f"/{path}", form, cookie=cookie, origin="http://evil.example").code == 403
    assert ask(house.port, f"/{path}", form, cookie=cookie, origin="null").code == 403
    assert ask(house.port, f"/{path}", cookie=cookie).code in (404, 405)  # a GET changes nothing
    assert states(house) == before


def test_what_a_page_of_another_site_cannot_do_one_of_ours_can(house: House, session: tuple[str, str]) -> None:
    """The control of the test above."""
    cookie, token = session
    form = {"conversation": "many-02", "reason": "x", "form_token": token}
    origin = f"http://127.0.0.1:{house.port}"
    answer = ask(house.port, "/stuck/retry", form, cookie=cookie, origin=origin, sec_fetch_site="same-origin")

    assert answer.code == 303
    assert len(states(house)) == 2
    [entry, *_] = house.run(Insight(house.history).audit(limit=1))
    assert (entry.action, entry.actor, entry.via, entry.conversation_id) == ("retry", "Ann", "console", "many-02")


def test_a_form_that_is_none_or_too_large_is_refused(house: House, session: tuple[str, str]) -> None:
    cookie, token = session
    json = ask(house.port, "/stuck/retry", {"form_token": token}, cookie=cookie, content_type="application/json")
    many = ask(house.port, "/stuck/retry", {f"a{number}": "" for number in range(3_000)}, cookie=cookie)
    nothing = ask(house.port, "/stuck/retry", {"form_token": token}, cookie=cookie)

    assert (json.code, many.code, nothing.code) == (400, 400, 400)


@pytest.mark.parametrize("host", ["evil.example", "192.0.2.1", "localhost.evil.example"])
def test_another_name_reads_nothing_without_the_token(house: House, session: tuple[str, str], host: str) -> None:
    """A page of somebody else's may have its own name resolve to this machine."""
    for page in PAGES:
        answer = ask(house.port, f"/{page}", host=host)
        assert answer.code == 401
        assert "bubble" not in answer.text
        assert "c1</a>" not in answer.text
    assert ask(house.port, "/live", host=host).code == 401
    assert ask(house.port, "/stuck", host=host, cookie=session[0]).code == 200


def test_behind_a_proxy_everybody_signs_in(house: House) -> None:
    assert ask(house.port, "/", x_forwarded_for="127.0.0.1").code == 401


def test_without_a_token_it_is_read_only(tmp_path: Path) -> None:
    with House(tmp_path / "bot.outbox.db", token=None, relay=False, watch=False) as house:
        assert ask(house.port, "/").code == 200
        assert "read-only" in ask(house.port, "/session").text
        assert ask(house.port, "/session", {"token": "", "name": ""}).code == 403
        assert ask(house.port, "/stuck/retry", {"all": "1"}).code == 403
        assert ask(house.port, "/", host="evil.example").code == 403


def test_reading_can_take_the_token_here_too(tmp_path: Path) -> None:
    with House(tmp_path / "bot.outbox.db", relay=False, watch=False, console={"open_reading": False}) as house:
        assert ask(house.port, "/").code == 401


def test_the_next_page_is_one_of_the_console(house: House) -> None:
    for page in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "stuck"):
        answer = ask(house.port, "/session", {"token": TOKEN, "name": "", "next": page})
        assert answer.headers["location"] == ("/stuck" if page == "stuck" else "/")


def test_the_cookie_is_for_the_server_alone(house: House) -> None:
    cookie = ask(house.port, "/session", {"token": TOKEN, "name": ""}).headers["set-cookie"].lower()

    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_it_is_mounted_anywhere(tmp_path: Path) -> None:
    def mounted(application: Any) -> Any:
        return Starlette(routes=[Mount("/admin/history", application)])

    with House(tmp_path / "bot.outbox.db", relay=False, watch=False, around=mounted) as house:
        house.run(house.history.append("c1", Message.user("hello"), owner="1"))
        for page in (one for one in PAGES if "version" not in one):  # nothing is delivered, so there is none
            answer = ask(house.port, f"/admin/history/{page}")
            assert answer.code == 200, page
            places = re.findall(r'(?:href|src|action|connect)="([^"#]+)"', answer.text)
            assert places
            assert {one for one in places if not one.startswith("/admin/history/")} == set()
        style = re.search(r'href="([^"]+console\.css[^"]+)"', answer.text)
        assert style is not None
        assert ask(house.port, style[1].replace("&amp;", "&")).code == 200
        signed = ask(house.port, "/admin/history/session", {"token": TOKEN, "name": "", "next": "stuck"})
        assert signed.headers["location"] == "/admin/history/stuck"
        assert "path=/admin/history/" in signed.headers["set-cookie"].lower()


async def test_the_history_may_be_open_in_another_loop(tmp_path: Path) -> None:
    with House(tmp_path / "bot.outbox.db", relay=False, watch=False) as house:
        console = web.app(house.history, token=TOKEN)
        reading = await console.state.console.pulse.read()

        assert reading.status.pending == 0
        await console.state.console.close()


def test_a_short_token_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 16"):
        web.app(History(tmp_path / "bot.outbox.db"), token="short")


def test_every_page_answers_while_the_store_is_away(tmp_path: Path) -> None:
    with required("postgresql", PostgresServer.own) as server:
        server.start()
        url = server.create_database()
        with House(tmp_path / "bot.outbox.db", store=url, watch=False, read_timeout=1.0) as house:
            house.run(_tables(url))
            house.run(house.history.append("c1", Message.user("hello"), Message.assistant("world"), owner="1"))
            assert house.run(house.history.drained(20))
            for page in PAGES:
                assert ask(house.port, f"/{page}").code == 200
            server.stop()
            house.run(house.history.append("c1", Message.user("and then"), owner="1"))
            house.run(until(lambda: _noticed(house)))
            for page in PAGES:
                began = time.monotonic()
                answer = ask(house.port, f"/{page}")
                assert answer.code == 200, page
                assert time.monotonic() - began < 5, page
                if page.startswith(("statistics", "integrity", "conversation?id=c1")):
                    assert "does not answer" in answer.text
            assert "and then" in ask(house.port, "/conversation?id=c1").text
            assert "is unreachable" in ask(house.port, "/").text
            server.start()
            house.run(_again(house, url))
            assert ask(house.port, "/conversation?id=c1&version=1").code == 200
            assert "does not answer" not in ask(house.port, "/integrity").text


async def _tables(url: str) -> None:
    async with ConversationStore.open(url, migrate=True) as store:
        await store.prepare()


async def _again(house: House, url: str) -> None:
    assert await house.history.drained(30)
    await until(lambda: _answers(house))


async def _noticed(house: House) -> bool:
    return not (await house.application.state.console.figures.look()).available


async def _answers(house: House) -> bool:
    return await Insight(house.history).heads() is not None


def test_the_command_serves_it_and_refuses_to_be_open_to_all(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "letopis.outbox.cli"]
    assert letopis("init", folder=tmp_path).returncode == 0
    refused = subprocess.run(
        [*command, "console", "--host", "0.0.0.0", "--port", "0"],  # noqa: S104 - it is refused
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 78
    assert "LETOPIS_CONSOLE_TOKEN" in refused.stderr
    with subprocess.Popen(
        [*command, "console", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            port = int(re.findall(r":(\d+)/", said)[0])
            assert "read-only" in said
            assert ask(port, "/").code == 200
            process.terminate()
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_the_relay_serves_it_beside_its_health(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert letopis("init", "--outbox", f"{name}.outbox.db", folder=tmp_path).returncode == 0
        (tmp_path / "letopis.toml").unlink()
    secret = {"LETOPIS_CONSOLE_TOKEN": TOKEN}
    arguments = ("--outbox", "*.outbox.db", "--listen", "0", "--console")
    with DaemonProcess(*arguments, folder=tmp_path, **secret) as relay:
        port = relay.port()
        assert ask(port, "/healthz/live").code == 200
        listed = ask(port, "/console/").text
        assert re.findall(r'href="([^"]+)"', listed) == ["/console/one.outbox.db/", "/console/two.outbox.db/"]
        assert ask(port, "/console", host="evil.example").code == 404
        answer = ask(port, "/console/two.outbox.db/")
        assert answer.code == 200
        assert "two.outbox.db" in answer.text
        assert 'href="/console/two.outbox.db/stuck"' in answer.text
        assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]
        assert ask(port, "/console/two.outbox.db").headers["location"].endswith("/console/two.outbox.db/")
        assert ask(port, "/console/three.outbox.db/").code == 404
        assert ask(port, "/console/two.outbox.db/", host="evil.example").code == 401
        signed = ask(port, "/console/two.outbox.db/session", {"token": TOKEN, "name": "Ann", "next": ""})
        assert signed.code == 303
        form = {"form_token": ask(port, "/console/two.outbox.db/", cookie=signed.cookie).form_token, "reason": "a test"}
        assert ask(port, "/console/two.outbox.db/relay/pause", form, cookie=signed.cookie).code == 303
    assert "a test" in letopis("status", "--outbox", "two.outbox.db", folder=tmp_path).stdout


def test_the_relay_refuses_a_console_that_is_open_to_all(tmp_path: Path) -> None:
    assert letopis("init", folder=tmp_path).returncode == 0
    without = letopis("relay", "--console", folder=tmp_path)
    open_to_all = letopis("relay", "--console", "--listen", "0.0.0.0:0", folder=tmp_path)

    assert (without.returncode, open_to_all.returncode) == (78, 78)
    assert "--listen" in without.stderr
    assert "LETOPIS_CONSOLE_TOKEN" in open_to_all.stderr
