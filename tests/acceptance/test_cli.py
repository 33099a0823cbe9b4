"""The letopis command: its commands, options and help, exit codes and messages."""

import re
import shlex
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import click
import pytest

from letopis.ops.cli import ELSEWHERE, VERBS, cli
from letopis.ops.cli.interface.command import SHARED, LazyGroup, SharedOption, Verb, first_sentence
from letopis.ops.cli.interface.exit_codes import MAX_LINE_LENGTH, CommandExit, Exit, explain, one_line, run
from letopis.ops.cli.interface.options import settings, with_options
from letopis.ops.cli.interface.output import format_duration, printable, table, truncate
from letopis.ops.cli.status import _store_state
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import (
    ConfigurationError,
    ConversationGone,
    IdReused,
    InvalidInput,
    OutboxFull,
    OutboxUnavailable,
)
from letopis.store.model.events import utc_now
from tests.support.child import ran
from tests.support.fix_command import every_command
from tests.support.paths import ROOT

SECRET = "hunter2-correct-horse"


pytestmark = pytest.mark.usefixtures("elsewhere")


COMMANDS: Final = dict(every_command())


HELP = """
import sys
from letopis.ops.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(*sys.modules, file=sys.stderr)
    sys.exit(end.code)
"""


@pytest.mark.parametrize(
    ("arguments", "loaded", "heavy"),
    [
        ("--help", "click", {"sqlalchemy", "alembic", "orjson", "anyio", "asyncio", "rich", "aiosqlite"}),
        ("relay --help", "click", {"sqlalchemy", "alembic"}),
        # These two are run every minute: SQLAlchemy alone would more than double what they take.
        ("status", "letopis.outbox.operations.status", {"sqlalchemy", "alembic", "aiosqlite", "rich"}),
        ("healthcheck", "letopis.outbox.operations.status", {"sqlalchemy", "alembic", "aiosqlite", "rich"}),
    ],
)
async def test_no_database_is_imported_without_need(arguments: str, loaded: str, heavy: set[str]) -> None:
    """What keeps `--help` within 0.1 s of bare Python, without a clock that a busy machine would upset."""
    await (await OutboxFile.open("bot.outbox.db")).close()

    done = ran(sys.executable, "-c", HELP, *arguments.split())

    assert ("Usage: letopis" in done.stdout) is arguments.endswith("--help")
    assert loaded in done.stderr.split()
    assert heavy & set(done.stderr.split()) == set()


def test_a_group_alone_prints_its_help(letopis: Any) -> None:
    for path in (path for path, one in COMMANDS.items() if isinstance(one, click.Group)):
        bare = letopis(*path)
        assert bare == letopis(*path, "--help")
        assert (bare.code, bare.err) == (Exit.OK, "")
        assert bare.out.startswith("Usage: letopis")
        assert "\nCommands:\n" in bare.out


def test_the_module_runs_as_the_command_does() -> None:
    done = ran(sys.executable, "-m", "letopis.ops.cli", "--version")

    assert (done.returncode, done.stdout) == (0, f"letopis {version('letopis')}\n")


def test_every_command_has_help_and_takes_the_options_of_all() -> None:
    for path, command in COMMANDS.items():
        context = click.Context(command)
        options = [one for one in command.params if isinstance(one, click.Option)]

        assert command.help, path
        assert {"--outbox", "--store", "--config", "--debug"} <= {name for one in options for name in one.opts}, path
        for option in (one for one in options if not one.hidden):
            assert option.help, (path, option.name)
            assert str(option.envvar or "") in str(option.get_help_record(context)), (path, option.name)


@click.group(cls=LazyGroup, verbs={"show": ("tests.acceptance.test_cli:show", "Show.")})
@with_options
def probe() -> None:
    """A group as the real one."""


@click.command()
@with_options
def show() -> None:
    found = settings()
    click.echo(f"{found.outbox} {found.outbox_from}")


def test_the_option_nearest_to_the_verb_holds_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LETOPIS_OUTBOX", "variable.db")
    for words, shown in (
        ("--outbox a.db show", "a.db --outbox"),
        ("show --outbox a.db", "a.db --outbox"),
        ("--outbox a.db show --outbox b.db", "b.db --outbox"),
        ("show", "variable.db LETOPIS_OUTBOX"),
    ):
        assert run(probe, words.split()) == 0
        assert capsys.readouterr().out == f"{shown}\n"


def fault(fault_class: FaultClass) -> StoreFault:
    return StoreFault(fault_class=fault_class, code="x", reason="it failed")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("wrong"), 78),
        (fault(FaultClass.MISCONFIGURED), 78),
        (fault(FaultClass.UNAVAILABLE), 75),
        (fault(FaultClass.UNKNOWN_OUTCOME), 75),
        (OutboxUnavailable("locked"), 75),
        (OutboxFull("full"), 75),
        (InvalidInput("after", "is no place of a list"), 2),
        (IdReused(conversation_id="c", event_id=UUID(int=1)), 2),
        (ConversationGone(conversation_id="c"), 1),
        (FileNotFoundError(2, "No such file or directory", "x"), 1),
        (CommandExit(Exit.NOTHING, "none"), 3),
        (CommandExit(Exit.FAILED), 1),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [ConfigurationError("wrong")])]), 78),
    ],
)
def test_every_error_ends_with_its_code_and_one_line(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "wrong" if isinstance(error, ExceptionGroup) else explain(error)[1]

    assert run(_raising(error), []) == code

    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"letopis: {said}\n" if said else "")
    assert "\n" not in said


