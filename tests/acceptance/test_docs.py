"""The documentation tells the truth: its code runs, its links lead somewhere, and nothing public is missing from it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from letopis.outbox.cli import cli
from letopis.outbox.event_log.schema import metadata as outbox_tables
from letopis.store.database.schema import metadata as store_tables
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
RUN = (ROOT / "README.md", DOCS / "tutorial" / "first-bot.md")
PAGES = (*RUN, *sorted(path for path in DOCS.rglob("*.md") if path not in RUN and "_build" not in path.parts))

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_AUTODOC = re.compile(r"auto(?:class|exception|function|data)::[ \t]+(?:letopis\.(?:store|outbox)\.)?(\w+)")
_MODULE = re.compile(r"(?:current|auto)?module::[ \t]+(letopis\.\w+)")


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One name that a block takes from Letopis."""

    page: str
    module: str
    name: str


def imports() -> Iterator[Import]:
    for page in PAGES:
        for block in blocks(page):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("letopis"):
                    for alias in node.names:
                        yield Import(page=page.name, module=node.module or "", name=alias.name)


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Each command that does something, as the words a user types."""
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None, name
        yield from verbs(child, (*path, name))


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_block_of_the_first_pages_runs(page: Path, tmp_path: Path) -> None:
    """One after the other in one folder, as the reader would."""
    found = blocks(page)
    assert found
    for number, block in enumerate(found, start=1):
        script = tmp_path / f"block{number}.py"
        script.write_text(block, encoding="utf-8")

        done = subprocess.run(
            [sys.executable, "-W", "error", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

        assert done.returncode == 0, f"block {number}:\n{block}\n{done.stdout}\n{done.stderr}"
        assert done.stderr == "", f"block {number}"
        assert done.stdout, f"block {number} shows nothing"


def test_the_tutorial_shows_what_it_says(tmp_path: Path) -> None:
    """The sentences of the tutorial that tell what is seen."""
    said = []
    for block in blocks(RUN[1]):
        (tmp_path / "bot.py").write_text(block, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "bot.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=True
        )
        said.append(done.stdout)

    assert "You said: hello" in said[0]
    assert "user      how are you?" in said[0]
    assert "in the history store: True" in said[1]
    assert said[2].splitlines() == [
        "in the history store: False",
        "but readable: Can you hear me? pending",
        "in the history store: True",
    ]
    assert said[3] == "credits left: 10\n"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of frameworks, about what is experimental in them
def test_every_block_takes_names_that_exist() -> None:
    def is_there(module: str, name: str) -> bool:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            return "pip install 'letopis[" in str(error)  # an adapter whose framework is not installed
        return hasattr(loaded, name) or importlib.util.find_spec(f"{module}.{name}") is not None

    assert not [found for found in imports() if not is_there(found.module, found.name)]


@pytest.mark.parametrize("package", ["letopis.store", "letopis.outbox"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    documented = set()
    for page in (DOCS / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if package in _MODULE.findall(text):
            documented |= set(_AUTODOC.findall(text))

    assert sorted(set(importlib.import_module(package).__all__) - documented) == []


def test_every_verb_of_the_command_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    found = [" ".join(("letopis", *path)) for path in verbs(cli)]

    assert len(found) > 5
    assert [verb for verb in found if verb not in page] == []


def test_every_table_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "schema.md").read_text(encoding="utf-8")
    tables = [*outbox_tables.tables, *store_tables.tables]

    assert len(tables) > 10
    assert [table for table in tables if f"| `{table}` |" not in page] == []


def test_the_readme_names_files_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_marks_the_commands_that_ci_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.+)\n```", text))

    assert set(marked) == {"demo", "tests"}
    assert marked["demo"].endswith("letopis demo")
    assert " -m pytest " in marked["tests"]


def test_every_decision_is_numbered_once() -> None:
    numbers = [path.name[:4] for path in (DOCS / "adr").glob("[0-9]*.md")]

    assert numbers
    assert len(numbers) == len(set(numbers))
