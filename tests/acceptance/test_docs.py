"""The documentation tells the truth: its code runs, its links lead somewhere, and nothing public is missing from it."""

import ast
import contextlib
import importlib
import io
import re
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from letopis.examples import demo
from letopis.ops.cli import cli
from letopis.ops.cli.interface.exit_codes import Exit, run
from letopis.outbox.event_log.schema import metadata as outbox_tables
from letopis.outbox.history.history import History
from letopis.store.database.schema import metadata as store_tables
from letopis.store.model.messages import Message
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
DOORS = re.compile(r"letopis(?:\.adapters\b.*|\.console|\.store\.testing|\.store\.ops\.(?:move|rebuild)|\.testing)?")
"""What a page imports from: one module, and the packages that are extras of it."""

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


def output_of(code: str, name: str) -> str:
    """Run a program in this process; return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings(action="error"):
        exec(compile(code, name, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own page
    return printed.getvalue()


@pytest.mark.parametrize("page", [README, DOCS / "index.md"], ids=lambda page: page.stem)
def test_the_program_of_the_front_page_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    """As its reader runs it: saved to a file, in an empty folder."""
    found = list(pages.blocks(page.read_text(encoding="utf-8")))
    (program,), (output,) = ([one for one in found if one.language == name] for name in ("python", "text"))
    (tmp_path / "ten_lines.py").write_text(program.body, encoding="utf-8")

    assert pages.typed(f"{sys.executable} ten_lines.py", tmp_path) == output.body
    assert output.body.endswith(" saved\n")


@pytest.mark.parametrize("page", [README, RUSSIAN], ids=lambda page: page.stem)
def test_a_readme_is_two_screens_with_few_links(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert len(re.findall(r"(?<!!)\[[^]]*\]\(", text)) <= 8
    assert len(text.splitlines()) <= 110


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
    assert output_of(example.body, name) == output.body


TRANSLATIONS = (RUSSIAN, FIRST_BOT.with_suffix(".ru.md"), *sorted((DOCS / "howto").glob("*.ru.md")))


@pytest.mark.parametrize("russian", TRANSLATIONS, ids=lambda page: page.stem)
def test_a_translation_has_no_code_of_its_own_and_both_name_each_other(russian: Path) -> None:
    """Those of guides are short; the others have all of it."""
    english = russian.with_suffix("").with_suffix(".md")
    texts = [page.read_text(encoding="utf-8") for page in (english, russian)]
    code = [[(block.language, block.body) for block in pages.blocks(text)] for text in texts]
    prose = [re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL) for text in texts]
    headings = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in prose]

    assert code[1]
    assert [block for block in code[1] if block not in code[0]] == []
    assert russian.parent.name == "howto" or (code[0], headings[0]) == (code[1], headings[1])
    assert f"]({russian.name})" in texts[0]
    assert f"]({english.name})" in texts[1]


@pytest.mark.slow  # it imports each framework that is installed
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of frameworks, about what is experimental in them
def test_every_block_imports_what_exists_and_of_letopis_the_front_doors() -> None:
    def is_there(module: str, name: str) -> bool:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            return "pip install 'letopis[" in str(error)  # an adapter whose framework is not installed
        return hasattr(loaded, name) or importlib.util.find_spec(f"{module}.{name}") is not None

    assert not [found for found in imports() if not is_there(found[1], found[2])]
    assert sorted({f"{page}: {module}" for page, module, _ in imports() if not DOORS.fullmatch(module)}) == []


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


def test_a_decision_has_a_number_and_the_one_that_replaces_it_names_it() -> None:
    states = {
        path.name: re.findall(r"^- State: ((?:.+\n)+?)\n", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in (DOCS / "adr").glob("[0-9]*.md")
    }
    named = {name: set(re.findall(r"\]\(([^)]+)\)", "".join(lines))) for name, lines in states.items()}
    without_links = {name: re.sub(r"\[\d{4}\]\([^)]+\)", "", "".join(lines)) for name, lines in states.items()}

    assert len({name[:4] for name in states}) == len(states)
    assert [name for name, lines in states.items() if len(lines) != 1] == []
    assert [name for name, text in without_links.items() if re.search(r"\d{4}", text)] == []
    assert [(name, other) for name, others in named.items() for other in others if name not in named[other]] == []
    assert sum(map(len, named.values())) > 10


# The demonstration.


def test_the_command_tells_its_story_and_ends_well(tmp_path: Path) -> None:
    """In a pipe: no colour and no escape in it, nothing on stderr, and well below half a minute."""
    began = time.monotonic()

    done = demo_transcript.play(tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "appended 72, stored 72, in order 72, duplicates 0." in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
    assert demo_transcript.comparable(demo_transcript.shown()) == demo_transcript.comparable(done.stdout)
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - began < 60


def test_what_it_keeps_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(cli, ["demo", "--keep", "here"]) == 0
    assert run(cli, ["--outbox", "here/bot.outbox.db", "status", "--check"]) in (Exit.OK, Exit.FAILED)
    capsys.readouterr()
    assert run(cli, ["--outbox", "here/bot.outbox.db", "history", "show", "telegram:101"]) == 0

    assert capsys.readouterr().out.count("\n") >= 24
    with contextlib.closing(sqlite3.connect(tmp_path / "here" / demo.STORE)) as connection:
        assert connection.execute("SELECT count(*) FROM letopis_messages").fetchone() == (72,)


async def test_its_check_finds_what_is_missing_or_out_of_order(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        for word in "abc":
            await history.append("c1", Message.user(word))
        assert await history.drained(30)
    for words, in_order in (("abc", 3), ("abcd", 3), ("acb", 1), ("ab", 2)):
        found = await demo.check(tmp_path, demo.Transcript(lines={"c1": [("user", word) for word in words]}))
        assert (found.appended, found.stored, found.in_order) == (len(words), 3, in_order)
        assert found.holds is (words == "abc")
    assert not demo.DemoOutcome(appended=3, stored=3, in_order=3, duplicates=1).holds


async def test_it_waits_for_a_number_of_polls_however_long_each_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MAX_POLLS", 10)
    monkeypatch.setattr(demo, "POLL_SECONDS", 0.001)
    polls = 0

    async def at_the_tenth() -> bool:
        nonlocal polls
        polls += 1
        await anyio.sleep(0.02)  # a slow machine: all of them together take longer than ten pauses
        return polls == 10

    await demo._until(at_the_tenth, "the tenth")
    with pytest.raises(demo.DemoFailed, match="the twentieth"):
        await demo._until(at_the_tenth, "the twentieth")
    assert polls == 20
