"""The texts of the console: catalogues that are complete and compiled, and numbers as each language writes them."""

from __future__ import annotations

import gettext
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2.ext import babel_extract

from letopis import console
from letopis.console import i18n
from letopis.console.i18n import language, preferred
from letopis.console.words import Words

pytest.importorskip("babel", reason="needs babel: the group pages")

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

FOLDER = Path(console.__file__).parent


def catalogue(code: str) -> Catalog:
    with (i18n.LOCALES / code / "LC_MESSAGES" / f"{i18n.DOMAIN}.po").open("rb") as file:
        return read_po(file, locale=code, abort_invalid=True)


def said() -> Iterator[Any]:
    """Each text in the modules and in the templates."""
    for path in FOLDER.rglob("*.py"):
        for _, text, _, _ in extract_from_file("python", str(path)):
            yield tuple(text[:2]) if isinstance(text, tuple) else text
    for path in (FOLDER / "templates").glob("*.html"):
        with path.open("rb") as file:
            for _, _, given, _ in babel_extract(file, ("_", "ngettext"), [], {}):
                words = tuple(one for one in given if one) if isinstance(given, tuple) else (given,)
                yield words[:2] if len(words) > 1 else words[0]


@pytest.mark.parametrize("code", ["en", "ru"])
def test_every_text_has_a_translation_and_every_translation_a_text(code: str) -> None:
    found = catalogue(code)
    kept = {one.id if isinstance(one.id, str) else tuple(one.id) for one in found if one.id}
    assert kept == set(said())
    assert not found.obsolete
    for one in filter(lambda one: one.id, found):
        assert one.string and all(one.string), one.id
        assert not one.fuzzy and not list(one.check(found)), one.id


def test_no_russian_text_is_left_in_english() -> None:
    assert [one.id for one in catalogue("ru") if one.id and one.id == one.string] == []


@pytest.mark.parametrize("code", ["en", "ru"])
def test_the_compiled_catalogue_is_that_of_the_text_file(code: str) -> None:
    """Run `pybabel compile -d outbox/letopis/console/locales -D letopis_console` after a change."""
    compiled = io.BytesIO()
    write_mo(compiled, catalogue(code))
    compiled.seek(0)
    with (i18n.LOCALES / code / "LC_MESSAGES" / f"{i18n.DOMAIN}.mo").open("rb") as file:
        shipped, fresh = gettext.GNUTranslations(file), gettext.GNUTranslations(compiled)

    def texts(of: gettext.GNUTranslations) -> dict[Any, str]:
        return {key: text for key, text in vars(of)["_catalog"].items() if key}

    assert texts(shipped) == texts(fresh)


@pytest.mark.parametrize(
    ("accepted", "code"),
    [
        ("", "en"),
        ("ru", "ru"),
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("de,en;q=0.5,ru;q=0.7", "ru"),
        ("en-GB,ru;q=0.1", "en"),
        ("de", "en"),
        ("ru;q=x,,;q=1", "en"),
    ],
)
def test_the_language_of_a_browser(accepted: str, code: str) -> None:
    assert preferred(accepted) == code


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
