"""The console over HTTP: its headers, forms and mounts, each change, and what it says without its store."""

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import letopis.console as web
from letopis.console.headers import HEADERS
from letopis.console.insight import Insight
from letopis.ops.config.settings import load_alerts
from letopis.outbox import History
from letopis.outbox.alerting.channels import AlertFailed
from letopis.outbox.history.exporter import Exporter, RecordSource
from letopis.store import Message
from letopis.store.search import finder
from letopis.store.search.indexer import Indexer
from tests.support.console import ACTIONS, PAGES, TOKEN, TOKENS, Answer, House, ask, sign_in
from tests.support.console_story import plant_blocked, until
from tests.support.daemons import until as wait
from tests.support.fix_command import Done
from tests.support.required import required
from tests.support.servers import PostgresServer
from tests.support.servers.store_pool import migrate
from tests.support.webhook import serve


def channel(name: str, **send: Any) -> Any:
    """A channel that notes what it is given, or refuses it."""
    return SimpleNamespace(name=name, recipient=name, send=AsyncMock(**send))


CHANNELS = (channel("pager"), channel("chat"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("console")
    with House(folder / "bot.outbox.db", relay=False, watch=False, channels=CHANNELS) as running:
        running.run(running.history.append("c1", Message.user("hello"), owner="1"))
        running.run(plant_blocked(running.history, 3))
        yield running


@pytest.fixture
def session(house: House) -> tuple[str, str]:
    """The cookie of a session, and the token of its forms."""
    return sign_in(house.port)


def states(house: House) -> list[str]:
    return [one.state for one in house.run(Insight(house.history).stuck(limit=10))]


def newest(house: House) -> Any:
    return house.run(Insight(house.history).audit(limit=1))[0]


def post(house: House, session: tuple[str, str], path: str, **form: str) -> Answer:
    cookie, token = session
    return ask(house.port, f"/{path}", {"form_token": token, "reason": "asked by the person", **form}, cookie=cookie)


def test_every_answer_has_the_headers(house: House, session: tuple[str, str]) -> None:
    pages = (*PAGES, "nothing", "stuck/nothing", "static/console.css", "static/nothing", "session")
    for page, cookie in [(page, cookie) for page in pages for cookie in ("", session[0])]:
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


def test_an_action_takes_a_session_a_form_of_it_and_a_page_of_ours(house: House, session: tuple[str, str]) -> None:
    cookie, token = session
    form = {"conversation": "many-00", "reason": "x", "subject": "outbox", "event": "x", "form_token": token}
    refused: tuple[tuple[int, dict[str, str], dict[str, str]], ...] = (
        (401, form, {}),
        (401, form, {"cookie": f"{cookie}x"}),
        (403, {**form, "form_token": "x"}, {"cookie": cookie}),
        (403, {}, {"cookie": cookie}),
        *((403, form, {"cookie": cookie, "sec_fetch_site": site}) for site in ("cross-site", "same-site")),
        *((403, form, {"cookie": cookie, "origin": origin}) for origin in ("http://evil.example", "null")),
    )
    before = states(house)
    for path in (*ACTIONS, "session/end"):
        for code, sent, headers in refused:
            assert ask(house.port, f"/{path}", sent, **headers).code == code, (path, headers)
        assert ask(house.port, f"/{path}", cookie=cookie).code in (404, 405)  # a GET changes nothing
    assert states(house) == before

    # The control: a page of ours can.
    headers = {"origin": f"http://127.0.0.1:{house.port}", "sec_fetch_site": "same-origin"}
    assert ask(house.port, "/stuck/retry", {**form, "conversation": "many-02"}, cookie=cookie, **headers).code == 303
    assert len(states(house)) == 2
    entry = newest(house)
    assert (entry.action, entry.actor, entry.via, entry.conversation_id) == ("retry", "Ann", "console", "many-02")


def test_a_form_that_is_none_or_too_large_is_refused(house: House, session: tuple[str, str]) -> None:
    cookie, token = session
    many_fields = {"form_token": token} | {f"a{number}": "" for number in range(3_000)}
    no_form = ask(house.port, "/stuck/retry", {"form_token": token}, cookie=cookie, content_type="application/json")
    many = ask(house.port, "/stuck/retry", many_fields, cookie=cookie)
    nothing = ask(house.port, "/stuck/retry", {"form_token": token}, cookie=cookie)

    assert (no_form.code, many.code, nothing.code) == (400, 400, 400)


def test_the_next_page_is_one_of_the_console_and_the_cookie_for_the_server_alone(house: House) -> None:
    for page in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:1", "stuck"):
        answer = ask(house.port, "/session", {"token": TOKEN, "next": page})
        assert answer.headers["location"] == ("/stuck" if page == "stuck" else "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie


# What an operator changes.


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("desk") / "bot.outbox.db") as running:
        yield running


async def begin(house: House, name: str) -> None:
    """Have a conversation of one question and one answer, in the history store."""
    await house.history.append(name, Message.user("tea?"), Message.assistant("A leaf."), owner="50")
    assert await house.history.drained(20)


def test_a_change_goes_through_the_outbox_and_into_the_audit_log(desk: House) -> None:
    """Each by hand: ``test_console.py``."""
    desk.run(begin(desk, "desk"))
    session, chat = sign_in(desk.port), desk.history.chat("desk")
    forms: tuple[tuple[str, dict[str, str]], ...] = (
        *(("rename", {"title": "  Another title "}), ("archive", {}), ("unarchive", {}), ("delete", {"sure": "1"})),
    )
    found = []
    for name, form in forms:
        done = post(desk, session, f"conversation/{name}", conversation="desk", **form)
        assert done.code == 303, done.text
        entry = newest(desk)
        assert (entry.action, entry.outcome, entry.conversation_id) == (name, "done", "desk")
        assert (entry.actor, entry.via, entry.reason) == ("Ann", "console", "asked by the person")
        assert entry.event_id is not None
        found.append(desk.run(chat.conversation()))
    assert found[0].title == "Another title"
    assert [one.state for one in found[1:]] == ["archived", "active", "deleted"]

    async def reasons() -> list[Any]:
        assert await desk.history.drained(20)
        events = await desk.history.store.events("desk")
        return [event.data.get("reason") for event in events if event.type == "conversation.deleted"]

    assert desk.run(reasons()) == ["asked by the person"]


def test_what_was_deleted_here_or_elsewhere_is_not_changed(desk: House, tmp_path: Path) -> None:
    async def delete_elsewhere() -> None:
        async with History(tmp_path / "other.outbox.db", store=desk.history.store.url) as other:
            assert await (await other.chat("gone").delete()).saved(20)

    session = sign_in(desk.port)
    for name in ("here", "gone"):
        desk.run(begin(desk, name))
    desk.run(delete_elsewhere())
    post(desk, session, "conversation/delete", conversation="here", sure="1")
    desk.run(desk.history.drained(20))
    for name in ("here", "gone"):
        answer = post(desk, session, "conversation/rename", conversation=name, title="Again")
        assert (answer.code, "was deleted" in newest(desk).outcome) == (409, True)
    assert desk.run(desk.history.status()).pending == 0


def test_what_is_incomplete_changes_nothing(desk: House) -> None:
    desk.run(begin(desk, "kept"))
    session, [question, _] = sign_in(desk.port), desk.run(desk.history.messages("kept"))
    before = desk.run(desk.history.chat("kept").events())
    for action, form in (
        ("delete", {}),  # the box is not checked
        ("reset", {}),
        ("redact", {"message": question.id}),
        ("redact", {"message": "none", "sure": "1"}),
        ("rename", {"title": " "}),
        ("archive", {"reason": " "}),
        ("archive", {"conversation": ""}),
        ("rename", {"conversation": "never begun", "title": "A title"}),
    ):
        assert post(desk, session, f"conversation/{action}", **{"conversation": "kept", **form}).code == 400, action
    assert post(desk, session, "conversation/nothing", conversation="kept").code == 404
    assert desk.run(desk.history.chat("kept").events()) == before
    assert desk.run(desk.history.chat("never begun").conversation()) is None


def test_an_export_is_that_of_the_command(desk: House) -> None:
    async def exported() -> bytes:
        await begin(desk, "tea")
        await desk.history.records(conversation="tea").put(("notes",), "1", {"a": 1})
        return b"".join([line async for line in Exporter(desk.history, RecordSource(desk.history)).of_one("tea")])

    session, lines = sign_in(desk.port), desk.run(exported())
    answer = post(desk, session, "conversation/export", conversation="tea")

    assert answer.text.encode() == lines
    assert len(lines.splitlines()) == 3
    assert answer.headers["content-disposition"] == 'attachment; filename="conversation.jsonl"'
    assert (newest(desk).action, newest(desk).conversation_id) == ("export", "tea")
    assert post(desk, session, "conversation/export", conversation="never begun").code == 404


def test_a_test_alert_goes_to_each_channel_and_one_that_refuses_is_named(
    house: House, session: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = post(house, session, "alerts/test")
    assert (answer.code, answer.headers["location"]) == (303, "/stuck?done=test_alert&count=2")
    assert [one.send.await_args.args[0].facts["kind"] for one in CHANNELS] == ["test", "test"]
    assert (newest(house).action, newest(house).outcome) == ("test_alert", "done")

    monkeypatch.setattr(CHANNELS[1].send, "side_effect", AlertFailed("chat", "not_delivered"))
    answer = post(house, session, "alerts/test")
    assert (answer.code, "chat did not take the alert" in answer.text, "pager" in answer.text) == (502, True, False)
    assert "chat did not take the alert" in newest(house).outcome


def test_the_configured_channels_are_used_and_quoted_nowhere(desk: House) -> None:
    with serve() as site:
        session, state = sign_in(desk.port), desk.application.state.console
        unset = post(desk, session, "alerts/test")
        environ = {"LETOPIS_ALERTS": f"http://{site.url}/a-secret", "LETOPIS_LANGUAGE": "ru"}
        state.alerts = partial(load_alerts, {"private": True}, environ=environ)
        taken = post(desk, session, "alerts/test")
        site.status = 500
        refused = post(desk, session, "alerts/test")
        state.alerts = partial(load_alerts, {}, environ=environ)  # without TLS, and not allowed
        wrong = post(desk, session, "alerts/test")
    outcomes = [entry.outcome for entry in desk.run(Insight(desk.history).audit(limit=2))]

    assert [answer.code for answer in (unset, taken, refused, wrong)] == [409, 303, 502, 409]
    assert "LETOPIS_ALERTS" in unset.text
    assert "проверка" in site.alerts[0]["title"].lower()
    assert "did not take the alert" in refused.text
    assert "without TLS" in wrong.text
    assert not [text for text in (refused.text, wrong.text, *outcomes) if "a-secret" in text]


# Where it stands, and what it stands on.


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


async def test_the_history_may_be_open_in_another_loop(house: House) -> None:
    console = web.app(house.history, tokens=TOKENS)
    reading = await console.state.console.pulse.read()

    assert reading.status.pending > 0
    await console.state.console.close()


def test_every_page_answers_while_the_store_is_away(tmp_path: Path) -> None:
    with required("postgresql", PostgresServer.own) as server:
        server.start()
        url = server.create_database()
        with House(tmp_path / "bot.outbox.db", store=url, watch=False, read_timeout=1.0) as house:
            house.run(migrate(url))
            house.run(begin(house, "c1"))
            cookie, _ = sign_in(house.port)
            for page in PAGES:
                assert ask(house.port, f"/{page}", cookie=cookie).code == 200
            server.stop()
            house.run(house.history.append("c1", Message.user("and then"), owner="50"))
            house.run(until(lambda: _noticed(house)))
            for page in PAGES:
                began = time.monotonic()
                answer = ask(house.port, f"/{page}", cookie=cookie)
                assert answer.code == 200, page
                assert time.monotonic() - began < 20, page
                if page.startswith(("statistics", "integrity", "conversation?id=c1")):
                    assert "does not answer" in answer.text
            assert "and then" in ask(house.port, "/conversation?id=c1", cookie=cookie).text
            wait(lambda: "is unreachable" in ask(house.port, "/", cookie=cookie).text, "the outage on the first page")
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
