"""The shapes of charts, the minutes of an hour, and what is vendored."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from letopis.console import rendering
from letopis.console.activity import minute_edges
from letopis.console.assets import FILES, STATIC, content
from letopis.console.charts import HEIGHT, chart, nice_top, some_of
from letopis.console.figures import Tally
from letopis.console.headers import POLICY
from letopis.console.pages.statistics import filled


@pytest.mark.parametrize(
    ("largest", "top"),
    [(0, 4), (3, 4), (4, 4), (5, 6), (10, 10), (11, 20), (60, 60), (61, 80), (999, 1_000), (1_001, 2_000)],
)
def test_the_scale_ends_at_a_round_number(largest: float, top: float) -> None:
    assert nice_top(largest) == top


def test_bars_stand_on_the_ground_and_end_at_their_value() -> None:
    drawn = chart(["a", "b", "c"], [0, 5, 10], [1, 2, 3])
    assert [bar.height for bar in drawn.bars] == [0, HEIGHT / 2, HEIGHT]
    assert all(bar.y + bar.height == HEIGHT for bar in drawn.bars)
    assert drawn.line == "5,90 15,80 25,70"
    assert drawn.width == 30


def test_a_chart_of_nothing_is_drawn_and_a_small_value_is_seen() -> None:
    drawn = chart([], [])
    assert (drawn.bars, drawn.line, drawn.top) == ((), "", 4)
    assert chart(["a", "b"], [1, 100_000]).bars[0].height >= 1


def test_a_few_labels_are_chosen() -> None:
    assert some_of("abcdefghij", 4) == ("a", "d", "g", "j")
    assert some_of("ab", 4) == ("a", "b")


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
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    own = "".join(content(name).decode() for name in FILES if name.startswith("console."))
    assert not re.search(r"https?://|@import|url\(|eval\(|innerHTML", own)


def test_no_template_has_script_or_style_in_it() -> None:
    for path in (STATIC.parent / "templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|hx-on|\|\s*safe\b", text), path.name
