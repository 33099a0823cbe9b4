"""The documentation tells the truth: its code runs, its links lead somewhere, and nothing public is missing from it."""

import ast
import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from letopis.outbox.event_log.schema import metadata as outbox_tables
from letopis.store.database.schema import metadata as store_tables
from tests.support import demo_transcript, pages
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
README, RUSSIAN = ROOT / "README.md", ROOT / "README.ru.md"
FIRST_BOT = DOCS / "tutorial" / "first-bot.md"
PAGES = (README, RUSSIAN, *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts))
EXAMPLES = (
    *("conversations", "history", "limits", "messages", "reading", "records", "relay", "replies"),
    *("status-and-alerts", "store", "sync"),
)
"""Pages of the Python reference, which begin with an example and its output."""
DOORS = re.compile(r"letopis(?:\.adapters\b.*|\.console|\.store\.testing|\.testing)?")
"""What a page imports from: one module, and the packages that are extras of it."""
COLUMNS = 88
"""Of what is printed: on a phone, half of a longer line cannot be seen."""
CODE_COLUMNS = 72
"""Of code that can be wrapped; the examples in cli.md are those of the command's help."""
WRAPPED = ("python", "bash", "sql")

_AUTODOC = re.compile(r"auto(?:class|exception|function|data)::[ \t]+(?:letopis\.(?:store|outbox)\.)?(\w+)")
_MODULE = re.compile(r"(?:current|auto)?module::[ \t]+(letopis\.\w+)")


def imports() -> Iterator[tuple[str, str, str]]:
    """Yield what blocks take from Letopis, as page, module and name."""
    for page in PAGES:
        for node in (node for block in pages.programs(page) for node in ast.walk(ast.parse(block))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("letopis"):
                yield from ((page.name, node.module or "", alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("letopis")]
                yield from ((page.name, name, "__name__") for name in names)


@pytest.mark.parametrize("page", [README, DOCS / "index.md"], ids=lambda page: page.stem)
def test_the_code_of_the_front_pages_runs(page: Path, tmp_path: Path) -> None:
    (block,) = pages.programs(page)

    done = pages.run_program(block, tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert "user Hi " in done.stdout
    assert "assistant Hello! " in done.stdout


def test_the_tutorial_shows_what_is_seen(tmp_path: Path) -> None:
    steps = list(pages.follow(FIRST_BOT, tmp_path))

    assert len(steps) > 6
    assert [str(step) for step in steps if not step.holds] == []


def test_a_page_that_shows_something_else_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Save as `one.py`:\n```python\nprint(1)\n```\n```console\n$ .venv/bin/python one.py\n2\n```\n")
    (tmp_path / "folder").mkdir()

    (step,) = pages.follow(page, tmp_path / "folder")

    assert (step.holds, step.printed) == (False, "1\n")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_reference_print_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example, output, *_ = pages.blocks((DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8"))
    assert (example.language, output.language) == ("python", "text")
    printed = io.StringIO()

    with contextlib.redirect_stdout(printed):
        exec(compile(example.body, name, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own page

    assert printed.getvalue() == output.body


def test_no_line_of_code_is_wider_than_a_reader_sees() -> None:
    marked = {
        f"{line}\n"
        for page in (README, RUSSIAN)
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("python3 -m venv .venv && ")
    }  # one line each, for CI
    wide = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in (*PAGES, ROOT / "CONTRIBUTING.md")
        for block in pages.blocks(page.read_text(encoding="utf-8"))
        if not block.language.startswith("{") and block.body not in marked
        for line in block.body.splitlines()
        if len(line) > (CODE_COLUMNS if block.language in WRAPPED and page.stem != "cli" else COLUMNS)
    ]

    assert wide == []


@pytest.mark.parametrize(
    ("english", "russian"),
    [(README, RUSSIAN), (FIRST_BOT, FIRST_BOT.with_suffix(".ru.md"))],
    ids=["readme", "tutorial"],
)
def test_a_translation_has_the_same_code_and_both_name_each_other(english: Path, russian: Path) -> None:
    texts = [page.read_text(encoding="utf-8") for page in (english, russian)]
    code = [[(block.language, block.body) for block in pages.blocks(text)] for text in texts]
    headings = [
        re.findall(r"^(#+) ", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
        for text in texts
    ]

    assert code[0] == code[1]
    assert headings[0] == headings[1]
    assert f"]({russian.name})" in texts[0]
    assert f"]({english.name})" in texts[1]


@pytest.mark.parametrize("russian", sorted((DOCS / "howto").glob("*.ru.md")), ids=lambda page: page.stem)
def test_a_short_translation_of_a_guide_has_no_code_of_its_own(russian: Path) -> None:
    english = russian.with_suffix("").with_suffix(".md")
    texts = [page.read_text(encoding="utf-8") for page in (english, russian)]
    code = [{(block.language, block.body) for block in pages.blocks(text)} for text in texts]

    assert code[1]
    assert code[1] - code[0] == set()
    assert f"]({russian.name})" in texts[0]
    assert f"]({english.name})" in texts[1]


def test_the_picture_of_the_demo_is_of_its_transcript() -> None:
    """What is in the transcript, tests/acceptance/test_demo.py compares with the demonstration."""
    assert demo_transcript.PICTURE.read_text(encoding="utf-8") == demo_transcript.picture(
        demo_transcript.transcript_of(README)
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of frameworks, about what is experimental in them
def test_every_block_takes_names_that_exist() -> None:
    def is_there(module: str, name: str) -> bool:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            return "pip install 'letopis[" in str(error)  # an adapter whose framework is not installed
        return hasattr(loaded, name) or importlib.util.find_spec(f"{module}.{name}") is not None

    assert not [found for found in imports() if not is_there(found[1], found[2])]


def test_every_block_imports_from_letopis_alone() -> None:
    elsewhere = {f"{page}: {module}" for page, module, _ in imports() if not DOORS.fullmatch(module)}

    assert sorted(elsewhere) == []


@pytest.mark.parametrize("package", ["letopis.store", "letopis.outbox", "letopis.testing"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    documented = set()
    for page in (DOCS / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if package in _MODULE.findall(text):
            documented |= set(_AUTODOC.findall(text))

    assert sorted(set(importlib.import_module(package).__all__) - documented) == []


def test_every_table_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "schema.md").read_text(encoding="utf-8")
    tables = [*outbox_tables.tables, *store_tables.tables]

    assert len(tables) > 10
    assert [table for table in tables if f"| `{table}` |" not in page] == []


@pytest.mark.parametrize("page", [README, RUSSIAN], ids=lambda page: page.stem)
def test_the_readme_names_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))

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


def test_a_decision_and_the_one_that_replaces_it_name_each_other() -> None:
    states = {
        path.name: re.findall(r"^- State: ((?:.+\n)+?)\n", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in (DOCS / "adr").glob("[0-9]*.md")
    }
    named = {name: set(re.findall(r"\]\(([^)]+)\)", "".join(lines))) for name, lines in states.items()}
    without_links = {name: re.sub(r"\[\d{4}\]\([^)]+\)", "", "".join(lines)) for name, lines in states.items()}

    assert [name for name, lines in states.items() if len(lines) != 1] == []
    assert [name for name, text in without_links.items() if re.search(r"\d{4}", text)] == []
    assert [(name, other) for name, others in named.items() for other in others if name not in named[other]] == []
    assert sum(map(len, named.values())) > 10
