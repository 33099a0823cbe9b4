"""Words, queries, matches and snippets: the rules of a search, whichever the store."""

import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.store import InvalidInput
from letopis.store.read.paging import CursorCodec
from letopis.store.search.analysis import GENERATION, Word, scope_code, word_of, word_spans, words
from letopis.store.search.query import Match, match, parse
from letopis.store.search.results import MAX_SNIPPET_LENGTH, SearchPosition, marked_pieces, snippet

# Words of the index: a change to one of these is another generation. Their stems.
HELD = {
    "ответами": "ответ",
    "вопросы": "вопрос",
    "удаление": "удален",
    "answered": "answer",
    "deletion": "delet",
    "running": "run",
    "2024": "2024",
    "b2b": "b2b",
}


def texts(text: str) -> list[str]:
    return [word.exact for word in words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ёжик, ЁЖ и еж!", ["ежик", "еж", "и", "еж"]),
        ("отве́т и и́скра", ["ответ", "и", "искра"]),
        ("Її ўсё", ["її", "ўсе"]),
        ("Café naïve CAFE\u0301", ["cafe", "naive", "cafe"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("со\u00adоб\u200bще\u2060ние", ["сообщение"]),
        ("don't e-mail a.b_c snake_case", ["don", "t", "e", "mail", "a", "b", "c", "snake", "case"]),
        ("5л 3.14 v2", ["5л", "3", "14", "v2"]),
        ("你好吗 ok", ["你", "好", "吗", "ok"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("", []),
    ],
)
def test_a_text_is_taken_apart(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_forms_of_a_word_share_their_stem() -> None:
    for forms in (
        "ответ ответа ответы ответов ответами ответил ответила ответить Ответят",
        "вопрос вопроса вопросы вопросов вопросам ВОПРОСОМ",
        "бот бота боты ботами",
        "answer answers answered answering ANSWER",
        "question questions",
        "delete deleted deleting",
    ):
        found = words(forms)
        assert len({word.stem for word in found}) == len({word.stem_code for word in found}) == 1, forms
        assert len({word.exact_code for word in found}) == len(set(forms.lower().split()))
    # The other half: what is another word stays one.
    assert len({word.stem for word in words("ответ ветер вопрос answer question бот боль")}) == 7


def test_a_stem_is_never_a_single_letter_of_a_word() -> None:
    assert word_of("её").stem == "ее"
    assert word_of("я") == Word("я", "я")


def test_the_words_of_this_generation_are_held() -> None:
    assert GENERATION == 1
    assert {written: word_of(written).stem for written in HELD} == HELD
    assert word_of("ответами").stem_code == "sxmtwsprs5zobg"


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
    apart, together = (unicodedata.normalize(form, written) for form in ("NFD", "NFC"))
    assert texts(apart) == texts(together) == texts(written)
    assert texts(apart.swapcase().casefold()) == texts(written.swapcase().casefold())


def test_threads_do_not_disturb_each_others_stems() -> None:
    wanted = {f"{stem}{end}": stem for stem in ("ответ", "вопрос", "бот", "стол") for end in ("ами", "ах", "ов", "у")}

    def wrong(_: int) -> list[str]:
        word_of.cache_clear()
        return [form for form, stem in wanted.items() if word_of(form).stem != stem]

    with ThreadPoolExecutor(4) as threads:
        assert [form for forms in threads.map(wrong, range(120)) for form in forms] == []


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
        ("e-mails", "an e mail, an E-Mail", ["e", "mail", "E", "Mail"]),
        ("ответ -вопрос", "ответ", ["ответ"]),
        ("ответ -вопрос", "ответ на вопросы", None),
        ('ответ -"вопрос"', "ответ на вопросы", ["ответ"]),
        ('ответ -"на вопрос"', "ответ на вопрос", None),
        ("ответ-вопрос", "ответ, вопрос", ["ответ", "вопрос"]),
        ("--вопрос ответ", "ответ", ["ответ"]),
        ("ответ OR вопрос", "ответ", None),
        ("NEAR(answer)", "near answers", ["near", "answers"]),
        ("ответ*", "ответ", ["ответ"]),
        ("отв*", "ответ", None),
        ('"ответ', "ответы", ["ответы"]),
        ("你好", "说你好吗", ["你", "好"]),
    ],
)
def test_what_a_query_finds(query: str, text: str, expected: list[str] | None) -> None:
    fits = match(parse(query), text)
    assert (None if fits is None else [text[start:end] for start, end in fits.marks]) == expected


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        *((query, "no word") for query in ("", "  !!! ?? * ( ) & | : \\ ' \" ", "🦔", '""')),
        *((query, "must not be there") for query in ("-ответ", '-"a b" -c')),
        *((query, "33 words") for query in ("a " * 33, "a." * 33)),
        *(("x" * 1_001, "1001 characters"), ("ответ " * 2_000, "12000 characters")),
        *((query, "must be text") for query in (None, b"x")),
    ],
)
def test_what_is_no_query_is_refused(query: object, reason: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^query: .*{reason}"):
        parse(query)


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


def matched(query: str, text: str) -> Match:
    fits = match(parse(query), text)
    assert fits is not None
    return fits


def test_exact_words_and_more_of_them_fit_better() -> None:
    texts = ("ответ", "ответы", "ответ ответ", "ответ да", "ответ " + "слово " * 500)
    once, form, twice, beside, among_many = (matched("ответ", text).score for text in texts)
    assert 1 > once > form > 0
    assert 1 > twice > beside > 0
    assert once > among_many > 0


FILL = "слово " * 100
WINDOWED = [
    *("ответ", f"{FILL}ответ", f"ответ {FILL}", f"{FILL}нужный ответ на вопрос {FILL}"),
    f"ответ {FILL}ответ и вопрос {FILL}",
    "x" * 500 + " ответ " + "y" * 500,
    "ответ\nна\tдве\r\nстроки \x1b[31m и \u202e знак",
    "ответ " * 300,
]


@pytest.mark.parametrize("text", WINDOWED)
def test_a_snippet_shows_what_was_found(text: str) -> None:
    shown = snippet(text, matched("ответ", text))
    pieces = marked_pieces(shown.text, shown.marks)
    assert shown.marks and all(shown.text[start:end] == "ответ" for start, end in shown.marks)
    assert len(shown.text) <= MAX_SNIPPET_LENGTH + 2
    assert shown.text.isprintable()
    assert shown.text.startswith("…") == (not text.startswith(shown.text[:5]))
    assert "".join(piece for piece, _ in pieces) == shown.text
    assert [piece for piece, marked in pieces if marked] == ["ответ"] * len(shown.marks)


def test_a_snippet_is_where_most_of_it_is() -> None:
    text = f"ответ {FILL}ответ и вопрос {FILL}"
    shown = snippet(text, matched("ответ вопрос", text))
    assert [shown.text[start:end] for start, end in shown.marks] == ["ответ", "вопрос"]


@given(st.text(max_size=600), st.text(alphabet="aб 你\n", max_size=400), st.integers(1, 300))
def test_a_snippet_of_anything_keeps_its_marks(start: str, end: str, length: int) -> None:
    text = f"{start} ответ {end} вопрос {start}"
    fits = match(parse("ответ вопрос"), text)
    if fits is None:  # beyond the words that are looked at, or glued to a mark
        return
    shown = snippet(text, fits, length=length)
    assert all(word_of(shown.text[a:b]).stem in ("ответ", "вопрос") for a, b in shown.marks)


def test_a_place_comes_back_as_it_was_and_is_short() -> None:
    place = SearchPosition(bounds={0: 50_000, 7: 3}, shown={0: frozenset({1, 49_999, 17}), 7: frozenset({3})})
    many, scattered = (
        SearchPosition(bounds={0: 10**7}, shown={0: frozenset(shown)})
        for shown in (range(0, 10**7, 10_007), (hash((n, "x")) % 10**7 for n in range(1_000)))
    )
    assert SearchPosition.from_cursor(place.cursor) == place
    assert place.count == 4
    assert (len(many.cursor) < 1_000, len(scattered.cursor) < 4_500) == (True, True)


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
