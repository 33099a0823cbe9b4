"""Every line that installs Letopis works before its first release: from a checkout, with extras that exist."""

import re
import tomllib
from itertools import chain

from tests.support.paths import ROOT

INSTALLS = re.compile(r"pip install (?P<words>[^\n`&]*?letopis[^\n`&]*)")
TAKEN = re.compile(r"(?P<quote>['\"])path/to/letopis\[(?P<extras>[a-z,-]+)\](?P=quote)|path/to/letopis(?![\[\w])")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def wrong(line: str) -> str:
    """Return what a stranger could not install, empty if all is well."""
    taken = TAKEN.search(line)
    if taken is None:
        return line
    unknown = set((taken["extras"] or "").split(",")) - {"", *EXTRAS}
    return f"{line}: no extra {unknown}" if unknown else ""


def test_pages_and_examples_install_from_a_checkout() -> None:
    pages = chain(ROOT.glob("README*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "docs" / "examples").rglob("*.py"))
    lines = [(page.name, match["words"]) for page in pages for match in INSTALLS.finditer(page.read_text("utf-8"))]

    assert len(lines) > 20
    assert [(page, said) for page, line in lines if (said := wrong(line))] == []


def test_the_rule_finds_what_is_planted() -> None:
    assert wrong("'letopis[console]'") and wrong("letopis") and wrong("'path/to/letopis[consoles]'")
    assert not wrong("'path/to/letopis[console,daemon]' uvicorn") and not wrong("path/to/letopis")
