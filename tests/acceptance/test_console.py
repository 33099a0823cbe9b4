"""The console in a real Chromium: every page and every action, on a phone and on a desk, with and without scripts."""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History, RetryPolicy
from letopis.store import Message
from tests.support.console import AXE, AXE_SHA256, DESK, PHONE, READER, House, Tab
from tests.support.console_story import REFUSED, block, chat, eventful, is_blocked, plant_blocked, refuse, until

PAGES = (
    *("", "?live=off", "stuck", "conversations", "conversations?q=green+tea", "conversations?owner=41"),
    *("conversation?id=tea", "conversation?id=tea&every=1", "conversation?id=tea&version=5"),
    *("conversation?id=tea&print=1", "conversation?id=tea-green", "statistics", "statistics?days=0&owner=42"),
    *("integrity", "audit", "nothing"),
)
TODAY = datetime.now(UTC)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A history with one of everything, and its console; tests that change something use conversations of their own."""
    folder = tmp_path_factory.mktemp("console")
    store = f"sqlite:///{(folder / 'bot.history.db').as_posix()}"
    policy = RetryPolicy(base=0.02, cap=0.02, attempts=1)
    with House(folder / "bot.outbox.db", store=store, policy=policy) as running:
        history = running.history
        running.run(
            chat(history, "coffee", owner="41", title=None, began=TODAY - timedelta(days=2), turns=4, model="s")
        )
        running.run(eventful(history, owner="42", began=TODAY - timedelta(hours=3)))
        running.run(history.drained(20))
        running.run(refuse(store))
        running.run(block(history, ["stuck-1", "stuck-2"], owner="43"))
        running.run(history.drained(5))
        yield running


def test_the_judge_is_the_one_that_is_named() -> None:
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == AXE_SHA256


def test_the_judge_finds_what_is_wrong(browser: Any, house: House) -> None:
    """The control: a picture without a text, and grey on grey."""
    with Tab(browser, house) as tab:
        tab.go("audit")
        added = "<img src='static/icon.svg'><p class='muted'>x"
        tab.page.evaluate(f'document.querySelector("main").insertAdjacentHTML("beforeend", "{added}")')
        tab.page.evaluate("document.documentElement.style.setProperty('--muted', '#ccc')")
        found = " ".join(tab.findings())

    assert "image-alt" in found
    assert "color-contrast" in found


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_no_page_has_a_finding_or_scrolls_sideways(browser: Any, house: House, viewport: dict[str, int]) -> None:
    """Light on the desk and dark on the phone, in one language each; as nobody, as a reader, as an operator."""
    dark = viewport is PHONE
    scheme = {"color_scheme": "dark" if dark else "light", "locale": "ru-RU" if dark else "en-GB"}
    wrong: dict[str, list[str]] = {}
    [entry] = house.run(house.application.state.console.insight.stuck(limit=1))
    event = f"stuck/{entry.event_id}"
    of_strangers, of_readers = ("", "session", "session?once=used"), ("", "stuck", event)
    for user, pages in ((None, of_strangers), (READER, of_readers), ("Ann", (*PAGES, event, "session"))):
        with Tab(browser, house, user=user, viewport=viewport, **scheme) as tab:
            for page in pages:
                tab.go(page)
                tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
                found = tab.findings()
                if tab.sideways() > 0:
                    found.append(f"{tab.sideways()} pixels to the side")
                if found:
                    wrong[f"{page} as {user}"] = found

    assert wrong == {}


def test_the_other_theme_has_no_finding_either(browser: Any, house: House) -> None:
    wrong: dict[str, list[str]] = {}
    with Tab(browser, house, color_scheme="light") as tab:
        for page in ("?theme=dark", "stuck?theme=dark", "conversation?id=tea&every=1", "statistics", "integrity"):
            tab.go(page)
            if found := tab.findings():
                wrong[page] = found
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 28)"

    assert wrong == {}


def test_the_overview_follows_live(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.go()
        assert "2 conversations are blocked" in tab.text()
        before = int(tab.page.inner_text(".tiles div:nth-child(1) dd"))
        house.run(house.history.append("stuck-1", Message.user("one more")))

        tab.page.wait_for_selector(f".tiles div:nth-child(1) dd:text-is('{before + 1}')", timeout=20_000)
        bars = tab.page.locator(".chart .bar").count()
        points = tab.page.get_attribute(".chart .line", "points")
        tab.note()

    assert bars >= 1
    assert points is not None
    assert len(points.split()) == 60


def test_a_conversation_shows_what_became_of_its_messages(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.go("conversation?id=tea")
        plain = tab.text()
        tab.click("text=Show superseded and taken-back messages too")
        everything = tab.text()

        assert "An evening with tea" in plain
        seen = ("edited", "sent", "not sent", "♥", "rating 5", "The content was removed.", "Call of weather", "tea.pdf")
        assert [word for word in seen if word not in plain] == []
        assert "1234" not in everything
        assert "Forget that I asked this." not in plain
        assert "Forget that I asked this." in everything
        assert "taken back" in everything
        tab.click("text=Only green tea")
        assert "from the parent" in tab.text()
        assert "Fork of" in tab.text()


@pytest.mark.slow
def test_an_answer_that_was_overtaken_is_shown_when_asked(browser: Any, house: House, tmp_path: Path) -> None:
    async def tell() -> None:
        history = house.history
        # Another outbox answers while this one cannot deliver: the history store takes one of the two answers.
        await history.append("race", Message.user("Black or green?"), owner="48")
        await until(lambda: delivered(house, "race"))
        seen = await history.messages("race")
        insight = house.application.state.console.insight
        await insight.acting(lambda admin: admin.pause_relay(), by="test", via="python")
        late = await history.append("race", Message.assistant("Green, too late."), after=seen)
        async with History(tmp_path / "other.outbox.db", store=history.store.url) as other:
            there = await other.messages("race")
            assert await (await other.append("race", Message.assistant("Black, in time."), after=there)).saved(20)
        await insight.acting(lambda admin: admin.resume_relay(), by="test", via="python")
        assert await late.superseded(20)

    house.run(tell())
    with Tab(browser, house) as tab:
        tab.go("conversation?id=race")
        plain = tab.text()
        tab.click("text=Show superseded and taken-back messages too")
        shown = tab.page.locator(".bubble.off")
        assert (shown.count(), "Black, in time." in plain, "Black, in time." in tab.text()) == (1, True, True)
        for words in ("Green, too late.", "superseded: another turn came first"):
            assert words not in plain
            assert words in shown.inner_text()
        assert tab.findings() == []
        tab.click("text=Hide superseded and taken-back messages")
        assert "Green, too late." not in tab.text()


def test_the_slider_travels_through_time(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.go("conversation?id=tea")
        slider = tab.page.locator("#version")
        with tab.page.expect_navigation():
            slider.evaluate("(one) => { one.value = 3; one.dispatchEvent(new Event('change', {bubbles: true})) }")
        then = tab.text()
        with tab.page.expect_navigation():
            slider.press("ArrowRight")  # by the keyboard
        later = tab.text()

        assert "This is the past" in then
        assert len(re.findall("Assistant", then)) < len(re.findall("Assistant", later)) + 1
        assert "version=4" in tab.page.url
        tab.click("text=Back to now")
        assert "This is the past" not in tab.text()


def test_a_search_marks_what_it_found(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.go("conversations")
        tab.page.keyboard.press("/")
        tab.page.keyboard.type("infusion")
        with tab.page.expect_navigation():
            tab.page.keyboard.press("Enter")
        assert tab.page.inner_text("mark") == "infusion"
        tab.click(".hits a")
        assert tab.page.locator(".bubble:target").count() == 1
        tab.go("conversations?q=-")
        assert "cannot be searched for" in tab.text()


def test_statistics_count_what_the_history_holds(browser: Any, house: House) -> None:
    house.run(until(lambda: counted(house)))
    with Tab(browser, house) as tab:
        tab.go("statistics?days=0")
        shown = tab.page.inner_text(".tiles")
        text = tab.text()
    figures = house.application.state.console.figures.figures.total()
    kept = house.run(house.history.statistics())

    pending = 4 + 1  # of the blocked conversations, which the history counts too
    assert figures.tokens == kept.tokens
    assert figures.messages <= kept.messages <= figures.messages + pending
    assert f"{figures.messages}" in shown
    for word in ("large", "small", "42", "Time to answer"):
        assert word in text


async def counted(house: House) -> bool:
    return (await house.application.state.console.figures.look()).done


def test_everything_but_live_updates_works_without_scripts(browser: Any, house: House) -> None:
    house.run(block(house.history, ["without-scripts"], owner="44"))
    with Tab(browser, house, scripts=False) as tab:
        tab.sign_in("Bea")
        for page in PAGES:
            tab.go(page)
            assert tab.page.locator("h1").count() == 1
        tab.go("conversation?id=tea")
        tab.page.locator("#version").press("Home")
        tab.click("text=Go there")
        assert "There are no messages here." in tab.text()
        tab.go("stuck?state=blocked")
        lane = tab.page.locator("article", has_text="without-scripts")
        lane.locator("summary", has_text="Skip").click()
        lane.locator("input[name=reason]").fill("no scripts")
        with tab.page.expect_navigation():
            lane.locator("button.danger").click()
        assert "1 event was skipped" in tab.text()
        tab.click("form[action$='session/end'] button")
        assert tab.page.inner_text("h1") == "Sign in"


def test_each_action_does_what_it_says_and_is_recorded(browser: Any, house: House) -> None:
    names = ["act-retry", "act-skip", "act-fix"]
    house.run(block(house.history, names, owner="45"))
    insight = house.application.state.console.insight

    def lane_of(tab: Tab, name: str) -> Any:
        tab.go("stuck?state=blocked")
        return tab.page.locator("article", has=tab.page.get_by_role("link", name=name, exact=True))

    with Tab(browser, house) as tab:
        tab.sign_in("Cleo <b>")
        with tab.page.expect_navigation():
            lane_of(tab, "act-retry").get_by_role("button", name="Retry").click()
        assert "1 conversation is being retried." in tab.text()

        skipped = lane_of(tab, "act-skip")
        skipped.locator("summary", has_text="Skip").click()
        skipped.locator("input[name=reason]").fill("a test")
        with tab.page.expect_navigation():
            skipped.locator("button.danger").click()
        assert "1 event was skipped" in tab.text()
        house.run(until(lambda: delivered(house, "act-skip")))

        with tab.page.expect_navigation():
            lane_of(tab, "act-fix").get_by_role("link", name="Fix", exact=True).click()
        assert REFUSED in tab.page.input_value("textarea")
        tab.page.fill("textarea", "{")
        tab.page.fill("#fix input[name=reason]", "a word is not allowed")
        tab.click("text=Save the correction")
        assert "not JSON" in tab.text()
        assert tab.findings() == []
        [found] = [one for one in house.run(insight.stuck(limit=50)) if one.conversation_id == "act-fix"]
        entry, _ = house.run(insight.event(found.event_id))
        tab.page.fill("textarea", json.dumps({**json.loads(entry.data), "content": "mended"}))
        tab.click("text=Save the correction")
        assert "The event was corrected" in tab.text()
        house.run(until(lambda: delivered(house, "act-fix")))

        with tab.page.expect_download() as download:
            lane_of(tab, "stuck-1").get_by_role("button", name="Export").click()
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
        assert REFUSED in json.loads(lines[0])["data"]["content"]

        tab.go()
        tab.page.click("summary:has-text('Pause delivery')")
        tab.page.fill("input[name=reason]", "a test")
        tab.click("form[action$='relay/pause'] button")
        assert house.run(house.history.status()).relay.pause_reason == "a test"
        tab.click("text=Resume delivery")
        assert house.run(house.history.status()).relay.paused_since is None

        tab.go("audit")
        recorded = tab.page.inner_text("tbody")
        assert tab.page.locator("tbody b").count() == 0
    seen = ("Cleo <b>", "Retry", "Skip", "Fix", "Export", "Pause delivery", "Resume delivery", "Sign-in", "a test")
    assert [word for word in seen if word not in recorded] == []
    texts = [one.text for one in house.run(house.history.messages("act-fix"))]
    assert texts == ["mended", "And an answer that waits behind it."]


async def delivered(house: House, name: str) -> bool:
    found = await house.history.chat(name).conversation()
    return found is not None and found.pending == 0


@pytest.mark.slow
def test_an_event_can_be_put_back(browser: Any, house: House) -> None:
    house.run(block(house.history, ["act-back"], owner="45"))
    insight = house.application.state.console.insight
    [found] = [one for one in house.run(insight.stuck(limit=50)) if one.conversation_id == "act-back"]

    async def worse(admin: Any) -> None:
        data = json.loads((await insight.event(found.event_id))[0].data)
        await admin.fix(found.event_id, {**data, "content": f"{REFUSED}, still"}, reason="a try")

    house.run(insight.acting(worse, by="test", via="python"))
    house.run(until(lambda: is_blocked(house.history, "act-back")))
    with Tab(browser, house, user="Dan") as tab:
        tab.go(f"stuck/{found.event_id}")
        assert "a try" in tab.text()
        tab.page.click("summary:has-text('Put the original back')")
        tab.page.fill("form[action$='restore'] input[name=reason]", "it was right")
        tab.click("form[action$='restore'] button")
        assert "The original event is restored." in tab.text()
        tab.go("audit")
        assert "Put the original back" in tab.page.inner_text("tbody")


def test_a_class_of_faults_is_retried_or_skipped_at_once(browser: Any, tmp_path: Path) -> None:
    with House(tmp_path / "bot.outbox.db", relay=False, watch=False) as house, Tab(browser, house, user="Ann") as tab:
        house.run(plant_blocked(house.history, 30))
        tab.go("stuck")
        assert tab.page.locator("article").count() == 25
        tab.click("text=Next page")
        assert tab.page.locator("article").count() == 5
        tab.go("stuck")
        tab.page.click("summary:has-text('Skip all')")
        tab.page.fill("table input[name=reason]", "all of them")
        tab.click("table button.danger")
        assert "30 events were skipped" in tab.text()
        house.run(plant_blocked(house.history, 30))
        tab.go("stuck")
        tab.click("text=Retry all")
        assert "30 conversations are being retried" in tab.text()
        assert "No conversation is stuck" in tab.text()
        tab.go("audit")
        assert tab.page.locator("tbody tr").count() == 1 + 30 + 1


async def settled(house: House) -> bool:
    return not (await house.history.status()).incidents


def test_events_that_are_missing_are_skipped(browser: Any, tmp_path: Path) -> None:
    async def lose_the_second(history: History, insight: Any) -> None:
        await insight.acting(lambda admin: admin.pause_relay(), by="test", via="python")
        for number in (1, 2, 3):
            await history.append("gap", Message.user(f"message {number}"), owner="49")
        lost = "DELETE FROM letopis_outbox_events WHERE sequence = 3"  # after the one that began it
        await history.outbox.write(lambda connection: connection.exec_driver_sql(lost) and None)
        await insight.acting(lambda admin: admin.resume_relay(), by="test", via="python")
        await until(lambda: is_blocked(history, "gap"))

    with House(tmp_path / "bot.outbox.db") as house, Tab(browser, house, user="Eve") as tab:
        house.run(lose_the_second(house.history, house.application.state.console.insight))
        tab.go("stuck")
        lane = tab.page.locator("article", has=tab.page.get_by_role("link", name="gap", exact=True))
        assert lane.locator("summary", has_text="Skip this event").count() == 0
        lane.locator("summary", has_text="Skip missing events").click()
        lane.locator("input[name=reason]").fill("a disk failed")
        with tab.page.expect_navigation():
            lane.get_by_role("button", name="Skip missing events", exact=True).click()
        assert "1 missing event was skipped." in tab.text()
        house.run(until(lambda: delivered(house, "gap")))
        house.run(until(lambda: settled(house)))
        tab.go("stuck")
        assert "No conversation is stuck" in tab.text()
        tab.go("conversation?id=gap")
        assert "message 3" in tab.text()
        assert "message 2" not in tab.text()
        tab.go("audit")
        recorded = tab.page.locator("tbody tr", has_text="Skip missing events").inner_text()

    for word in ("Eve", "gap", "a disk failed"):
        assert word in recorded, word


def test_checks_run_beside_the_console(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.sign_in()
        for subject in ("outbox", "store"):
            tab.go("integrity")
            tab.click(f"form:has(input[value={subject}]) button")
            assert "The check has started." in tab.text()
        house.run(until(lambda: checked(house), 60))
        tab.go("integrity")
        assert tab.text().count("Nothing is wrong.") == 2, tab.text()
        assert str(house.run(house.history.status()).outbox_id) in tab.text()
        assert "letopis db anchor --out FILE" in tab.text()
        assert "letopis db verify --anchor FILE" in tab.text()


async def checked(house: House) -> bool:
    checks = house.application.state.console.verifier.checks
    return len(checks) == 2 and all(one.ended for one in checks.values())


def test_russian(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.go("?lang=ru")
        assert tab.page.get_attribute("html", "lang") == "ru"
        assert "заблокирован" in tab.text()
        tab.go("stuck")  # the choice is kept
        assert re.findall(r"\b(?:the|conversation|and|with|is)\b", tab.text()) == []


def test_the_keyboard_reaches_everything(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.go("conversations")
        tab.page.keyboard.press("Tab")
        assert tab.page.evaluate("document.activeElement.className") == "skip"
        tab.page.keyboard.press("Enter")
        assert tab.page.evaluate("document.activeElement.id") == "main"
        reached = set()
        for _ in range(40):
            tab.page.keyboard.press("Tab")
            reached.add(tab.page.evaluate("document.activeElement.name || document.activeElement.innerText || ''"))
        assert {"q", "owner", "state", "Search"} <= reached
