"""The help of the command: examples that work, one line for what is inherited, and hints that lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

import click
import pytest

from letopis.outbox.cli import ELSEWHERE, VERBS, cli
from letopis.outbox.cli.interface.command import SHARED, SharedOption, Verb, first_sentence
from letopis.outbox.cli.interface.exit_codes import Exit
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("elsewhere")

PAGE: Final = ROOT / "docs" / "reference" / "cli.md"
MAX_COLUMNS: Final = 88
"""Of a code block in the documentation."""


def commands() -> dict[tuple[str, ...], click.Command]:
    """Every command by its words."""
    found: dict[tuple[str, ...], click.Command] = {}

    def walk(path: tuple[str, ...], command: click.Command) -> None:
        found[path] = command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                walk((*path, name), below)

    walk((), cli)
    return found


COMMANDS: Final = commands()
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


def test_words_that_need_their_group_are_hinted_at(letopis: Any) -> None:
    code, _, error = letopis("import", "jsonl", "x")

    assert code == Exit.USAGE
    assert "did you mean `letopis history import`?" in error
    assert "`letopis db verify` or `letopis outbox verify`?" in letopis("verify")[2]


def test_every_hint_leads_to_a_command_and_every_command_has_one() -> None:
    below = {path[-1] for path in COMMANDS if len(path) > 1 and path[-1] != "jsonl"}

    assert sorted(below - set(ELSEWHERE) - set(VERBS)) == []
    for meant in ELSEWHERE.values():
        for one in meant:
            assert tuple(word for word in one.split()[1:] if not word.startswith("-")) in COMMANDS, one


def test_what_is_no_event_id_is_told_apart_from_a_conversation(letopis: Any) -> None:
    code, _, error = letopis("outbox", "show", "telegram:4711")

    assert code == Exit.USAGE
    assert "'telegram:4711' is not the id of an event, as `letopis outbox list` prints it" in error
    assert "give --conversation ID" in error


def test_a_wrong_address_is_shown_with_the_range(letopis: Any) -> None:
    Path("bot.outbox.db").touch()
    code, _, error = letopis("relay", "--listen", "99999")

    assert code == Exit.CONFIGURATION
    assert "'99999' is no address to listen on: give a port from 0 to 65535" in error


def test_a_fault_of_the_store_names_the_store_without_its_password(letopis: Any) -> None:
    code, _, error = letopis("--store", "postgresql://bot:hunter2@127.0.0.1:1/history", "db", "check")

    assert code == Exit.LATER
    assert error.startswith("letopis: postgresql://bot:***@127.0.0.1:1/history: the history store cannot be reached")
    assert "hunter2" not in error
    assert "by itself" not in error
