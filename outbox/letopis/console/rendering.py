"""Render the templates: one environment, with the reader's language."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any, Final, Protocol
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from letopis.console import assets
from letopis.console.i18n import NAMES, Language
from letopis.console.words import Words
from letopis.store.rules.transcript import clean, one_line

MAX_SHOWN_CHARACTERS: Final = 20_000
"""The most characters shown of one text; a note says that the rest is left out."""


class Viewer(Protocol):
    """The reader of a page."""

    language: Language

    def url(self, page: str, /, **query: Any) -> str:
        """Return the path of a page."""
        ...


def render(template: str, visit: Viewer, context: Mapping[str, Any]) -> str:
    """Render a template. All values are escaped."""
    words = visit.language
    return (
        _environment()
        .get_template(template)
        .render(
            _=words.gettext,
            ngettext=words.ngettext,
            lang=words,
            words=Words(words),
            visit=visit,
            url=visit.url,
            now=datetime.now(UTC),
            asset=_asset(visit.url),
            languages=NAMES,
            release=_version(),
            **context,
        )
    )


def render_list(places: Mapping[str, str]) -> str:
    """Return the page that lists several consoles.

    :param places: their URLs, by outbox name.
    """
    return _environment().get_template("list.html").render(places=places)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("letopis.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        safe_text=_safe_text, safe_line=one_line, path=lambda text: quote(text, safe=""), marked=_marked, coded=_coded
    )
    return environment


def _safe_text(text: str) -> str:
    """Return text with deceptive characters shown as codes, and the end of a very long text left out."""
    return clean(text[:MAX_SHOWN_CHARACTERS]) + ("…" if len(text) > MAX_SHOWN_CHARACTERS else "")


def _marked(text: str, marks: tuple[tuple[int, int], ...]) -> Markup:
    """Return a snippet with the matches in ``<mark>``."""
    parts: list[Markup] = []
    last = 0
    for start, end in sorted(marks):
        if start < last:
            continue
        parts += [escape(one_line_kept(text[last:start])), Markup("<mark>"), escape(one_line_kept(text[start:end]))]
        parts.append(Markup("</mark>"))
        last = end
    parts.append(escape(one_line_kept(text[last:])))
    return Markup("").join(parts)


def _coded(text: str) -> Markup:
    """Return a text with what it has between backticks in ``<code>``."""
    parts = re.split("`([^`]+)`", text)
    code = Markup('<code class="mono">{}</code>')
    return Markup("").join(code.format(part) if index % 2 else escape(part) for index, part in enumerate(parts))


def one_line_kept(text: str) -> str:
    """Return cleaned text on one line, keeping the spaces at its ends."""
    return clean(text).replace("\n", " ")


def _asset(url: Callable[..., str]) -> Callable[[str], str]:
    return lambda name: url(f"static/{name}", v=assets.fingerprint(name))


@cache
def _version() -> str:
    return version("letopis")
