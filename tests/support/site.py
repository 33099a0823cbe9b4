"""Read the built documentation: its pages, their links, anchors and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urldefrag

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

    def unnamed_pictures(self) -> list[str]:
        """Return the pictures that say nothing to whoever cannot see them."""
        body = self.text.partition("<article")[2].partition("</article>")[0]
        images = [one for one in _IMAGE.findall(body) if not re.search(r'alt="[^"]', one)]
        drawings = [one for one in _DRAWING.findall(body) if 'aria-hidden="true"' not in one and "<title" not in one]
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