def test_an_error_of_others_is_not_quoted_without_debug(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError(f"postgresql://bot:{SECRET}@db")

    assert run(_raising(error), []) == 1
    quiet = capsys.readouterr().err
    assert run(_raising(error), ["--debug"]) == 1
    loud = capsys.readouterr().err

    assert SECRET not in quiet
    assert "unexpected RuntimeError" in quiet
    assert "Traceback" in loud


def _raising(error: BaseException) -> click.Command:
    @click.command()
    @with_options
    def verb() -> None:
        """Fail."""
        raise error

    return verb


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = (
        "import sys\nfrom letopis.ops.cli.interface.exit_codes import run\nimport click\n"
        "@click.command()\ndef verb():\n    [click.echo('x' * 1000) for _ in range(1000)]\n"
        "sys.exit(run(verb, []))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()

    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 1


def test_what_is_shown_is_one_harmless_line() -> None:
    assert one_line("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert len(one_line("x" * 10_000)) == MAX_LINE_LENGTH + 3
    assert printable("\x1b]0;x\x07 \u009b \u202e Ёж 🦔") == "\\x1b]0;x\\x07 \\x9b \\u202e Ёж 🦔"
    assert printable("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert truncate("a\n  b " + "c" * 50, 10) == "a b ccc..."
    assert table(("A", "B"), (("x", "1"), ("long", "22")), right=(1,)) == "A      B\nx      1\nlong  22"
    spans = {None: "-", -3: "0 s", 59.9: "59 s", 61: "1 min 1 s", 7260: "2 h 1 min", 90_000: "1 d 1 h"}
    assert {seconds: format_duration(seconds) for seconds in spans} == spans


def test_no_line_of_help_is_missing_from_the_reference() -> None:
    """Every verb and every option is in the documentation."""
    text = CLI_PAGE.read_text(encoding="utf-8")
    missing: list[Any] = []
    for path, command in COMMANDS.items():
        if path and f"letopis {' '.join(path)}" not in text:
            missing.append(path)
        missing += [
            (path, name)
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.hidden
            for name in parameter.opts
            if name.startswith("--") and f"`{name}" not in text
        ]

    assert not missing


@pytest.mark.parametrize(
    ("state", "since", "next_attempt", "expected"),
    [
        ("closed", None, None, "reachable"),
        ("open", -8.5, 5.5, "unreachable for 8 s (unavailable x); next attempt in 5 s"),
        ("half_open", None, None, "unreachable (unavailable x); retrying now"),
    ],
)
def test_status_says_since_when_the_store_is_unreachable_and_when_it_is_tried_next(
    state: str, since: float | None, next_attempt: float | None, expected: str
) -> None:
    moments = [span and utc_now() + timedelta(seconds=span) for span in (since, next_attempt)]
    breaker = SimpleNamespace(state=state, reason="unavailable x", since=moments[0], next_attempt_at=moments[1])
    status: Any = SimpleNamespace(breaker=breaker, relay=SimpleNamespace(holder="relay"))

    assert _store_state(status) == expected


# The help: examples that work, one line for what is inherited, and hints that lead somewhere.

CLI_PAGE: Final = ROOT / "docs" / "reference" / "cli.md"
MAX_COLUMNS: Final = 88
"""Of a code block in the documentation."""


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
def test_every_command_has_examples_that_it_takes_and_the_reference_shows(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    assert isinstance(command, Verb)
    assert command.examples

    page = re.split(r"^#+ letopis ?", CLI_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = [part for part in page if part.startswith(f"{' '.join(path)}\n")]
    assert "```bash\n" + "\n".join(command.examples) + "\n```" in section
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


@pytest.mark.parametrize("path", [path for path in COMMANDS if path], ids=" ".join)
def test_inherited_options_are_one_sentence(path: tuple[str, ...], letopis: Any) -> None:
    code, text, _ = letopis(*path, "--help")

    assert code == 0
    assert "Options of every command: --outbox, --store, --config, --debug, --help" in " ".join(text.split())
    assert "LETOPIS_CONFIG" not in text
    assert "..." not in text.partition("\nCommands:\n")[2]
    if isinstance(COMMANDS[path], Verb):
        assert f"\nExamples:\n  {COMMANDS[path].examples[0]}\n" in text  # type: ignore[attr-defined]


def test_the_help_of_letopis_itself_explains_them_and_lists_first_sentences(letopis: Any) -> None:
    text = letopis("--help").out

    assert tuple(one.opts[0] for one in cli.params if isinstance(one, SharedOption)) == SHARED
    assert all(f"  {name} " in text for name in SHARED)
    assert "LETOPIS_CONFIG" in text
    assert first_sentence("Do this: that and\nthat. Exits with 3.\n\nMore.") == "Do this: that and that."


def test_every_hint_leads_to_a_command_and_every_command_has_one() -> None:
    below = {path[-1] for path in COMMANDS if len(path) > 1 and path[-1] != "jsonl"}
    meant = [one for some in ELSEWHERE.values() for one in some]

    assert sorted(below - set(ELSEWHERE) - set(VERBS)) == []
    assert [verb for verb, (_, line) in VERBS.items() if not line.endswith(".")] == []
    words = [tuple(word for word in one.split()[1:] if not word.startswith("-")) for one in meant]
    assert [one for one in words if one not in COMMANDS] == []
