"""An operator's desk: find, change, print and export conversations, and test the alerts."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import urlencode

import pytest

from letopis.console.insight import Insight
from letopis.outbox import History
from letopis.outbox.alerting.channels import AlertFailed
from letopis.outbox.config.settings import load_alerts
from letopis.outbox.transfer.exporter import Exporter, RecordSource
from letopis.store import Message
from tests.support.console import DESK, PHONE, READER, House, Tab
from tests.support.console_client import Answer, ask, sign_in
from tests.support.console_story import HOSTILE, HOSTILE_ID, chat, eventful, hostile
from tests.support.webhook import serve

TODAY = datetime.now(UTC)
PAST_OF_LONG = 120


def loudspeaker(name: str, **send: Any) -> Any:
    """A channel that notes what it is given, or refuses it."""
    return SimpleNamespace(name=name, recipient=name, send=AsyncMock(**send))


CHANNELS = (loudspeaker("pager"), loudspeaker("chat"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("desk")
    with House(folder / "bot.outbox.db", channels=CHANNELS) as running:
        history = running.history
        running.run(eventful(history, owner="42", began=TODAY - timedelta(hours=3)))
        running.run(hostile(history, owner="66"))
        running.run(fill(history))
        running.run(history.drained(20))
        yield running


async def fill(history: History) -> None:
    await history.append("long", *(Message.user(f"message {number}") for number in range(PAST_OF_LONG)), owner="47")
    await history.chat("long").fork("long-fork", owner="47")
    await history.append("long-fork", *(Message.user(f"forked {number}") for number in range(30)), owner="47")
    for number in range(60):
        await history.start("48", conversation_id=f"list-{number:02}", title=f"Chapter {number}", activate=False)


async def begin(house: House, name: str) -> None:
    """Have a conversation of one question and one answer, in the history store."""
    await chat(house.history, name, owner="50", title=f"Title of {name}", began=TODAY, turns=1, model="large")
    assert await house.history.drained(20)


def post(house: House, session: tuple[str, str], path: str, **form: str) -> Answer:
    cookie, token = session
    return ask(house.port, f"/{path}", {"form_token": token, "reason": "asked by the person", **form}, cookie=cookie)


def state_of(house: House, name: str) -> Any:
    return house.run(house.history.chat(name).conversation())


def newest(house: House) -> Any:
    return house.run(Insight(house.history).audit(limit=1))[0]


@pytest.fixture
def session(house: House) -> tuple[str, str]:
    return sign_in(house.port)


# Over HTTP.


def test_each_change_goes_through_the_outbox_and_into_the_audit_log(house: House, session: tuple[str, str]) -> None:
    house.run(begin(house, "desk"))
    answer = house.run(house.history.messages("desk"))[1]

    def change(name: str, **form: str) -> None:
        done = post(house, session, f"conversation/{name}", conversation="desk", **form)
        assert done.code == 303, done.text
        entry = newest(house)
        assert (entry.action, entry.outcome, entry.conversation_id) == (name, "done", "desk")
        assert (entry.actor, entry.via, entry.reason) == ("Ann", "console", "asked by the person")
        assert entry.event_id is not None

    change("redact", message=answer.id, sure="1")
    assert [message.redacted for message in house.run(house.history.messages("desk"))] == [False, True]
    change("rename", title="  Another title ")
    assert state_of(house, "desk").title == "Another title"
    change("archive")
    assert state_of(house, "desk").state == "archived"
    change("unarchive")
    assert state_of(house, "desk").state == "active"
    change("reset", sure="1")
    assert (state_of(house, "desk").message_count, state_of(house, "desk").title) == (0, None)
    change("delete", sure="1")
    assert state_of(house, "desk").state == "deleted"

    async def reasons() -> list[Any]:
        assert await house.history.drained(20)
        events = await house.history.store.events("desk")
        return [event.data.get("reason") for event in events if event.type == "conversation.deleted"]

    assert house.run(reasons()) == ["asked by the person"]
    gone = post(house, session, "conversation/rename", conversation="desk", title="Again")
    assert (gone.code, newest(house).action, "was deleted" in newest(house).outcome) == (409, "rename", True)


def test_what_another_outbox_has_deleted_is_not_changed(house: House, session: tuple[str, str], tmp_path: Path) -> None:
    async def delete_elsewhere() -> None:
        async with History(tmp_path / "other.outbox.db", store=house.history.store.url) as other:
            assert await (await other.chat("gone").delete()).saved(20)

    house.run(begin(house, "gone"))
    house.run(delete_elsewhere())
    answer = post(house, session, "conversation/rename", conversation="gone", title="Again")

    assert (answer.code, "was deleted" in newest(house).outcome) == (409, True)
    assert house.run(house.history.status()).pending == 0


def test_what_is_incomplete_changes_nothing(house: House, session: tuple[str, str]) -> None:
    house.run(begin(house, "kept"))
    [question, _] = house.run(house.history.messages("kept"))
    before = house.run(house.history.chat("kept").events())
    for path, form in (
        ("conversation/delete", {"conversation": "kept"}),  # the box is not checked
        ("conversation/reset", {"conversation": "kept"}),
        ("conversation/redact", {"conversation": "kept", "message": question.id}),
        ("conversation/redact", {"conversation": "kept", "message": "none", "sure": "1"}),
        ("conversation/rename", {"conversation": "kept", "title": " "}),
        ("conversation/archive", {"conversation": "kept", "reason": " "}),
        ("conversation/archive", {"conversation": ""}),
        ("conversation/rename", {"conversation": "never begun", "title": "A title"}),
    ):
        assert post(house, session, path, **form).code == 400, (path, form)
    assert post(house, session, "conversation/nothing", conversation="kept").code == 404
    assert house.run(house.history.chat("kept").events()) == before
    assert house.run(house.history.chat("never begun").conversation()) is None


def test_an_export_is_that_of_the_command(house: House, session: tuple[str, str]) -> None:
    async def exported() -> bytes:
        await house.history.records(conversation="tea").put(("notes",), "1", {"a": 1})
        return b"".join([line async for line in Exporter(house.history, RecordSource(house.history)).of_one("tea")])

    lines = house.run(exported())
    answer = post(house, session, "conversation/export", conversation="tea")

    assert answer.text.encode() == lines
    assert len(lines.splitlines()) > 10
    assert answer.headers["content-disposition"] == 'attachment; filename="conversation.jsonl"'
    assert (newest(house).action, newest(house).conversation_id) == ("export", "tea")
    assert post(house, session, "conversation/export", conversation="never begun").code == 404


def test_a_test_alert_goes_to_each_channel(house: House, session: tuple[str, str]) -> None:
    answer = post(house, session, "alerts/test")

    assert (answer.code, answer.headers["location"]) == (303, "/stuck?done=test_alert&count=2")
    assert [channel.send.await_args.args[0].facts["kind"] for channel in CHANNELS] == ["test", "test"]
    assert (newest(house).action, newest(house).outcome) == ("test_alert", "done")


def test_a_channel_that_refuses_is_named(tmp_path: Path) -> None:
    channels = (loudspeaker("pager"), loudspeaker("chat", side_effect=AlertFailed("chat", "not_delivered")))
    with House(tmp_path / "bot.outbox.db", relay=False, watch=False, channels=channels) as house:
        answer = post(house, sign_in(house.port), "alerts/test")
        entry = newest(house)

    assert (answer.code, "chat did not take the alert" in answer.text, "pager" in answer.text) == (502, True, False)
    assert "chat did not take the alert" in entry.outcome


def test_the_configured_channels_are_used_and_quoted_nowhere(tmp_path: Path) -> None:
    with serve() as site, House(tmp_path / "bot.outbox.db", relay=False, watch=False) as house:
        session, state = sign_in(house.port), house.application.state.console
        unset = post(house, session, "alerts/test")
        environ = {"LETOPIS_ALERTS": f"http://{site.url}/a-secret", "LETOPIS_LANGUAGE": "ru"}
        state.alerts = partial(load_alerts, {"private": True}, environ=environ)
        taken = post(house, session, "alerts/test")
        site.status = 500
        refused = post(house, session, "alerts/test")
        state.alerts = partial(load_alerts, {}, environ=environ)  # without TLS, and not allowed
        wrong = post(house, session, "alerts/test")
        outcomes = [entry.outcome for entry in house.run(Insight(house.history).audit(limit=2))]

    assert [answer.code for answer in (unset, taken, refused, wrong)] == [409, 303, 502, 409]
    assert "LETOPIS_ALERTS" in unset.text
    assert "проверка" in site.alerts[0]["title"].lower()
    assert "did not take the alert" in refused.text
    assert "without TLS" in wrong.text
    assert not [text for text in (refused.text, wrong.text, *outcomes) if "a-secret" in text]


# In a browser.


def listed(tab: Tab, query: str) -> list[str]:
    """Return the links of the conversations that a search lists."""
    tab.go("conversations")
    tab.page.fill("input[name=q]", query)
    tab.click("form[role=search] button")
    return [str(text) for text in tab.page.locator("main tbody td:first-child a").all_inner_texts()]


def test_a_conversation_is_found_by_id_owner_or_title(browser: Any, house: House) -> None:
    with Tab(browser, house, locale="en-GB") as tab:
        assert listed(tab, "tea-green") == ["Only green tea"]
        assert listed(tab, "tea") == ["An evening with tea", "Only green tea"]
        assert "newest 1,000 conversations" in tab.text()
        assert listed(tab, "66") == ["<script>window.hacked = 1</script>"]
        assert listed(tab, HOSTILE_ID[:9]) == ["<script>window.hacked = 1</script>"]
        assert listed(tab, "EVENING with") == ["An evening with tea"]
        assert "No message contains" in tab.text()
        assert listed(tab, "list-5") == [f"Chapter {number}" for number in range(50, 60)]
        assert listed(tab, "no such thing") == []
        assert "No conversation matches." in tab.text()
        assert tab.page.evaluate("window.hacked") is None
        assert tab.findings() == []


def test_lists_have_a_page_before(browser: Any, house: House) -> None:
    def shown() -> str:
        return str(tab.page.inner_text("main tbody tr:first-child td:first-child a"))

    with Tab(browser, house, locale="en-GB") as tab:
        tab.go("conversations?owner=48")
        pages = [shown()]
        for _ in range(2):
            tab.click("text=Next page")
            pages.append(shown())
        assert len(set(pages)) == 3
        for page in reversed(pages[:-1]):
            tab.click("text=Previous page")
            assert shown() == page
        assert tab.page.locator("text=Previous page").count() == 0


def test_a_conversation_opens_at_its_end_and_is_paged_both_ways(browser: Any, house: House) -> None:
    def texts() -> list[str]:
        return [str(text) for text in tab.page.locator(".bubble .text").all_inner_texts()]

    def last_is_in_view() -> bool:
        box = tab.page.locator(".bubble").last.bounding_box()
        return bool(box and 0 <= box["y"] < DESK["height"])

    with Tab(browser, house, locale="en-GB") as tab:
        listed(tab, "long")
        tab.page.locator("main tbody a").first.click()
        tab.page.wait_for_selector(".bubble")
        assert last_is_in_view()
        tab.go("conversation?id=long")
        assert last_is_in_view()
        assert "50 of 120 messages" in tab.text()
        pages = [texts()]
        for _ in range(2):
            tab.click("text=Earlier messages")
            assert last_is_in_view()
            pages.append(texts())
        assert tab.page.locator("text=Earlier messages").count() == 0
        assert [text for page in reversed(pages) for text in page] == [f"message {number}" for number in range(120)]
        tab.click("text=Later messages")
        assert texts() == [f"message {number}" for number in range(20, 70)]
        tab.click("text=Earlier messages")
        assert texts() == [f"message {number}" for number in range(20)]
        tab.go("conversation?id=long")
        tab.click("text=From the beginning")
        assert texts() == [f"message {number}" for number in range(50)]
        tab.go("conversation?id=long&version=100")
        assert len(texts()) == 50
        tab.go("conversation?id=long-fork")  # and across the border of a fork
        fork = [f"message {number}" for number in range(120)] + [f"forked {number}" for number in range(30)]
        tab.click("text=Earlier messages")
        assert texts() == fork[50:100]
        tab.click("text=Later messages")
        assert texts() == fork[100:]
        assert tab.page.locator("text=Later messages").count() == 0


def test_a_message_has_its_figures_in_one_place(browser: Any, house: House) -> None:
    with Tab(browser, house, locale="en-GB") as tab:
        tab.go("conversation?id=tea")
        about = tab.page.locator(".bubble.assistant .about").first
        assert about.locator("summary").inner_text() == "Details · 30 tokens · 1.0 s"
        about.locator("summary").click()
        shown = about.inner_text()
        for word in ("Event", "Version", "Tokens", "Time to answer", "Occurred", "Saved after", '"model": "large"'):
            assert word in shown, word
        assert tab.page.locator(".about form").count() == 0


def test_hostile_texts_do_nothing(browser: Any, house: House) -> None:
    with Tab(browser, house, user="Cleo <b>", locale="en-GB") as tab:
        told = f"conversation?{urlencode({'id': HOSTILE_ID})}"
        searched = ("conversations?q=hacked", "conversations?q=%22%3E%3Cscript%3E&owner=%3Cb%3E")
        for page in ("conversations?owner=66", "statistics?days=0", *searched, told, f"{told}&print=1"):
            tab.go(page)
            tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            tab.page.wait_for_timeout(50)
            assert tab.page.locator(".bubble").count() == (len(HOSTILE) + 1 if page.startswith(told) else 0)
            assert tab.page.locator("main script, main b, main .bubble svg, main img").count() == 0
            assert tab.page.evaluate("window.hacked") is None
        assert "<script>window.hacked = 1</script>" in tab.text()
        assert "\\u202e" in tab.text()
        tab.click("text=Back to the conversation")
        assert tab.page.input_value("input[name=title]", strict=True, timeout=1_000) == HOSTILE[0]
        tab.page.click(".bubble .about > summary >> nth=0")
        about = tab.page.locator(".about").first
        assert HOSTILE[1] in json.loads(about.locator("pre").first.inner_text())["model"]
        about.locator(".ask summary").click()
        about.locator("input[name=reason]").fill(HOSTILE[1])
        about.locator("input[name=sure]").check()
        with tab.page.expect_navigation():
            about.locator("button").click()
        assert "The content of the message is erased." in tab.text()
        tab.go("audit")
        assert HOSTILE[1] in tab.page.inner_text("tbody tr:first-child")
        assert tab.page.evaluate("window.hacked") is None


def test_a_transcript_is_printed_alone(browser: Any, house: House) -> None:
    with Tab(browser, house, locale="en-GB", color_scheme="dark") as tab:
        tab.go("conversation?id=long")
        tab.page.evaluate("window.print = () => { window.printed = true }")
        tab.click("text=Print")
        assert tab.page.locator(".bubble").count() == PAST_OF_LONG
        tab.page.evaluate("window.print = () => { window.printed = true }")
        tab.page.click("button[data-print]")
        assert tab.page.evaluate("window.printed") is True
        tab.page.emulate_media(media="print")
        for hidden in (".top", "footer", "button[data-print]"):
            assert not tab.page.locator(hidden).first.is_visible(), hidden
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


LOOKS: dict[str, dict[str, Any]] = {
    "light-en": {"viewport": DESK, "color_scheme": "light", "locale": "en-GB"},
    "dark-ru": {"viewport": DESK, "color_scheme": "dark", "locale": "ru-RU"},
    "phone-en": {"viewport": PHONE, "color_scheme": "dark", "locale": "en-GB"},
    "phone-ru": {"viewport": PHONE, "color_scheme": "light", "locale": "ru-RU"},
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_action_by_hand_in_every_look(browser: Any, house: House, look: str) -> None:
    name = f"hand-{look}"
    house.run(begin(house, name))

    def submit(action: str, **fields: str) -> None:
        form = tab.page.locator(f"form[action$='conversation/{action}']").first
        tab.page.evaluate(
            "(form) => { for (let n = form; n; n = n.parentElement) n.open = true }", form.element_handle()
        )
        for field, value in {"reason": f"by hand, {action}", **fields}.items():
            form.locator(f"input[name={field}]").fill(value)
        if (box := form.locator("input[type=checkbox]")).count():
            box.check()
        judge()  # also of the page that the form before has led to
        with tab.page.expect_navigation():
            form.locator("button").click()
        assert tab.page.locator(".note.good").count() == 1

    def judge() -> None:
        assert tab.findings() == []
        assert tab.sideways() <= 0

    with Tab(browser, house, user="Ann", **LOOKS[look]) as tab:
        tab.go(f"conversation?id={name}")
        submit("redact")
        assert sum(message.redacted for message in house.run(house.history.messages(name))) == 1
        with tab.page.expect_download():
            tab.page.click("form[action$='conversation/export'] button")
        submit("rename", title=f"<b>{look}</b>")
        assert f"<b>{look}</b>" in tab.page.inner_text("h1")
        submit("archive")
        submit("unarchive")
        submit("reset")
        assert tab.page.locator(".bubble").count() == 0
        submit("delete")
        judge()
        tab.go("stuck")
        tab.click("form[action$='alerts/test'] button")
        judge()
        tab.go("audit")
        judge()
        rows = tab.page.inner_text("tbody")
    assert state_of(house, name).state == "deleted"
    for action in ("redact", "rename", "archive", "unarchive", "reset", "delete"):
        assert f"by hand, {action}" in rows


def test_a_reader_finds_and_prints_and_is_offered_no_change(browser: Any, house: House) -> None:
    with Tab(browser, house, user=READER, locale="en-GB") as tab:
        for page in ("", "integrity", "stuck", "conversation?id=tea&every=1", "conversation?id=tea&version=3"):
            tab.go(page)
            assert tab.page.locator("main form[method=post]").count() == 0, page
            assert "Read-only" in tab.page.inner_text("header")
        tab.go("conversation?id=tea")
        tab.click("text=Print")
        assert "An evening with tea" in tab.text()
