"""The catalogues of alerts and of the console are complete and compiled."""

import gettext
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2.ext import babel_extract

from letopis import console
from letopis.console import i18n
from letopis.outbox.alerting import alert_message, language, notifications
from letopis.store.database import fault_rules

pytest.importorskip("babel", reason="needs babel: the group pages")

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

CONSOLE = Path(console.__file__).parent
MODULES = {
    language: [Path(module.__file__ or "") for module in (language, alert_message, notifications)],
    i18n: list(CONSOLE.rglob("*.py")),
}
of_each = pytest.mark.parametrize("of", MODULES, ids=["alerts", "console"])
in_each = pytest.mark.parametrize("code", language.LANGUAGES)


def file_of(of: Any, code: str, ending: str) -> Path:
    return Path(of.LOCALES / code / "LC_MESSAGES" / f"{of.DOMAIN}.{ending}")


def catalogue(of: Any, code: str) -> Catalog:
    with file_of(of, code, "po").open("rb") as file:
        return read_po(file, locale=code, abort_invalid=True)


def said(of: Any) -> Iterator[Any]:
    """Each text in the modules and templates, and what the store says of each kind of fault."""
    for path in MODULES[of]:
        for _, text, _, _ in extract_from_file("python", str(path)):
            yield tuple(text[:2]) if isinstance(text, tuple) else text
    if of is language:
        yield from (rule.reason for rule in fault_rules.rules())
        return
    for path in (CONSOLE / "templates").glob("*.html"):
        with path.open("rb") as file:
            for _, _, given, _ in babel_extract(file, ("_", "ngettext"), [], {}):
                words = tuple(one for one in given if one) if isinstance(given, tuple) else (given,)
                yield words[:2] if len(words) > 1 else words[0]


@in_each
@of_each
def test_every_text_has_a_translation_and_every_translation_a_text(of: Any, code: str) -> None:
    found = catalogue(of, code)
    # Those in a context are of codes, which no module says: the tests of codes look for them.
    ids = {one.id if isinstance(one.id, str) else tuple(one.id) for one in found if one.id and not one.context}

    assert ids == set(said(of))
    assert not found.obsolete
    for message in filter(lambda message: message.id, found):
        assert message.string and all(message.string), message.id
        assert not message.fuzzy and not list(message.check(found)), message.id


def test_no_russian_text_of_the_console_is_left_in_english() -> None:
    same = [one.id for one in catalogue(i18n, "ru") if one.id and one.id == one.string]
    assert same == ["Outbox"]  # the term in every language


@in_each
@of_each
def test_the_compiled_catalogue_is_that_of_the_text_file(of: Any, code: str) -> None:
    """Run `pybabel compile -d outbox/letopis/outbox/alerting/locales -D letopis`; CONTRIBUTING.md has the console's."""
    compiled = io.BytesIO()
    write_mo(compiled, catalogue(of, code))
    compiled.seek(0)
    with file_of(of, code, "mo").open("rb") as file:
        shipped, fresh = gettext.GNUTranslations(file), gettext.GNUTranslations(compiled)

    def texts(of: gettext.GNUTranslations) -> dict[Any, str]:
        """Without the header, which names the release of Babel."""
        return {key: text for key, text in vars(of)["_catalog"].items() if key}

    assert shipped.info()["plural-forms"] == fresh.info()["plural-forms"]
    assert texts(shipped) == texts(fresh)
