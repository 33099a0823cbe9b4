"""Long texts become messages that Telegram accepts, and nothing of them is lost or torn."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from letopis.adapters.telegram_core.splitting import Part, split, units

CHARACTERS = st.sampled_from([*"abcdefgh", "я", "𝒳", "😀", "👩\u200d🚀", "🇷🇺", "e\u0301", "👍🏽"])
WORD = st.lists(CHARACTERS, min_size=1, max_size=30).map("".join)
TEXT = st.lists(st.tuples(WORD, st.sampled_from([" ", "\n", "\n\n", "  "])), min_size=1, max_size=60).map(
    lambda words: "".join(word + gap for word, gap in words)
)
CODE = st.lists(st.text("xyz =()", max_size=40), min_size=1, max_size=12).map(
    lambda lines: "```python\n" + "\n".join(lines) + "\n```"
)
FENCED = st.lists(st.one_of(TEXT, CODE), min_size=1, max_size=6).map("\n".join)
LIMIT = st.integers(64, 200)


def dropped(text: str, parts: list[Part]) -> str:
    """What of a text is in no part."""
    gone, at = "", 0
    for part in parts:
        gone += text[at : part.start]
        at = part.start + len(text[part.start : part.end].rstrip())
    return gone + text[at:]


@given(TEXT, LIMIT)
@settings(max_examples=120, deadline=None)
def test_parts_fit_and_only_white_space_is_dropped_and_no_character_is_torn(text: str, limit: int) -> None:
    parts = split(text, limit=limit)
    for part in parts:
        assert 0 < units(part.text) <= limit
        assert part.text == text[part.start : part.end].rstrip()
        part.text.encode("utf-16")  # a lone surrogate would raise
        assert part.text[0] not in "\u200d\u0301"
        assert not "\U0001f3fb" <= part.text[0] <= "\U0001f3ff"
    assert dropped(text, parts).strip() == ""
    words = text.split()
    if all(units(word) <= limit for word in words):
        assert [word for part in parts for word in part.text.split()] == words


@given(FENCED, LIMIT)
@example("```python\n==================== =\n\n\n\n\n\n=\n==\n====\n=============\n```", 64)
@example(
    "```python\n\n\n\n\n=\n==\n==\n=====\n========\n=========\n==============\n```\n"
    "```python\n==================== =\n\n\n\n\n\n=\n==\n====\n=============\n```",
    64,
)
@settings(max_examples=80, deadline=None)
def test_each_part_closes_the_code_that_it_opens(text: str, limit: int) -> None:
    parts = split(text, limit=limit)
    assert all(units(part.text) <= limit for part in parts)
    for part in parts:
        fences = re.findall(r"^```", part.text, re.MULTILINE)
        assert len(fences) % 2 == 0, part.text
    lines = {line.strip() for line in text.splitlines() if line.strip() and "```" not in line}
    short = {line for line in lines if units(line) < limit - 40 and set(line) <= set("xyz =()")}
    shown = {line.strip() for part in parts for line in part.text.splitlines()}
    assert short <= shown


@given(TEXT, LIMIT, st.data())
@settings(max_examples=80, deadline=None)
def test_entities_follow_their_words(text: str, limit: int, data: st.DataObject) -> None:
    bold, at = [], 0
    for word in re.finditer(r"\S+", text):
        if data.draw(st.booleans()) and word.start() >= at:
            bold.append({"type": "bold", "offset": units(text[: word.start()]), "length": units(word[0])})
            at = word.end()

    words = []
    for part in split(text, bold, limit=limit):
        told = part.text.encode("utf-16-le")
        for one in part.entities:
            begin, end = 2 * one["offset"], 2 * (one["offset"] + one["length"])
            assert 0 <= begin < end <= len(told)
            words.append(told[begin:end].decode("utf-16-le"))

    encoded = text.encode("utf-16-le")
    expected = [encoded[2 * one["offset"] : 2 * (one["offset"] + one["length"])].decode("utf-16-le") for one in bold]
    assert "".join(words) == "".join(expected)
    if all(one["length"] <= limit for one in bold):
        assert words == expected  # none is cut


@pytest.mark.parametrize("fence", ["```", "````", "~~~", "~~~~~~~~"])
def test_code_is_closed_and_opened_again_with_its_own_fence(fence: str) -> None:
    inner = "```" if fence != "```" else "~~~"
    body = "\n".join(f"{number} tea" if number % 5 else inner for number in range(40))
    parts = split(f"{fence}python\n{body}\n{fence}", limit=80)
    assert len(parts) > 3
    for part in parts:
        first, *_, last = part.text.splitlines()
        assert (first, last) == (f"{fence}python", fence)
    assert [line for part in parts for line in part.text.splitlines()[1:-1]] == body.splitlines()


def test_it_is_cut_at_a_paragraph_then_a_line_then_a_word() -> None:
    first, second = "a" * 50, "b" * 40
    assert [part.text for part in split(f"{first}\n\n{second}\n{second}", limit=100)] == [first, f"{second}\n{second}"]
    assert [part.text for part in split(f"{first}\n{second} {second}", limit=100)] == [first, f"{second} {second}"]
    assert [part.text for part in split(f"{first} {second} {second}", limit=100)] == [f"{first} {second}", second]


def test_a_word_longer_than_a_message_is_cut_between_characters() -> None:
    parts = split("👩\u200d🚀" * 40, limit=64)
    assert "".join(part.text for part in parts) == "👩\u200d🚀" * 40
    assert all(part.text.startswith("👩") and part.text.endswith("🚀") for part in parts)


def test_code_keeps_its_indentation_where_it_is_cut() -> None:
    code = "\n".join(f"    indented_line_{number} = {number}" for number in range(20))
    parts = split(f"```\n{code}\n```", limit=120)
    assert all(line.startswith("    ") for part in parts for line in part.text.splitlines() if "```" not in line)


def test_a_short_block_of_code_moves_into_the_next_message_whole() -> None:
    words, code = "word " * 30, "```\nx = 1\ny = 2\n```"
    parts = split(f"{words}\n{code}", limit=160)
    assert code in parts[-1].text


def test_an_entity_longer_than_a_message_goes_on_in_the_next() -> None:
    text = "line of code\n" * 20
    parts = split(text, [{"type": "pre", "offset": 0, "length": len(text), "language": "text"}], limit=100)
    assert len(parts) > 2
    assert all(part.entities[0]["language"] == "text" for part in parts)
    assert all(part.entities[0]["length"] == units(part.text) for part in parts)


def test_nothing_is_nothing_and_a_limit_has_a_floor() -> None:
    assert split("") == split(" \n ") == []
    with pytest.raises(ValueError, match="64"):
        split("text", limit=63)
