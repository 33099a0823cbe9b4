"""Words, queries, matches and snippets: the rules of a search, whichever the store."""

from __future__ import annotations

import re
import threading
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.store import InvalidInput
from letopis.store.read.paging import CursorCodec
from letopis.store.search.analysis import GENERATION, Word, scope_code, word_of, word_spans, words
from letopis.store.search.query import Match, Query, match, parse
from letopis.store.search.results import MAX_SNIPPET_LENGTH, SearchPosition, marked_pieces, snippet

# Words of the index: a change to one of these is another generation. Stem and code of the stem.
HELD = {
    "ответами": ("ответ", "sxmtwsprs5zobg"),
    "вопросы": ("вопрос", None),
    "удаление": ("удален", None),
    "answered": ("answer", None),
    "deletion": ("delet", None),
    "running": ("run", None),
    "2024": ("2024", None),
    "b2b": ("b2b", None),
}


def texts(text: str) -> list[str]:
    return [word.exact for word in words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ёжик, ЁЖ и еж!", ["ежик", "еж", "и", "еж"]),
        ("отве́т и и́скра", ["ответ", "и", "искра"]),
        ("йод Йод и\u0306од", ["йод", "йод", "йод"]),
        ("Її ўсё", ["її", "ўсе"]),
        ("Café naïve CAFE\u0301", ["cafe", "naive", "cafe"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ﬁne x² Ⅷ", ["fine", "x2", "viii"]),
        ("со\u00adоб\u200bще\u2060ние", ["сообщение"]),
        ("don't e-mail a.b_c snake_case", ["don", "t", "e", "mail", "a", "b", "c", "snake", "case"]),
        ("5л 3.14 v2", ["5л", "3", "14", "v2"]),
        ("你好吗 ok", ["你", "好", "吗", "ok"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("🦔 !!! ... \t\n", []),
        ("", []),
    ],
)
def test_a_text_is_taken_apart(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_forms_of_a_word_share_their_stem() -> None:
    for forms in (
        ("ответ", "ответа", "ответы", "ответов", "ответами", "ответил", "ответила", "ответить", "Ответят"),
        ("вопрос", "вопроса", "вопросы", "вопросов", "вопросам", "ВОПРОСОМ"),
        ("бот", "бота", "боты", "ботами"),
        ("answer", "answers", "answered", "answering", "ANSWER"),
        ("question", "questions"),
        ("delete", "deleted", "deleting"),
    ):
        assert len({word_of(form).stem for form in forms}) == 1, forms
        assert len({word_of(form).stem_code for form in forms}) == 1
        assert len({word_of(form).exact_code for form in forms}) == len({form.lower() for form in forms})
    # The other half: what is another word stays one.
    assert len({word_of(one).stem for one in ("ответ", "ветер", "вопрос", "answer", "question", "бот", "боль")}) == 7


def test_a_stem_is_never_a_single_letter_of_a_word() -> None:
    assert word_of("её").stem == "ее"
    assert word_of("я") == Word("я", "я")


def test_the_words_of_this_generation_are_held() -> None:
    assert GENERATION == 1
    for written, (stem, code) in HELD.items():
        assert word_of(written).stem == stem
        if code is not None:
            assert word_of(written).stem_code == code


def test_a_code_is_of_letters_and_digits_and_of_one_length() -> None:
    codes = {
        code
        for text in ("ответ", "a" * 5_000, "and", "the", "NEAR", "\ud800", "你")
        for word in words(text) or [Word(text, text)]
        for code in (word.exact_code, word.stem_code)
    } | {scope_code("c", "chat 1"), scope_code("o", "chat 1"), scope_code("o", None), scope_code("o", "")}

    assert all(re.fullmatch("[wsco][a-z2-7]{13}", code) for code in codes)
    assert scope_code("c", "x") != scope_code("o", "x")
    assert word_of("run").exact_code != word_of("run").stem_code


@given(st.text(max_size=200))
def test_places_are_those_of_the_text(text: str) -> None:
    last = 0
    for place in word_spans(text):
        assert last <= place.start < place.end <= len(text)
        assert word_of(text[place.start : place.end]) == place.word
        last = place.end


@given(st.text(alphabet=st.characters(categories=["L", "N", "M"], max_codepoint=0x4FF), min_size=1, max_size=20))
def test_case_and_composition_make_no_difference(written: str) -> None:
    expected = texts(written)

    assert texts(unicodedata.normalize("NFD", written)) == expected
    assert texts(unicodedata.normalize("NFC", written)) == expected
    assert texts(unicodedata.normalize("NFD", written).swapcase().casefold()) == texts(written.swapcase().casefold())


def test_threads_do_not_disturb_each_others_stems() -> None:
    wanted = {f"{stem}{end}": stem for stem in ("ответ", "вопрос", "бот", "стол") for end in ("ами", "ах", "ов", "у")}
    wrong: list[str] = []

    def look() -> None:
        for _ in range(30):
            word_of.cache_clear()
            wrong.extend(form for form, stem in wanted.items() if word_of(form).stem != stem)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def found(query: str, text: str) -> list[str] | None:
    """The words that were found, as they stand in the text."""
    fits = match(parse(query), text)
    return None if fits is None else [text[start:end] for start, end in fits.marks]


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ("ответ", "Мои ответы", ["ответы"]),
        ("ответ вопрос", "на вопросы есть ответ", ["вопросы", "ответ"]),
        ("ответ вопрос", "только ответ", None),
        ('"ответ"', "Мои ответы", None),
        ('"мои ответы"', "Вот Мои, ответы!", ["Мои", "ответы"]),
        ('"ответы мои"', "Вот мои ответы", None),
        ('"мои ответы"', "мои новые ответы", None),
        ("«мои ответы»", "мои новые ответы", None),
        ("“мои ответы”", "мои ответы", ["мои", "ответы"]),
        ("e-mails", "an e mail, an E-Mail", ["e", "mail", "E", "Mail"]),
        ("e-mail", "mail e", None),
        ("ответ -вопрос", "ответ", ["ответ"]),
        ("ответ -вопрос", "ответ на вопросы", None),
        ('ответ -"вопрос"', "ответ на вопросы", ["ответ"]),
        ('ответ -"на вопрос"', "ответ на вопрос", None),
        ("ответ - вопрос", "ответ и вопрос", ["ответ", "вопрос"]),
        ("ответ-вопрос", "ответ, вопрос", ["ответ", "вопрос"]),
        ("--вопрос ответ", "ответ", ["ответ"]),
        ("ответ OR вопрос", "ответ", None),
        ("answer AND question", "answer and question", ["answer", "and", "question"]),
        ("NEAR(answer)", "near answers", ["near", "answers"]),
        ("ответ*", "ответ", ["ответ"]),
        ("отв*", "ответ", None),
        ('ответ "', "ответ", ["ответ"]),
        ('"ответ', "ответы", ["ответы"]),
        ("a a a", "a b", ["a"]),
        ("ежик", "ЁЖИК", ["ЁЖИК"]),
        ("你好", "说你好吗", ["你", "好"]),
        ("你吗", "说你好吗", None),
    ],
)
def test_what_a_query_finds(query: str, text: str, expected: list[str] | None) -> None:
    assert found(query, text) == expected


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "no word"),
        ("  !!! ?? * ( ) & | : \\ ' \" ", "no word"),
        ("🦔", "no word"),
        ('""', "no word"),
        ("-ответ", "must not be there"),
        ('-"a b" -c', "must not be there"),
        ("a " * 33, "33 words"),
        ("a." * 33, "33 words"),
        ("x" * 1_001, "1001 characters"),
        ("ответ " * 2_000, "12000 characters"),
        (None, "must be text"),
        (b"x", "must be text"),
    ],
)
def test_what_is_no_query_is_refused(query: object, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        parse(query)

    assert caught.value.field == "query"


def test_the_bounds_of_a_query_are_inside() -> None:
    assert len(parse("a b " * 16).wanted) == 2
    assert parse("x" * 1_000).wanted[0].words[0].exact == "x" * 1_000


@given(st.text(max_size=80))
def test_anything_that_is_typed_is_a_query_or_is_refused(typed: str) -> None:
    try:
        query = parse(typed)
    except InvalidInput:
        return
    assert query.wanted
    for term in (*query.wanted, *query.excluded):
        assert all(re.fullmatch("[ws][a-z2-7]{13}", code) for code in term.codes)
    if not query.excluded:
        # What was typed has itself what it looks for.
        assert match(query, typed) is not None


def test_exact_words_and_more_of_them_fit_better() -> None:
    def score(text: str) -> float:
        fits = match(parse("ответ"), text)
        assert fits is not None and 0 < fits.score < 1
        return fits.score

    assert score("ответ") > score("ответы")
    assert score("ответ ответ") > score("ответ да")
    assert score("ответ") > score("ответ " + "слово " * 500)


WINDOWED = [
    "ответ",
    "слово " * 100 + "ответ",
    "ответ " + "слово " * 100,
    "слово " * 100 + "нужный ответ на вопрос " + "слово " * 100,
    "ответ " + "слово " * 100 + "ответ и вопрос " + "слово " * 100,
    "x" * 500 + " ответ " + "y" * 500,
    "ответ\nна\tдве\r\nстроки \x1b[31m и \u202e знак",
    "ответ " * 300,
]


@pytest.mark.parametrize("text", WINDOWED)
def test_a_snippet_shows_what_was_found(text: str) -> None:
    fits = match(parse("ответ"), text)
    assert fits is not None
    shown = snippet(text, fits)

    assert shown.marks and all(shown.text[start:end] == "ответ" for start, end in shown.marks)
    assert len(shown.text) <= MAX_SNIPPET_LENGTH + 2
    assert shown.text.isprintable()
    assert shown.text.startswith("…") == (not text.startswith("".join(shown.text[:5])))
    assert "".join(piece for piece, _ in marked_pieces(shown.text, shown.marks)) == shown.text
    assert [piece for piece, marked in marked_pieces(shown.text, shown.marks) if marked] == ["ответ"] * len(shown.marks)


def test_a_snippet_is_where_most_of_it_is() -> None:
    text = "ответ " + "слово " * 100 + "ответ и вопрос " + "слово " * 100
    fits = match(parse("ответ вопрос"), text)
    assert fits is not None

    assert [snippet(text, fits).text[a:b] for a, b in snippet(text, fits).marks] == ["ответ", "вопрос"]


@given(st.text(max_size=600), st.text(alphabet="aб 你\n", max_size=400), st.integers(1, 300))
def test_a_snippet_of_anything_keeps_its_marks(start: str, end: str, length: int) -> None:
    text = f"{start} ответ {end} вопрос {start}"
    fits = match(parse("ответ вопрос"), text)
    if fits is None:  # beyond the words that are looked at, or glued to a mark
        return
    shown = snippet(text, fits, length=length)

    assert all(word_of(shown.text[a:b]).stem in ("ответ", "вопрос") for a, b in shown.marks)


def test_a_match_without_marks_still_shows_something() -> None:
    assert snippet("a" * 500, Match(marks=(), terms=(), score=0.5)).text.endswith("…")


def test_a_place_comes_back_as_it_was() -> None:
    place = SearchPosition(bounds={0: 50_000, 7: 3}, shown={0: frozenset({1, 49_999, 17}), 7: frozenset({3})})

    assert SearchPosition.from_cursor(place.cursor) == place
    assert place.count == 4
    many = SearchPosition(bounds={0: 10**7}, shown={0: frozenset(range(0, 10**7, 10_007))})
    assert len(many.cursor) < 1_000
    scattered = SearchPosition(bounds={0: 10**7}, shown={0: frozenset(hash((n, "x")) % 10**7 for n in range(1_000))})
    assert len(scattered.cursor) < 4_500


HITS = CursorCodec("store-search", "hits")


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", 5, b"x", HITS.encode(None), HITS.encode(), HITS.encode(1, 2), HITS.encode([["a", 1]], []),
     HITS.encode([[0, -1]], []), HITS.encode([[0, 1]], [[0, True]]), HITS.encode([[0, 2**63]], []),
     HITS.encode([[0, 1]], [[0, 2**62, 2**62, 2**62]]), HITS.encode([], [], [])],
)  # fmt: skip
def test_what_is_no_place_is_refused(cursor: object) -> None:
    with pytest.raises(InvalidInput, match="after: must be the `next` of a page of hits"):
        SearchPosition.from_cursor(cursor)


def test_a_query_is_a_value() -> None:
    assert parse("a b") == parse(" a  b ") == Query(parse("a b").wanted)
