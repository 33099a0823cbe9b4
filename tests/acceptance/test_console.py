"""The console in a real Chromium: every page and every action, on a phone and on a desk, with and without scripts."""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import urlencode

import pytest

from letopis.outbox import History, RetryPolicy
from letopis.store import Message
from tests.support import console_story as story
from tests.support.console import AXE, AXE_SHA256, DESK, PHONE, READER, House, Tab

pytestmark = pytest.mark.slow  # whichever is the first to start a browser is
PAGES = (
    *("", "stuck", "conversations", "conversation?id=tea&every=1", "statistics?days=0&owner=42", "integrity", "audit"),
)
VARIANTS = (
    *("?live=off", "conversations?q=green+tea", "conversation?id=tea&version=5", "conversation?id=tea&print=1"),
    *("conversation?id=tea-green", "nothing", "session"),
)
LOOKS: dict[str, dict[str, Any]] = {
    "phone-dark-ru": {"viewport": PHONE, "color_scheme": "dark", "locale": "ru-RU"},
    "phone-light-en": {"viewport": PHONE, "color_scheme": "light", "locale": "en-GB"},
    "desk-dark-ru": {"viewport": DESK, "color_scheme": "dark", "locale": "ru-RU"},
    "desk-light-en": {"viewport": DESK, "color_scheme": "light", "locale": "en-GB"},
}
LONG = [f"message {number}" for number in range(120)]
TODAY = datetime.now(UTC)
in_each_look = pytest.mark.parametrize("look", LOOKS)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A history with one of everything, and its console; tests that change something use conversations of their own."""
    folder = tmp_path_factory.mktemp("console")
    store = f"sqlite:///{(folder / 'bot.history.db').as_posix()}"
    policy = RetryPolicy(base=0.02, cap=0.02, attempts=1)
    channel = AsyncMock()
    channel.name = channel.recipient = "pager"
    with House(folder / "bot.outbox.db", store=store, policy=policy, channels=[channel]) as running:
        running.run(fill(running.history))
        running.run(story.refuse(store))
        running.run(story.block(running.history, ["stuck-1", "stuck-2"], owner="43"))
        running.run(running.history.drained(5))
        yield running


async def fill(history: History) -> None:
    await story.chat(history, "coffee", owner="41", title=None, began=TODAY - timedelta(days=2), turns=4, model="s")
    await story.eventful(history, owner="42", began=TODAY - timedelta(hours=3))
    await story.hostile(history, owner="66")
    await history.append("long", *map(Message.user, LONG), owner="47")
    await history.chat("long").fork("long-fork", owner="47")
    await history.append("long-fork", *(Message.user(f"forked {number}") for number in range(30)), owner="47")
    for number in range(60):
        await history.start("48", conversation_id=f"list-{number:02}", title=f"Chapter {number}", activate=False)
    assert await history.drained(20)


@pytest.fixture(scope="module")
def reader(browser: Any, house: House) -> Iterator[Tab]:
    """A tab for all tests that look at English pages and change nothing: to open one and sign in takes a second."""
    with Tab(browser, house, locale="en-GB") as tab:
        yield tab


async def delivered(house: House, name: str) -> bool:
    found = await house.history.chat(name).conversation()
    return found is not None and found.pending == 0


def test_the_judge_is_the_one_that_is_named_and_finds_what_is_wrong(browser: Any, house: House) -> None:
    """The control: a picture without a text, and grey on grey."""
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == AXE_SHA256
    with Tab(browser, house) as tab:
        tab.go("audit")
        added = "<img src='static/icon.svg'><p class='muted'>x"
        tab.page.evaluate(f'document.querySelector("main").insertAdjacentHTML("beforeend", "{added}")')
        tab.page.evaluate("document.documentElement.style.setProperty('--muted', '#ccc')")
        found = " ".join(tab.findings())

    assert "image-alt" in found
    assert "color-contrast" in found


@in_each_look
def test_no_page_has_a_finding_or_scrolls_sideways(browser: Any, house: House, look: str) -> None:
    """As an operator, as nobody and as a reader."""
    wrong: dict[str, list[str]] = {}
    [entry] = house.run(house.application.state.console.insight.stuck(limit=1))
    event = f"stuck/{entry.event_id}"
    pages = {"Ann": (*PAGES, event, *VARIANTS), None: ("", "session?once=used"), READER: ("stuck", event)}
    for user, seen in pages.items():
        with Tab(browser, house, user=user, **LOOKS[look]) as tab:
            for page in seen:
                tab.go(page)
                tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
                found = tab.findings()
                if tab.sideways() > 0:
                    found.append(f"{tab.sideways()} pixels to the side")
                if found:
                    wrong[f"{page} as {user}"] = found

    assert wrong == {}


def test_a_theme_that_was_chosen_has_no_finding_either(browser: Any, house: House) -> None:
    with Tab(browser, house, color_scheme="light") as tab:
        for page in ("stuck?theme=dark", "conversation?id=tea&every=1"):
            tab.go(page)
            assert tab.findings() == []
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 28)"


def test_the_overview_follows_live(house: House, reader: Tab) -> None:
    reader.go()
    assert "2 conversations are blocked" in reader.text()
    before = int(reader.page.inner_text(".tiles div:nth-child(1) dd"))
    house.run(house.history.append("stuck-1", Message.user("one more")))

    reader.page.wait_for_selector(f".tiles div:nth-child(1) dd:text-is('{before + 1}')", timeout=20_000)
    assert reader.page.locator(".chart .bar").count() >= 1
    points = reader.page.get_attribute(".chart .line", "points")
    reader.note()

    assert points is not None
    assert len(points.split()) == 60


def test_a_conversation_shows_what_became_of_its_messages(reader: Tab) -> None:
    reader.go("conversation?id=tea")
    plain = reader.text()
    about = reader.page.locator(".bubble.assistant .about").first
    assert about.locator("summary").inner_text() == "Details · 30 tokens · 1.0 s"
    about.locator("summary").click()
    shown = about.inner_text()
    reader.click("text=Show superseded and taken-back messages too")
    everything = reader.text()

    seen = ("edited", "sent", "not sent", "♥", "rating 5", "The content was removed.", "Call of weather", "tea.pdf")
    assert [word for word in ("An evening with tea", *seen) if word not in plain] == []
    figures = ("Event", "Version", "Tokens", "Time to answer", "Occurred", "Saved after", '"model": "large"')
    assert [word for word in figures if word not in shown] == []
    assert "1234" not in everything
    assert "Forget that I asked this." not in plain
    assert "Forget that I asked this." in everything
    assert "taken back" in everything
    reader.click("text=Only green tea")
    assert "from the parent" in reader.text()
    assert "Fork of" in reader.text()


def test_an_answer_that_was_overtaken_is_shown_when_asked(house: House, reader: Tab, tmp_path: Path) -> None:
    async def tell() -> None:
        history = house.history
        # Another outbox answers while this one cannot deliver: the history store takes one of the two answers.
        await history.append("race", Message.user("Black or green?"), owner="50")
        await story.until(lambda: delivered(house, "race"))
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
    reader.go("conversation?id=race")
    plain = reader.text()
    reader.click("text=Show superseded and taken-back messages too")
    shown = reader.page.locator(".bubble.off")
    assert (shown.count(), "Black, in time." in plain, "Black, in time." in reader.text()) == (1, True, True)
    for words in ("Green, too late.", "superseded: another turn came first"):
        assert words not in plain
        assert words in shown.inner_text()
    reader.click("text=Hide superseded and taken-back messages")
    assert "Green, too late." not in reader.text()


def test_the_slider_travels_through_time(reader: Tab) -> None:
    reader.go("conversation?id=tea")
    slider = reader.page.locator("#version")
    with reader.page.expect_navigation():
        slider.evaluate("(one) => { one.value = 3; one.dispatchEvent(new Event('change', {bubbles: true})) }")
    then = reader.text()
    with reader.page.expect_navigation():
        slider.press("ArrowRight")  # by the keyboard

    assert "This is the past" in then
    assert len(re.findall("Assistant", then)) < len(re.findall("Assistant", reader.text())) + 1
    assert "version=4" in reader.page.url
    reader.click("text=Back to now")
    assert "This is the past" not in reader.text()


def test_a_search_marks_what_it_found(reader: Tab) -> None:
    reader.go("conversations")
    reader.page.keyboard.press("/")
    reader.page.keyboard.type("infusion")
    with reader.page.expect_navigation():
        reader.page.keyboard.press("Enter")
    assert reader.page.inner_text("mark") == "infusion"
    reader.click(".hits a")
    assert reader.page.locator(".bubble:target").count() == 1
    reader.go("conversations?q=-")
    assert "cannot be searched for" in reader.text()


def listed(tab: Tab, query: str) -> list[str]:
    """Return the links of the conversations that a search lists."""
    tab.go("conversations")
    tab.page.fill("input[name=q]", query)
    tab.click("form[role=search] button")
    return [str(text) for text in tab.page.locator("main tbody td:first-child a").all_inner_texts()]


def test_a_conversation_is_found_by_id_owner_or_title(reader: Tab) -> None:
    assert listed(reader, "tea") == ["An evening with tea", "Only green tea"]
    assert "newest 1,000 conversations" in reader.text()
    assert listed(reader, "66") == ["<script>window.hacked = 1</script>"]
    assert listed(reader, story.HOSTILE_ID[:9]) == ["<script>window.hacked = 1</script>"]
    assert listed(reader, "EVENING with") == ["An evening with tea"]
    assert "No message contains" in reader.text()
    assert listed(reader, "no such thing") == []
    assert "No conversation matches." in reader.text()
    assert reader.page.evaluate("window.hacked") is None


def test_lists_have_a_page_before(reader: Tab) -> None:
    def shown() -> str:
        return str(reader.page.inner_text("main tbody tr:first-child td:first-child a"))

    reader.go("conversations?owner=48")
    pages = [shown()]
    for _ in range(2):
        reader.click("text=Next page")
        pages.append(shown())
    assert len(set(pages)) == 3
    for page in reversed(pages[:-1]):
        reader.click("text=Previous page")
        assert shown() == page
    assert reader.page.locator("text=Previous page").count() == 0


def test_a_conversation_opens_at_its_end_and_is_paged_both_ways(reader: Tab) -> None:
    def texts() -> list[str]:
        return [str(text) for text in reader.page.locator(".bubble .text").all_inner_texts()]

    def last_is_in_view() -> bool:
        box = reader.page.locator(".bubble").last.bounding_box()
        return bool(box and 0 <= box["y"] < DESK["height"])

    listed(reader, "long")
    reader.page.locator("main tbody a").first.click()
    reader.page.wait_for_selector(".bubble")
    assert last_is_in_view()
    reader.go("conversation?id=long")
    assert last_is_in_view()
    assert "50 of 120 messages" in reader.text()
    pages = [texts()]
    for _ in range(2):
        reader.click("text=Earlier messages")
        assert last_is_in_view()
        pages.append(texts())
    assert reader.page.locator("text=Earlier messages").count() == 0
    assert [text for page in reversed(pages) for text in page] == LONG
    reader.click("text=Later messages")
    assert texts() == LONG[20:70]
    reader.go("conversation?id=long")
    reader.click("text=From the beginning")
    assert texts() == LONG[:50]
    reader.go("conversation?id=long-fork")  # and across the border of a fork
    fork = LONG + [f"forked {number}" for number in range(30)]
    reader.click("text=Earlier messages")
    assert texts() == fork[50:100]
    reader.click("text=Later messages")
    assert texts() == fork[100:]
    assert reader.page.locator("text=Later messages").count() == 0


def test_a_transcript_is_printed_alone(browser: Any, house: House) -> None:
    with Tab(browser, house, locale="en-GB", color_scheme="dark") as tab:
        tab.go("conversation?id=long")
        tab.click("text=Print")
        assert tab.page.locator(".bubble").count() == len(LONG)
        tab.page.evaluate("window.print = () => { window.printed = true }")
        tab.page.click("button[data-print]")
        assert tab.page.evaluate("window.printed") is True
        tab.page.emulate_media(media="print")
        for hidden in (".top", "footer", "button[data-print]"):
            assert not tab.page.locator(hidden).first.is_visible(), hidden
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_hostile_texts_do_nothing(browser: Any, house: House) -> None:
    with Tab(browser, house, user="Cleo <b>", locale="en-GB") as tab:
        told = f"conversation?{urlencode({'id': story.HOSTILE_ID})}"
        searched = ("conversations?q=hacked", "conversations?q=%22%3E%3Cscript%3E&owner=%3Cb%3E")
        for page in ("conversations?owner=66", "statistics?days=0", *searched, told, f"{told}&print=1"):
            tab.go(page)
            tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            tab.page.wait_for_timeout(50)
            assert tab.page.locator(".bubble").count() == (len(story.HOSTILE) + 1 if page.startswith(told) else 0)
            assert tab.page.locator("main script, main b, main .bubble svg, main img").count() == 0
            assert tab.page.evaluate("window.hacked") is None
        assert "<script>window.hacked = 1</script>" in tab.text()
        assert "\\u202e" in tab.text()
        tab.click("text=Back to the conversation")
        assert tab.page.input_value("input[name=title]", strict=True, timeout=1_000) == story.HOSTILE[0]
        tab.page.click(".bubble .about > summary >> nth=0")
        about = tab.page.locator(".about").first
        assert story.HOSTILE[1] in json.loads(about.locator("pre").first.inner_text())["model"]
        about.locator(".ask summary").click()
        about.locator("input[name=reason]").fill(story.HOSTILE[1])
        about.locator("input[name=sure]").check()
        with tab.page.expect_navigation():
            about.locator("button").click()
        assert "The content of the message is erased." in tab.text()
        tab.go("audit")
        assert story.HOSTILE[1] in tab.page.inner_text("tbody tr:first-child")
        assert tab.page.evaluate("window.hacked") is None


def test_statistics_count_what_the_history_holds(house: House, reader: Tab) -> None:
    async def counted() -> bool:
        return (await house.application.state.console.figures.look()).done

    house.run(story.until(counted))
    reader.go("statistics?days=0")
    tiles, text = reader.page.inner_text(".tiles"), reader.text()

    figures = house.application.state.console.figures.figures.total()
    assert f"{figures.messages}" in tiles
    assert figures.tokens == house.run(house.history.statistics()).tokens
    for word in ("large", "small", "42", "Time to answer"):
        assert word in text


def test_everything_but_live_updates_works_without_scripts(browser: Any, house: House) -> None:
    house.run(story.block(house.history, ["without-scripts"], owner="44"))
    with Tab(browser, house, scripts=False) as tab:
        tab.sign_in("Bea")
        for page in (*PAGES, *VARIANTS):
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


def test_a_stuck_event_is_retried_skipped_fixed_put_back_and_exported(browser: Any, house: House) -> None:
    house.run(story.block(house.history, ["act-retry", "act-skip", "act-fix"], owner="45"))
    insight = house.application.state.console.insight

    def lane_of(tab: Tab, name: str) -> Any:
        tab.go("stuck?state=blocked")
        return tab.page.locator("article", has=tab.page.get_by_role("link", name=name, exact=True))

    def fix(tab: Tab, text: str) -> str:
        tab.page.fill("textarea", text)
        tab.page.fill("#fix input[name=reason]", "a word is not allowed")
        tab.click("text=Save the correction")
        return tab.text()

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
        house.run(story.until(lambda: delivered(house, "act-skip")))

        with tab.page.expect_navigation():
            lane_of(tab, "act-fix").get_by_role("link", name="Fix", exact=True).click()
        assert story.REFUSED in tab.page.input_value("textarea")
        assert "not JSON" in fix(tab, "{")
        assert tab.findings() == []
        [found] = [one for one in house.run(insight.stuck(limit=50)) if one.conversation_id == "act-fix"]
        data = json.loads(house.run(insight.event(found.event_id))[0].data)
        assert "The event was corrected" in fix(tab, json.dumps({**data, "content": f"{story.REFUSED}, still"}))
        house.run(story.until(lambda: story.is_blocked(house.history, "act-fix")))
        tab.go(f"stuck/{found.event_id}")
        tab.page.click("summary:has-text('Put the original back')")
        tab.page.fill("form[action$='restore'] input[name=reason]", "it was right")
        tab.click("form[action$='restore'] button")
        assert "The original event is restored." in tab.text()
        house.run(story.until(lambda: story.is_blocked(house.history, "act-fix")))
        tab.go(f"stuck/{found.event_id}")
        assert "The event was corrected" in fix(tab, json.dumps({**data, "content": "mended"}))
        house.run(story.until(lambda: delivered(house, "act-fix")))

        with tab.page.expect_download() as download:
            lane_of(tab, "stuck-1").get_by_role("button", name="Export").click()
        lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
        assert story.REFUSED in json.loads(lines[0])["data"]["content"]

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
    seen = ("Cleo <b>", "Retry", "Skip", "Fix", "Put the original back", "Export", "Pause delivery", "Resume delivery")
    assert [word for word in (*seen, "Sign-in", "a test", "it was right") if word not in recorded] == []
    texts = [one.text for one in house.run(house.history.messages("act-fix"))]
    assert texts == ["mended", "And an answer that waits behind it."]


def test_a_class_of_faults_is_retried_or_skipped_at_once(browser: Any, tmp_path: Path) -> None:
    with House(tmp_path / "bot.outbox.db", relay=False, watch=False) as house, Tab(browser, house, user="Ann") as tab:
        house.run(story.plant_blocked(house.history, 30))
        tab.go("stuck")
        assert tab.page.locator("article").count() == 25
        tab.click("text=Next page")
        assert tab.page.locator("article").count() == 5
        tab.go("stuck")
        tab.page.click("summary:has-text('Skip all')")
        tab.page.fill("table input[name=reason]", "all of them")
        tab.click("table button.danger")
        assert "30 events were skipped" in tab.text()
        house.run(story.plant_blocked(house.history, 30))
        tab.go("stuck")
        tab.click("text=Retry all")
        assert "30 conversations are being retried" in tab.text()
        assert "No conversation is stuck" in tab.text()
        tab.go("audit")
        assert tab.page.locator("tbody tr").count() == 1 + 30 + 1


def test_events_that_are_missing_are_skipped(browser: Any, tmp_path: Path) -> None:
    async def lose_the_second(history: History, insight: Any) -> None:
        await insight.acting(lambda admin: admin.pause_relay(), by="test", via="python")
        await history.append("gap", *(Message.user(f"message {number}") for number in (1, 2, 3)))
        lost = "DELETE FROM letopis_outbox_events WHERE sequence = 3"  # after the one that began it
        await history.outbox.write(lambda connection: connection.exec_driver_sql(lost) and None)
        await insight.acting(lambda admin: admin.resume_relay(), by="test", via="python")
        await story.until(lambda: story.is_blocked(history, "gap"))

    with House(tmp_path / "bot.outbox.db") as house, Tab(browser, house, user="Eve") as tab:
        house.run(lose_the_second(house.history, house.application.state.console.insight))
        tab.go("stuck")
        assert tab.page.locator("summary", has_text="Skip this event").count() == 0
        tab.page.locator("summary", has_text="Skip missing events").click()
        tab.page.locator("article input[name=reason]").fill("a disk failed")
        tab.click("article button.danger")
        assert "1 missing event was skipped." in tab.text()
        house.run(story.until(lambda: delivered(house, "gap")))
        tab.go("conversation?id=gap")
        assert ("message 3" in tab.text(), "message 2" in tab.text()) == (True, False)
        tab.go("audit")
        recorded = tab.page.locator("tbody tr", has_text="Skip missing events").inner_text()

    assert [word for word in ("Eve", "gap", "a disk failed") if word not in recorded] == []


def test_checks_run_beside_the_console(browser: Any, house: House) -> None:
    async def checked() -> bool:
        checks = house.application.state.console.verifier.checks
        return len(checks) == 2 and all(one.ended for one in checks.values())

    with Tab(browser, house) as tab:
        tab.sign_in()
        for subject in ("outbox", "store"):
            tab.go("integrity")
            tab.click(f"form:has(input[value={subject}]) button")
            assert "The check has started." in tab.text()
        house.run(story.until(checked))
        tab.go("integrity")
        assert tab.text().count("Nothing is wrong.") == 2, tab.text()
        assert str(house.run(house.history.status()).outbox_id) in tab.text()


@in_each_look
def test_every_change_of_a_conversation_by_hand(browser: Any, house: House, look: str) -> None:
    name = f"hand-{look}"

    async def begin() -> None:
        await story.chat(house.history, name, owner="50", title=f"Title of {name}", began=TODAY, turns=1, model="large")
        await story.until(lambda: delivered(house, name))

    def submit(action: str, **fields: str) -> None:
        form = tab.page.locator(f"form[action$='conversation/{action}']").first
        tab.page.evaluate(
            "(form) => { for (let n = form; n; n = n.parentElement) n.open = true }", form.element_handle()
        )
        for field, value in {"reason": f"by hand, {action}", **fields}.items():
            form.locator(f"input[name={field}]").fill(value)
        if (box := form.locator("input[type=checkbox]")).count():
            box.check()
        with tab.page.expect_navigation():
            form.locator("button").click()
        assert tab.page.locator(".note.good").count() == 1
        judge()

    def judge() -> None:
        tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert tab.findings() == []
        assert tab.sideways() <= 0

    house.run(begin())
    with Tab(browser, house, user="Ann", **LOOKS[look]) as tab:
        tab.go(f"conversation?id={name}")
        judge()
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
        tab.go("stuck")
        tab.click("form[action$='alerts/test'] button")
        assert tab.page.locator(".note.good").count() == 1
        judge()
        tab.go("audit")
        rows = tab.page.inner_text("tbody")
    for action in ("redact", "rename", "archive", "unarchive", "reset", "delete"):
        assert f"by hand, {action}" in rows


def test_a_reader_finds_and_prints_and_is_offered_no_change(reader: Tab) -> None:
    for page in ("", "integrity", "stuck", "conversation?id=tea&every=1", "conversation?id=tea&version=3"):
        reader.go(page)
        assert reader.page.locator("main form[method=post]").count() == 0, page
        assert "Read-only" in reader.page.inner_text("header")
    reader.go("conversation?id=tea")
    reader.click("text=Print")
    assert "An evening with tea" in reader.text()


def test_russian(browser: Any, house: House) -> None:
    with Tab(browser, house) as tab:
        tab.go("?lang=ru")
        assert tab.page.get_attribute("html", "lang") == "ru"
        assert "заблокирован" in tab.text()
        tab.go("stuck")  # the choice is kept
        assert re.findall(r"\b(?:the|conversation|and|with|is)\b", tab.text()) == []


def test_the_keyboard_reaches_everything(reader: Tab) -> None:
    reader.go("conversations")
    reader.page.keyboard.press("Tab")
    assert reader.page.evaluate("document.activeElement.className") == "skip"
    reader.page.keyboard.press("Enter")
    assert reader.page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(20):
        reader.page.keyboard.press("Tab")
        reached.add(reader.page.evaluate("document.activeElement.name || document.activeElement.innerText || ''"))
    assert {"q", "owner", "state", "Search"} <= reached
