"""The console over HTTP: its headers, forms and mounts, and what it says without its store."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import letopis.console as web
from letopis.console.headers import HEADERS
from letopis.console.insight import Insight
from letopis.store import Message
from letopis.store.search import finder
from letopis.store.search.indexer import Indexer
from tests.support.console import TOKEN, TOKENS, House
from tests.support.console_client import ACTIONS, PAGES, ask, sign_in
from tests.support.console_story import plant_blocked, until
from tests.support.fix_command import Done
from tests.support.required import required
from tests.support.servers import PostgresServer
from tests.support.servers.store_pool import migrate


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
    return sign_in(house.port)


def states(house: House) -> list[str]:
    return [one.state for one in house.run(Insight(house.history).stuck(limit=10))]


@pytest.mark.parametrize("signed_in", [True, False])
def test_every_answer_has_the_headers(house: House, session: tuple[str, str], signed_in: bool) -> None:
    cookie = session[0] if signed_in else ""
    for page in (*PAGES, "nothing", "stuck/nothing", "static/console.css", "static/nothing", "session"):
        answer = ask(house.port, f"/{page}", cookie=cookie)
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


@pytest.mark.parametrize("path", [*ACTIONS, "session/end"])
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
    many_fields = {"form_token": token} | {f"a{number}": "" for number in range(3_000)}
    no_form = ask(house.port, "/stuck/retry", {"form_token": token}, cookie=cookie, content_type="application/json")
    many = ask(house.port, "/stuck/retry", many_fields, cookie=cookie)
    nothing = ask(house.port, "/stuck/retry", {"form_token": token}, cookie=cookie)

    assert (no_form.code, many.code, nothing.code) == (400, 400, 400)


def test_the_next_page_is_one_of_the_console(house: House) -> None:
    for page in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "stuck"):
        answer = ask(house.port, "/session", {"token": TOKEN, "next": page})
        assert answer.headers["location"] == ("/stuck" if page == "stuck" else "/")


def test_the_cookie_is_for_the_server_alone(house: House) -> None:
    cookie = ask(house.port, "/session", {"token": TOKEN}).headers["set-cookie"].lower()

    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_it_is_mounted_anywhere(tmp_path: Path) -> None:
    def mounted(application: Any) -> Any:
        return Starlette(routes=[Mount("/admin/history", application)])

    with House(tmp_path / "bot.outbox.db", relay=False, watch=False, around=mounted) as house:
        house.run(house.history.append("c1", Message.user("hello"), owner="1"))
        cookie, _ = sign_in(house.port, root="/admin/history")
        for page in (one for one in PAGES if "version" not in one):  # nothing is delivered, so there is none
            answer = ask(house.port, f"/admin/history/{page}", cookie=cookie)
            assert answer.code == 200, page
            places = re.findall(r'(?:href|src|action|connect)="([^"#]+)"', answer.text)
            assert places
            assert {one for one in places if not one.startswith("/admin/history/")} == set()
        style = re.search(r'href="([^"]+console\.css[^"]+)"', answer.text)
        assert style is not None
        assert ask(house.port, style[1].replace("&amp;", "&")).code == 200
        signed = ask(house.port, "/admin/history/session", {"token": TOKEN, "next": "stuck"})
        assert signed.headers["location"] == "/admin/history/stuck"
        assert "path=/admin/history/" in signed.headers["set-cookie"].lower()


async def test_the_history_may_be_open_in_another_loop(tmp_path: Path) -> None:
    with House(tmp_path / "bot.outbox.db", relay=False, watch=False) as house:
        console = web.app(house.history, tokens=TOKENS)
        reading = await console.state.console.pulse.read()

        assert reading.status.pending == 0
        await console.state.console.close()


def test_every_page_answers_while_the_store_is_away(tmp_path: Path) -> None:
    with required("postgresql", PostgresServer.own) as server:
        server.start()
        url = server.create_database()
        with House(tmp_path / "bot.outbox.db", store=url, watch=False, read_timeout=1.0) as house:
            house.run(migrate(url))
            house.run(house.history.append("c1", Message.user("hello"), Message.assistant("world"), owner="1"))
            assert house.run(house.history.drained(20))
            cookie, _ = sign_in(house.port)
            for page in PAGES:
                assert ask(house.port, f"/{page}", cookie=cookie).code == 200
            server.stop()
            house.run(house.history.append("c1", Message.user("and then"), owner="1"))
            house.run(until(lambda: _noticed(house)))
            for page in PAGES:
                began = time.monotonic()
                answer = ask(house.port, f"/{page}", cookie=cookie)
                assert answer.code == 200, page
                assert time.monotonic() - began < 20, page
                if page.startswith(("statistics", "integrity", "conversation?id=c1")):
                    assert "does not answer" in answer.text
            assert "and then" in ask(house.port, "/conversation?id=c1", cookie=cookie).text
            assert "is unreachable" in ask(house.port, "/", cookie=cookie).text
            server.start()
            assert house.run(house.history.drained(30))
            house.run(until(lambda: _answers(house)))
            assert ask(house.port, "/conversation?id=c1&version=1", cookie=cookie).code == 200
            assert "does not answer" not in ask(house.port, "/integrity", cookie=cookie).text


async def _noticed(house: House) -> bool:
    return not (await house.application.state.console.figures.look()).available


async def _answers(house: House) -> bool:
    return await Insight(house.history).heads() is not None


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_a_search_says_that_the_index_is_being_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letopis: Callable[..., Done]
) -> None:
    path = tmp_path / "bot.outbox.db"
    with House(path) as house:
        receipts = [house.run(house.history.append("c", Message.user(f"green tea {number}"))) for number in range(5)]
        assert all(house.run(receipt.saved(timeout=60)) for receipt in receipts)
        monkeypatch.setattr(Indexer, "catch_up", AsyncMock(return_value=0))  # it is busy
        monkeypatch.setattr(finder, "MAX_UNINDEXED_EVENTS", 2)

        page = house.run(house.history.search("tea"))
        shown = ask(house.port, "/conversations?q=tea", cookie=sign_in(house.port)[0]).text
    code, out, err = letopis("history", "search", "tea", "--outbox", str(path), "--json")

    assert (len(page), page.complete, page.unindexed) == (1, False, 4)
    assert "The search index is being built: 4 events were not searched." in shown
    assert "does not answer" not in shown
    assert "green tea 0" in shown.replace("<mark>", "").replace("</mark>", "")
    assert code == 0, err
    assert json.loads(out)["unindexed"] == 4
    assert "the search index is being built: 4 events were not searched" in err
