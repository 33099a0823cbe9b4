"""Run every verb of `letopis` with hostile options, environment, configuration and outbox files."""

import asyncio
import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import FrameType
from typing import Final
from unittest.mock import patch

import click

from letopis.ops.cli import cli
from letopis.ops.cli.interface.exit_codes import Exit, run
from letopis.outbox import History
from letopis.store import Message
from tests.proof.harness import Setting, Tally
from tests.proof.inputs.lines import mutated
from tests.support.daemons import letopis
from tests.support.values.hostile import kinds

HUNG, HALF = -1, -2  # in place of an exit code
UNFINISHED: Final = {HUNG: "hangs", HALF: "it has failed, and half an export is there"}
CODES: Final = frozenset({*Exit, 130})
TIMEOUT_SECONDS: Final = 20.0
ALONE: Final[Mapping[str, str]] = {  # verbs that are not run, and why
    "demo": "a bot of half a minute, without input",
    "follow": "prints until interrupted; wrong names are tried in `tests/integration/test_follow.py`",
}
FIRST: Final[Mapping[str, tuple[str, ...]]] = {
    "relay": ("--once",),
    "console": ("--host", "192.0.2.1"),  # no address of this machine, so that it ends
    "history import jsonl": ("in.jsonl", "--timeout", "1"),
    "history export jsonl": ("-",),
    "history export training": ("-",),
    "history show": ("chat-1",),
    "history search": ("words",),
    "outbox show": ("chat-1",),
    "outbox fix": ("chat-1", "--data", "in.jsonl"),
    "outbox skip": ("chat-1", "--reason", "none"),
    "outbox export": ("out.jsonl",),
}
"""Arguments that are in order, where a verb needs some or would not end."""
VARIABLES: Final = (
    *("LETOPIS_OUTBOX", "LETOPIS_STORE", "LETOPIS_STORE_FILE", "LETOPIS_CONFIG", "LETOPIS_LOG_LEVEL"),
    *("LETOPIS_LOG_FORMAT", "LETOPIS_LISTEN", "LETOPIS_STOP_TIMEOUT", "LETOPIS_ALERTS", "LETOPIS_ALERTS_FILE"),
    *("LETOPIS_ALERTS_PRIVATE", "LETOPIS_LANGUAGE", "LETOPIS_DEBUG", "STATE_DIRECTORY", "NO_COLOR"),
)
TOML: Final = """outbox = "bot.outbox.db"
store = "sqlite:///bot.history.db"
[relay]
base = 1.0
attempts = 3
jitter = "full"
[daemon]
stop_timeout = 8
log_level = "INFO"
[alerts]
private = false
language = "en"
stuck_after = 300
[retention]
keep_last = 200
keep_hours = 24
"""


class Hung(BaseException):
    """A command did not end; no command may catch it."""


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str


