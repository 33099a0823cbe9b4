"""The shapes of charts, the minutes of an hour, plurals and numbers of each language, and what is served."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from letopis.console import rendering
from letopis.console.activity import minute_edges
from letopis.console.assets import FILES, STATIC, content
from letopis.console.charts import HEIGHT, chart, nice_top, some_of
from letopis.console.figures import Tally
from letopis.console.headers import POLICY
from letopis.console.i18n import language, preferred
from letopis.console.pages.statistics import filled
from letopis.console.words import Words


def test_the_scale_ends_at_a_round_number() -> None:
    tops = {0: 4, 4: 4, 5: 6, 10: 10, 11: 20, 60: 60, 61: 80, 999: 1_000, 1_001: 2_000}
    assert {largest: nice_top(largest) for largest in tops} == tops


def test_bars_stand_on_the_ground_and_end_at_their_value() -> None:
    drawn = chart(["a", "b", "c"], [0, 5, 10], [1, 2, 3])
    assert [bar.height for bar in drawn.bars] == [0, HEIGHT / 2, HEIGHT]
    assert all(bar.y + bar.height == HEIGHT for bar in drawn.bars)
    assert drawn.line == "5,90 15,80 25,70"
    assert drawn.width == 30


def test_a_chart_of_nothing_is_drawn_a_small_value_is_seen_and_a_few_labels_are_chosen() -> None:
    drawn = chart([], [])
    assert (drawn.bars, drawn.line, drawn.top) == ((), "", 4)
    assert chart(["a", "b"], [1, 100_000]).bars[0].height >= 1
    assert (some_of("abcdefghij", 4), some_of("ab", 4)) == (("a", "d", "g", "j"), ("a", "b"))


def test_one_day_of_messages_is_one_of_several_bars() -> None:
    assert [day for day, _ in filled({100: Tally()}, None, 100)] == list(range(87, 101))
    assert [day for day, _ in filled({100: Tally()}, 94, 100)] == list(range(94, 101))  # the period is shorter
    assert [day for day, _ in filled({50: Tally()}, None, 100)] == list(range(50, 101))
    assert filled({}, None, 100) == []


def test_what_is_between_backticks_is_code_and_nothing_else_is() -> None:
    shown = rendering._coded("run `letopis <b>doctor`, <b>now</b>")
    assert shown == 'run <code class="mono">letopis &lt;b&gt;doctor</code>, &lt;b&gt;now&lt;/b&gt;'


def test_an_hour_has_sixty_minutes_and_the_last_one_is_now() -> None:
    now = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
    edges = minute_edges(now)
    assert len(edges) == 61
    assert edges[-2] <= now < edges[-1]
    assert {later - earlier for earlier, later in pairwise(edges)} == {timedelta(minutes=1)}


def test_what_is_vendored_is_what_was_published() -> None:
    page = (STATIC / "vendor" / "VENDOR.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| `([\w.-]+\.js)` .*`([0-9a-f]{64})` \|$", page, re.MULTILINE))
    there = {path.name for path in (STATIC / "vendor").glob("*.js")}
    assert set(named) == there
    for name, digest in named.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_nothing_is_served_inline_or_from_elsewhere() -> None:
    assert not re.search(r"unsafe|http", POLICY)
    own = "".join(content(name).decode() for name in FILES if name.startswith("console."))
    assert not re.search(r"https?://|@import|url\(|eval\(|innerHTML", own)
    for path in (STATIC.parent / "templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|hx-on|\|\s*safe\b", text), path.name


def test_the_language_of_a_browser() -> None:
    accepted = {"": "en", "ru-RU,ru;q=0.9,en;q=0.8": "ru", "de,en;q=0.5,ru;q=0.7": "ru", "en-GB,ru;q=0.1": "en"}
    accepted |= {"ru": "ru", "de": "en", "ru;q=x,,;q=1": "en"}
    assert {one: preferred(one) for one in accepted} == accepted


def test_numbers_and_times() -> None:
    english, russian = language("en"), language("ru")
    assert (english.number(1_234_567), russian.number(1_234_567)) == ("1,234,567", "1\u202f234\u202f567")
    assert (english.latency(1.26), russian.latency(1.26)) == ("1.3 s", "1,3 с")
    assert (english.latency(None), english.latency(12.6), english.latency(140)) == ("–", "13 s", "2 minutes")
    assert (english.size(0), english.size(2048), english.size(5 * 1024**2)) == ("0 bytes", "2 kB", "5 MB")


def test_plurals() -> None:
    words = Words(language("ru"))
    one, few, many = (words.done("retry", count).split(" ", 1)[1] for count in (1, 2, 5))
    assert (one, few) == ("разговор доставляется снова.", "разговора доставляются снова.")
    assert many == "разговоров доставляются снова."
    assert words.done("no such action", 1) == ""
    assert words.fault_class("made up") == "made up"
