"""The help of the command: examples that work, one line for what is inherited, and hints that lead somewhere."""

from __future__ import annotations

import re
import shlex
from typing import Any, Final

import click
import pytest

from letopis.outbox.cli import ELSEWHERE, VERBS, cli
from letopis.outbox.cli.interface.command import SHARED, SharedOption, Verb, first_sentence
from tests.support.fix_command import every_command
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("elsewhere")

PAGE: Final = ROOT / "docs" / "reference" / "cli.md"
MAX_COLUMNS: Final = 88
"""Of a code block in the documentation."""


COMMANDS: Final = dict(every_command())
LEAVES: Final = {path: one for path, one in COMMANDS.items() if not isinstance(one, click.Group)}


def uses(line: str) -> list[list[str]]:
    """The arguments of each `letopis` in a line for a shell."""
    bare = line.partition("   #")[0].replace("EVENT_ID", "01890a5d-ac96-774b-bcce-b302099a8057")
    words = shlex.split(re.sub(r">\S+", "", bare))
    found: list[list[str]] = []
    inside = False
    for word in words:
        if word in ("|", "||", "&&"):
            inside = False
        elif word == "letopis" and not inside:
            found.append([])
            inside = True
        elif inside:
            found[-1].append(word)
    return found


def parsed(arguments: list[str]) -> tuple[str, ...]:
    """The command that arguments call; click refuses those that it does not take."""
    command: click.Command = cli
    context = cli.make_context("letopis", list(arguments))
    path: tuple[str, ...] = ()
    while isinstance(command, click.Group):
        name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert name is not None
        assert below is not None
        path, command = (*path, name), below
        context = command.make_context(name, rest, parent=context)
    return path


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_examples_that_it_takes(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    assert isinstance(command, Verb)
    assert command.examples

    for line in command.examples:
        called = [parsed(arguments) for arguments in uses(line)]
        assert called, line
        assert called[0][:-1] == path[:-1], line  # `fix` begins with what `show` prints
        assert len(line) <= MAX_COLUMNS, line
    assert path in [parsed(arguments) for line in command.examples for arguments in uses(line)]


def test_an_example_that_is_wrong_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parsed(["status", "--wacht"])
    assert uses("zcat a | letopis history list --json | jq .x   # letopis") == [["history", "list", "--json"]]


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_the_reference_shows_the_same_examples(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    assert isinstance(command, Verb)
    section = re.split(rf"^#+ letopis {' '.join(path)}$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    section = re.split(r"^#+ letopis", section, flags=re.MULTILINE)[0]

    assert "```bash\n" + "\n".join(command.examples) + "\n```" in section


@pytest.mark.parametrize("path", [path for path in COMMANDS if path], ids=" ".join)
def test_inherited_options_are_one_sentence(path: tuple[str, ...], letopis: Any) -> None:
    code, text, _ = letopis(*path, "--help")

    assert code == 0
    assert "Options of every command: --outbox, --store, --config, --debug, --help" in " ".join(text.split())
    assert "LETOPIS_CONFIG" not in text
    assert "..." not in text.partition("\nCommands:\n")[2]
    if isinstance(COMMANDS[path], Verb):
        assert text.index("\nExamples:\n  ") > 0
        assert f"\n  {COMMANDS[path].examples[0]}\n" in text  # type: ignore[attr-defined]


def test_the_help_of_letopis_itself_explains_them(letopis: Any) -> None:
    text = letopis("--help")[1]
    shared = [one for one in cli.params if isinstance(one, SharedOption)]

    assert tuple(one.opts[0] for one in shared) == SHARED
    assert all(f"  {name} " in text for name in SHARED)
    assert "LETOPIS_CONFIG" in text


def test_a_group_lists_first_sentences() -> None:
    assert first_sentence("Do this: that and\nthat. Exits with 3.\n\nMore.") == "Do this: that and that."
    assert first_sentence("Do this.") == "Do this."


def test_every_hint_leads_to_a_command_and_every_command_has_one() -> None:
    below = {path[-1] for path in COMMANDS if len(path) > 1 and path[-1] != "jsonl"}

    assert sorted(below - set(ELSEWHERE) - set(VERBS)) == []
    for meant in ELSEWHERE.values():
        for one in meant:
            assert tuple(word for word in one.split()[1:] if not word.startswith("-")) in COMMANDS, one
