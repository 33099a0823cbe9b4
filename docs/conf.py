"""Sphinx: the documentation of Letopis, built with warnings as errors."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Letopis"
author = "the Letopis authors"
copyright = "the Letopis authors"  # noqa: A001  # the name that Sphinx reads
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
version = release

extensions = ["sphinx.ext.autodoc", "myst_parser", "sphinx_copybutton", "figures", "overview", "signatures"]
exclude_patterns = ["_build", "adr/template.md"]
html_theme = "furo"
html_title = f"Letopis {release}"
html_theme_options = {"light_logo": "logo-light.svg", "dark_logo": "logo-dark.svg"}
html_favicon = "_static/favicon.svg"
html_search_scorer = str(Path(__file__).parent / "_ext" / "scorer.js")
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["letopis.css"]
html_js_files = ["letopis.js"]
llms_summary = (
    "Durable conversation history for chat bots and LLM agents: every message is on the local disk before append "
    "returns, and is delivered to PostgreSQL, MariaDB or SQLite exactly once."
)

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "

autodoc_mock_imports = [
    "agent_framework",
    "agents",
    "aiogram",
    "aiohttp",
    "google",
    "google.adk",
    "google.genai",
    "haystack",
    "langchain_core",
    "langgraph",
    "llama_index",
    "openai",
    "pydantic",
    "pydantic_ai",
    "pydantic_core",
    "pyrogram",
    "strands",
    "telegram",
]  # frameworks of adapters: only the adapters are documented
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 72  # beyond it, each parameter has a line of its own
signature_public = {"ABSENT", "ANY", "NULL"}  # defaults that readers may name: each has an entry

nitpicky = True
# Nothing is fetched while the documentation is built, so other projects' names cannot be resolved; ours must be.
nitpick_ignore_regex = [
    ("py:.*", r"(?!letopis\.).*"),
    ("py:.*", r"letopis\..*\.T"),
    # What only `History` and `ConversationStore` make.
    ("py:class", r"letopis\.(outbox\.history\.opening\.Parts|store\.runtime\.StoreRuntime)"),
    # What only the daemon gives its relays.
    ("py:class", r"letopis\.outbox\.relay\.(lease\.LeaseLock|relay\.Watch|dispatcher\.RelayMemory)"),
]

# A public name is documented where people import it from; code and docstrings may name the room where it is defined.
DOORS = {
    f"{room}.{name}": f"{door.__name__}.{name}"
    for door in map(importlib.import_module, ("letopis.store", "letopis.outbox", "letopis.testing"))
    for name in door.__all__
    for room in (getattr(getattr(door, name), "__module__", ""), f"{door.__name__}.{getattr(door, 'ROOMS', {}).get(name, '')}")
}


def at_the_door(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a reference to a name in its room as one to the same name at its package's front door."""
    room, member = node["reftarget"], ""
    while room and room not in DOORS:
        room, _, last = room.rpartition(".")
        member = f".{last}{member}"
    if not room or node["refdomain"] != "py":
        return None
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], DOORS[room] + member, node, content
    )


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", at_the_door)
