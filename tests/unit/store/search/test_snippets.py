"""A snippet is a part of a text on one line that tears nothing a reader sees as one."""

import pytest

from letopis.store.search.query import match, parse
from letopis.store.search.results import MAX_SNIPPET_LENGTH, snippet

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
WAVE = "\U0001f44b\U0001f3fd"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
HYPHENATED = "kino\u00adleh\u00adrer"


def shown(text: str, word: str) -> str:
    found = match(parse(word), text)
    assert found is not None
    return snippet(text, found).text


@pytest.mark.parametrize("whole", [FAMILY, WAVE, ENGLAND, "e\u0301", "\u2764\ufe0f", HYPHENATED, "\u0646\u200c\u0645"])
def test_what_is_invisible_and_joins_stays(whole: str) -> None:
    assert shown(f"{whole} tea\u202e\tgreen\n{whole}", "tea") == f"{whole} tea  green {whole}"


def test_a_mark_covers_a_word_with_soft_hyphens() -> None:
    found = match(parse("kinolehrer"), f"der {HYPHENATED} kommt")
    assert found is not None
    cut = snippet(f"der {HYPHENATED} kommt", found)
    assert [cut.text[start:end] for start, end in cut.marks] == [HYPHENATED]


@pytest.mark.parametrize("one", [FAMILY, WAVE, ENGLAND, "e\u0301"])
@pytest.mark.parametrize("shift", range(7))
def test_it_is_not_cut_inside_what_is_joined(one: str, shift: int) -> None:
    text = "x" * shift + one * 100 + " tea " + one * 100
    cut = shown(text, "tea")
    assert len(cut) <= MAX_SNIPPET_LENGTH + 2
    assert cut.strip("\u2026").replace(one, "").strip("x") == " tea "
