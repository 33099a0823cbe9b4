"""List the pages of an index with one line each, and write them all into llms.txt."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.directives.other import TocTree
from sphinx.util import docname_join
from sphinx.util.typing import ExtensionMetadata

_SENTENCE = re.compile(r"(.+?[.!?:])(?=\s|$)", re.DOTALL)


class overview(nodes.General, nodes.Element):  # noqa: N801  # docutils names nodes so
    """The place of a list, until the titles of its pages are known."""


class Overview(TocTree):
    """A table of contents with one line for each page: ``name: the line``, or the page's first sentence.

    Options are those of ``toctree``, and ``sections``: the pages are themselves such lists, and are shown with theirs.
    """

    option_spec = {**(TocTree.option_spec or {}), "sections": directives.flag}  # noqa: RUF012  # as docutils wants it

    def run(self) -> list[nodes.Node]:
        """Return the hidden table of contents, and the list's place."""
        # Metadata, because Sphinx merges that from the processes that read pages.
        lines: dict[str, str] = self.env.metadata[self.env.docname].setdefault("overview", {})
        names = []
        for entry in self.content:
            name, _, line = entry.partition(": ")
            names.append(name)
            if line:
                lines[docname_join(self.env.docname, name)] = line
        self.content = StringList(names, source=self.env.docname)
        sections = "sections" in self.options
        self.options["hidden"] = None
        found = super().run()
        listed: list[str] = self.env.metadata[self.env.docname].setdefault("listed", [])
        for tree in [tree for node in found for tree in node.findall(addnodes.toctree)]:
            # What an earlier list of the page has is not listed again by `*`.
            tree["entries"] = [(title, page) for title, page in tree["entries"] if page not in listed]
            tree["includefiles"] = [page for page in tree["includefiles"] if page not in listed]
            listed += tree["includefiles"]
        pages = [page for node in found for tree in node.findall(addnodes.toctree) for _, page in tree["entries"]]
        return [*found, overview(pages=pages, lines=lines, sections=sections)]


def first_sentence(doctree: nodes.document) -> str:
    """Return the first sentence of a page's first paragraph, or nothing if it begins otherwise."""
    for section in doctree.findall(nodes.section):
        for child in section.children:
            if isinstance(child, nodes.paragraph):
                text = " ".join(child.astext().split())
                sentence = _SENTENCE.match(text)
                return (sentence[1] if sentence else text).rstrip(":")
            if not isinstance(child, nodes.title | nodes.comment | nodes.target):
                return ""
        return ""
    return ""


def marked(line: str) -> list[nodes.Node]:
    """Return a line as nodes; what is between backticks is code."""
    parts = line.split("`")
    return [nodes.literal("", part) if number % 2 else nodes.Text(part) for number, part in enumerate(parts)]


def list_of(app: Sphinx, docname: str, pages: list[str], lines: dict[str, str], *, sections: bool) -> nodes.bullet_list:
    """Return a list of links to pages, each with its line, or with its own list below it."""
    items = []
    for page in pages:
        title = app.env.titles[page].deepcopy()
        line = lines.get(page) or first_sentence(app.env.get_doctree(page))
        link = nodes.reference("", "", *title.children, internal=True)
        link["refuri"] = app.builder.get_relative_uri(docname, page)
        text = nodes.paragraph("", "", link)
        if line:
            between = nodes.Text(" " if title.astext().endswith("?") else ": ")
            text += nodes.inline("", "", between, *marked(line), classes=["overview-line"])
        item = nodes.list_item("", text)
        if sections:
            own = app.env.metadata[page].get("overview", {})
            item += list_of(app, docname, app.env.toctree_includes.get(page, []), own, sections=False)
        items.append(item)
    return nodes.bullet_list("", *items, classes=["overview"])


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the list in its place, once all titles are known."""
    for node in list(doctree.findall(overview)):
        node.replace_self(list_of(app, docname, node["pages"], node["lines"], sections=node["sections"]))


def write_llms(app: Sphinx, exception: Exception | None) -> None:
    """Write llms.txt: each page's title, source and line, for readers that are programs."""
    if exception is not None or app.builder.format != "html":
        return
    env = app.env
    lines = [f"# {app.config.project}", "", f"> {app.config.llms_summary}", ""]
    for chapter in env.toctree_includes.get(app.config.root_doc, ()):
        lines += [f"## {env.titles[chapter].astext()}", ""]
        for parent in (chapter, *env.toctree_includes.get(chapter, ())):
            for page in env.toctree_includes.get(parent, ()):
                if page in env.toctree_includes:  # a section: its pages follow
                    continue
                line = env.metadata[parent].get("overview", {}).get(page) or first_sentence(env.get_doctree(page))
                lines.append(f"- [{env.titles[page].astext()}](_sources/{page}.md.txt): {line}".rstrip(": "))
        lines.append("")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_config_value("llms_summary", "", "env", str)
    app.add_node(overview)
    app.add_directive("overview", Overview)
    app.connect("doctree-resolved", fill)
    app.connect("build-finished", write_llms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