def here(arguments: Sequence[str], environment: dict[str, str] | None = None) -> Said:
    """Run the command in this process."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True) for _ in range(2))
    variables = {name: value for name, value in os.environ.items() if name not in VARIABLES} | (environment or {})
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_SECONDS)
    try:
        with (
            patch.dict(os.environ, variables, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = int(run(cli, list(arguments)))
    except Hung:
        code = HUNG
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    told = [one.buffer.getvalue().decode("utf-8", "replace") for one in (out, err)]  # type: ignore[attr-defined]
    return Said(code, *told)


def judge(label: str, said: Said, outcomes: Tally) -> None:
    """Note what a command may not do."""
    outcomes.count += 1
    outcomes.figures[f"{said.code:4}"] += 1
    unfinished = UNFINISHED.get(said.code, f"exit code {said.code}")
    outcomes.require(said.code in CODES, f"{label}: {unfinished}")
    for words in ("Traceback", "unexpected ", "Exception ignored"):
        asked = words == "Traceback" and " debug=" in label
        if words in said.err and "unexpected extra argument" not in said.err and not asked:
            outcomes.problems.append(f"{label}: {words!r} on stderr: {said.err.strip()[-200:]!a}")
            break
    speaks = said.code in (Exit.OK, 130) or bool((said.err + said.out).strip())
    outcomes.require(speaks, f"{label}: exit code {said.code} and not a word")
    moves = any(sign in said.err for sign in "\x1b\x9b\u202e\u2028\x07\x00")
    outcomes.require(not moves, f"{label}: stderr could move a cursor: {said.err[-200:]!a}")
    for half in Path().glob("*.part"):
        outcomes.problems.append(f"{label}: {half} is left behind")
        half.unlink()


def verbs(group: click.Command = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(group, click.Group):
        yield words, group
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        if (command := group.get_command(context, name)) is not None:
            yield from verbs(command, (*words, name))


def strings() -> list[str]:
    """Return the hostile strings that an operating system passes on."""
    found = [str(one.value) for one in kinds()[0] if isinstance(one.value, str)]
    passed = [one for one in found if one.encode("utf-8", "ignore").decode() == one]
    return [one for one in passed if "\0" not in one and len(one) < 5_000] + ["\udcff", "a\udc80"]


Attempts = Iterator[tuple[str, Said]]


def judged(setting: Setting, *, attempts: Callable[[Path, Random, int], Attempts], many: tuple[int, int]) -> Tally:
    """Judge each attempt, in a folder that holds an outbox, its store and a file to import."""
    outcomes, place = Tally(), setting.folder
    with contextlib.chdir(place):
        asyncio.run(_filled(place))
        (place / "in.jsonl").write_bytes(b"".join(mutated(Random(1), number) for number in range(20)))
        for label, said in attempts(place, Random(setting.seed), setting.many(*many)):
            judge(label, said, outcomes)
    codes = ", ".join(f"{code.strip()}: {count}" for code, count in sorted(outcomes.figures.items()))
    outcomes.notes = f"exit codes {codes}"
    return outcomes


async def _filled(place: Path) -> None:
    async with History(place / "bot.outbox.db", watch=False) as history:
        for number in range(20):
            await history.append(f"chat-{number % 4}", Message.user(f"words {number}"), owner="owner-1")
        await history.drained(timeout=20)
    async with History(place / "bot.outbox.db", relay=False, watch=False) as history:
        await history.append("chat-1", Message.user("pending"))


def options(place: Path, random: Random, many: int) -> Attempts:
    """Give every option and argument of every verb hostile strings; a configuration that one writes is not kept."""
    texts = strings()
    for words, command in verbs():
        name = " ".join(words)
        if name in ALONE:
            continue
        for parameter in command.params:
            for text in random.sample(texts, many):
                inside = text.replace("..", "--").lstrip("/~") if "FILE" in str(parameter.metavar) else text
                yield f"{name} {parameter.name}={text[:40]!a}", here(_line(words, parameter, inside))
                (place / "letopis.toml").unlink(missing_ok=True)
        yield f"{name} --nothing", here([*words, f"--{random.choice(texts)}"])
    for text in random.sample(texts, many * 3):
        yield f"verb {text[:40]!a}", here([text])


def _line(words: tuple[str, ...], parameter: click.Parameter, text: str) -> list[str]:
    first = list(FIRST.get(" ".join(words), ()))
    if isinstance(parameter, click.Argument):
        return [*words, *first[1:], "--", text]
    flag = max(parameter.opts, key=len)
    if isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count):
        return [*words, *first, flag, text]
    return [*words, *first, f"{flag}={text}"]


def environment(_: Path, random: Random, many: int) -> Attempts:
    """Set every variable to hostile strings."""
    texts = strings()
    for name in VARIABLES:
        for text in random.sample(texts, many):
            verb = random.choice((("status", "--json"), ("outbox", "list"), ("doctor",), ("relay", "--once")))
            inside = text.replace("..", "--").lstrip("/~") if name != "LETOPIS_STORE" else text
            yield f"{name}={text[:40]!a} {' '.join(verb)}", here(verb, {name: inside})


def configuration(place: Path, random: Random, many: int) -> Attempts:
    bombs = [f"outbox = {'[' * depth}{']' * depth}" for depth in (10, 500, 1_000, 5_000, 100_000)]
    bombs += [f"{'a.' * depth}b = 1" for depth in (10, 500, 5_000)]
    bombs += [f"[{'.'.join('a' * 5_000)}]", "outbox = 1", "[relay]\nattempts = 1e999", "[relay]\nbase = nan"]
    bombs += [f"[relay]\nattempts = {'9' * 5_000}", "[retention]\nkeep_hours = 1e300", f"[alerts]\n{TOML}"]
    texts = [*(one.encode() for one in bombs), *(_changed(TOML.encode(), random) for _ in range(many))]
    for number, text in enumerate(texts):
        (place / "letopis.toml").write_bytes(text)
        verb = random.choice((("status",), ("doctor", "--json"), ("outbox", "list"), ("relay", "--once")))
        yield f"letopis.toml {number} {text[:60]!a} {' '.join(verb)}", here(verb)


def _changed(raw: bytes, random: Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.randrange(1, 4)):
        place = random.randrange(len(changed))
        match random.randrange(4):
            case 0:
                changed[place] = random.randrange(256)
            case 1:
                del changed[place : place + random.randrange(1, 12)]
            case 2:
                changed[place:place] = random.choice((b'"', b"'''", b"[", b"\n", b"\xff", b"\\u0000", b"1e999", b"="))
            case _:
                changed[place:place] = changed[: random.randrange(40)]
    return bytes(changed)


def outboxes(place: Path, random: Random, many: int) -> Attempts:
    """Put hostile files where the outbox should be."""
    target = place / "bot.outbox.db"
    whole = target.read_bytes()
    looks = (("status", "--json"), ("outbox", "list", "--json"), ("doctor", "--json"), ("relay", "--once"))
    for number, (name, raw) in enumerate(_damaged(whole, random, many)):
        for beside in ("-wal", "-shm", ".lock"):
            target.with_name(f"bot.outbox.db{beside}").unlink(missing_ok=True)
        target.write_bytes(raw)
        look = looks[number % len(looks)]
        yield f"outbox {name} {' '.join(look)}", here(look)
        said = here(("history", "export", "jsonl", "out.jsonl", "--force"))
        half = said.code and (place / "out.jsonl").exists()
        yield f"outbox {name} history export", replace(said, code=HALF) if half else said
        (place / "out.jsonl").unlink(missing_ok=True)
    target.unlink()
    for name, make in (
        ("folder", lambda: target.mkdir()),
        ("pipe", lambda: os.mkfifo(target)),
        ("link to itself", lambda: target.symlink_to(target)),
        ("device", lambda: target.symlink_to("/dev/zero")),
    ):
        make()
        for verb in looks:
            yield f"outbox is a {name} {' '.join(verb)}", here(verb)
        target.rmdir() if name == "folder" else target.unlink()


def _damaged(whole: bytes, random: Random, many: int) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "text", b"this is no database\n" * 300
    yield "header only", whole[:100]
    yield "first page only", whole[:4096]
    yield "zeros", bytes(len(whole))
    for number in range(many):
        changed = bytearray(whole)
        match number % 4:
            case 0:
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            case 1:
                for _ in range(50):
                    changed[random.randrange(len(changed))] = random.randrange(256)
            case 2:
                changed = changed[: random.randrange(len(changed))]
            case _:
                changed[random.randrange(100)] = random.randrange(256)  # in the header of the file
        yield f"{('bit', 'bytes', 'cut', 'header')[number % 4]} {number}", bytes(changed)


def processes(place: Path, random: Random, many: int) -> Attempts:
    """Run a sample as real processes."""
    texts = [one for one in strings() if not one.startswith("-")]
    looks: Sequence[tuple[str, ...]] = (("status",), ("history", "show"), ("outbox", "list", "--conversation"))
    for number in range(many):
        text, words = random.choice(texts), looks[number % len(looks)]
        done = letopis(*words, *(["--"] if number % 2 else []), text, folder=place)
        yield f"{' '.join(words)} {text[:40]!a}", Said(done.returncode, done.stdout, done.stderr)
