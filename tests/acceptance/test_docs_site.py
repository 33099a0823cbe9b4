"""The built documentation, looked at as a reader does: in a browser, on a phone and on a desk, light and dark."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

from letopis.outbox import BlockingHistory, History
from letopis.store import ConversationStore
from tests.support.child import ran
from tests.support.console import AXE
from tests.support.paths import ROOT

WIDTHS = (390, 1280)
"""A phone and a desk, in CSS pixels."""
SAMPLE = (
    "index.html",
    "tutorial/first-bot.html",
    "howto/index.html",
    "reference/history.html",
    "reference/cli.html",
    "explanation/alternatives.html",
)
"""One of each kind: what is right about these is the theme's and the style sheet's."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # whichever is the first builds it and starts a browser

_ID = re.compile(r"""\sid="([^"]+)\"""")
_LINK = re.compile(r"""<a\s[^>]*?href="([^"]+)\"""")
_IMAGE = re.compile(r"<img\s[^>]*>")
_DRAWING = re.compile(r"<svg\s.*?</svg>", re.DOTALL)
_LOADED = re.compile(r"""<(?:script|img|link|iframe|source)\s[^>]*?(?:src|href)="((?:https?:)?//[^"]+)\"""")


@dataclass(frozen=True)
class Page:
    path: Path

    @cached_property
    def text(self) -> str:
        """Its HTML."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def ids(self) -> frozenset[str]:
        """The anchors that a link may lead to."""
        return frozenset(_ID.findall(self.text))

    def links(self) -> Iterator[tuple[Path, str]]:
        """Return where its links within the documentation lead: a file, and an anchor or nothing."""
        for link in dict.fromkeys(_LINK.findall(self.text)):
            if re.match(r"[a-z]+:", link):
                continue
            target, anchor = urldefrag(link.replace("&amp;", "&"))
            yield (self.path.parent / unquote(target)).resolve() if target else self.path, unquote(anchor)

    @property
    def article(self) -> str:
        return self.text.partition("<article")[2].partition("</article>")[0]

    def unnamed_pictures(self) -> list[str]:
        """Return the pictures that say nothing to whoever cannot see them."""
        images = [one for one in _IMAGE.findall(self.article) if not re.search(r'alt="[^"]', one)]
        drawings = [one for one in _DRAWING.findall(self.article) if not re.search('aria-hidden="true"|<title', one)]
        return [one[:100] for one in (*images, *drawings)]

    def loads(self) -> list[str]:
        """Return the addresses elsewhere that showing it would ask for something."""
        return _LOADED.findall(self.text)


def site_at(folder: Path) -> dict[Path, Page]:
    """Return the pages of a built documentation, by their files."""
    return {path.resolve(): Page(path.resolve()) for path in sorted(folder.rglob("*.html"))}


def dead_links(site: dict[Path, Page]) -> list[str]:
    """Return the links that lead nowhere: no file, or no such anchor in it."""
    dead = []
    for page in site.values():
        for target, anchor in page.links():
            if not target.exists():
                dead.append(f"{page.path.name}: no {target.name}")
            elif anchor and target in site and anchor not in site[target].ids:
                dead.append(f"{page.path.name}: no #{anchor} in {target.name}")
    return dead


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built once, without its objects in the navigation: to copy those takes a third of the time."""
    pytest.importorskip("sphinx", reason="needs sphinx: the group dev")
    folder = tmp_path_factory.mktemp("site")
    words = ("-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", "-D", "toc_object_entries=0")
    done = ran(sys.executable, *words, "docs", folder, cwd=ROOT, timeout=590)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def site(built: Path) -> dict[Path, Page]:
    return site_at(built)


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that fails the test if a page asks the network for anything, or has an error in its scripts."""
    context = browser.new_context(reduced_motion="reduce")
    opened = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
    assert errors == []


def test_every_link_leads_somewhere_every_picture_has_a_text_and_nothing_is_loaded(site: dict[Path, Page]) -> None:
    assert len(site) > 100
    assert dead_links(site) == []
    assert {page.path.name: found for page in site.values() if (found := page.unnamed_pictures())} == {}
    assert {page.path.name: found for page in site.values() if (found := page.loads())} == {}


def test_a_dead_link_a_mute_picture_and_a_foreign_script_are_noticed(tmp_path: Path) -> None:
    """The control of the test above."""
    (tmp_path / "a.html").write_text(
        '<article><a href="b.html">x</a><a href="#gone">y</a><img src="c.png"><svg viewBox="0 0 1 1"></svg></article>'
        '<script src="https://cdn.example/x.js"></script>'
    )
    (page,) = (site := site_at(tmp_path)).values()

    assert dead_links(site) == ["a.html: no b.html", "a.html: no #gone in a.html"]
    assert len(page.unnamed_pictures()) == 2
    assert page.loads() == ["https://cdn.example/x.js"]


def test_no_signature_shows_a_private_default(site: dict[Path, Page]) -> None:
    signatures = re.compile(r'<dt class="sig.*?</dt>', re.DOTALL)
    default = re.compile(r'<span class="default_value">(?:<[^>]+>)*(_\w+|NO_\w+|DEFAULT_\w+)')
    texts = [one for page in site.values() for one in signatures.findall(page.text)]

    assert len(texts) > 300
    assert [found[1] for one in texts if (found := default.search(one))] == []


def test_every_method_is_in_the_reference(site: dict[Path, Page]) -> None:
    anchors = {anchor for page in site.values() for anchor in page.ids}
    public = [
        f"letopis.{room}.{kind.__name__}.{name}"
        for room, kind in (("outbox", History), ("outbox", BlockingHistory), ("store", ConversationStore))
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    ]

    assert len(public) > 50
    assert [name for name in public if name not in anchors] == []


def test_a_quoted_figure_that_is_published_no_more_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("sphinx.errors", reason="needs sphinx: the group dev")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    extension = importlib.import_module("figures")
    speed, proof = ((ROOT / "docs/explanation/tables" / name).read_text("utf-8") for name in ("speed.md", "proof.md"))
    found = extension.figures(speed, proof)

    assert f"| Letopis | {found['append_rate']} (" in speed
    for speed_of, proof_of in ((speed.replace("| Letopis |", "| It |"), proof), (speed, "nothing was killed")):
        with pytest.raises(errors.ConfigError, match=r"change docs/_ext/figures\.py"):
            extension.figures(speed_of, proof_of)


def test_programs_find_every_page_and_readers_the_logo(built: Path) -> None:
    text, index = (built / "llms.txt").read_text(encoding="utf-8"), (built / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r"\]\((_sources/[^)]+)\)", text)
    pictures = set(re.findall(r'(?:href|src)="(_static/(?:logo|favicon)[^"?]*)', index))

    assert text.startswith("# Letopis\n\n> Durable conversation history")
    assert (len(sources) > 100, len(pictures)) == (True, 3)
    assert [name for name in (*sources, *pictures) if not (built / name).is_file()] == []


def test_no_page_scrolls_sideways(tab: Any, built: Path, site: dict[Path, Page]) -> None:
    """On a phone each that has a table, a picture or code; on a desk the samples."""
    wide = []
    wanted = re.compile(r"<(?:pre|table|img|svg)\b")
    for width, paths in zip(
        WIDTHS, ([path for path in site if wanted.search(site[path].article)], SAMPLE), strict=True
    ):
        tab.set_viewport_size({"width": width, "height": 900})
        for path in paths:
            tab.goto((built / path).as_uri(), wait_until="domcontentloaded")
            over = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if over > 0:
                wide.append(f"{path}: {over} px over at {width} px")

    assert wide == []


def test_search_shows_guides_before_decisions_and_tables(tab: Any, built: Path) -> None:
    tab.goto((built / "search.html").as_uri())
    tab.wait_for_function("Search.hasIndex()")
    for words in ("erase", "retention", "forks", "search", "large content", "undo"):
        # The function that the page shows the results of, from the last to the first.
        find = "words => Search._performSearch(...Search._parseQuery(words)).map(result => result[0]).reverse()"
        pages = tab.evaluate(find, words)
        last = [bool(re.match(r"(adr|explanation/tables)/", page)) for page in pages]

        assert (last[0], any(last)) == (False, True), (words, pages)
        assert last == sorted(last), (words, pages)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_read_it(tab: Any, built: Path, theme: str) -> None:
    """Contrast, names, roles and order, by axe-core, at both widths."""
    axe = AXE.read_text(encoding="utf-8")
    found = []
    for number, name in enumerate(SAMPLE):
        tab.set_viewport_size({"width": WIDTHS[number % 2], "height": 900})
        tab.goto((built / name).as_uri(), wait_until="domcontentloaded")
        tab.evaluate("theme => document.body.dataset.theme = theme", theme)
        found += [f"{name}: {one}" for one in violations(tab, axe)]

    assert found == []


def test_pale_text_is_noticed(tab: Any) -> None:
    """The control of the test above, and of the one on scrolling."""
    tab.set_viewport_size({"width": WIDTHS[0], "height": 900})
    tab.set_content(
        '<html lang="en"><title>x</title><main><h1>x</h1><p style="color:#ddd;background:#fff">pale</p>'
        '<pre style="width:2000px">wide</pre></main></html>'
    )

    assert any("color-contrast" in one for one in violations(tab, AXE.read_text(encoding="utf-8")))
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") > 0


def violations(tab: Any, axe: str) -> list[str]:
    """Return what axe-core finds on the page that a tab shows."""
    tab.evaluate(f"{axe};0")
    results = tab.evaluate(
        "() => axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'], resultTypes: ['violations']})"
        ".then(results => results.violations.map(one => [one.id, one.nodes.map(node => node.html)]))"
    )
    # Sphinx makes a list without terms of a signature that takes several lines.
    told = {rule: [node for node in nodes if (rule, node) != ("definition-list", "<dl>")] for rule, nodes in results}
    return [f"{rule}: {nodes[:3]}" for rule, nodes in told.items() if nodes]
