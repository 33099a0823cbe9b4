"""What verbs print, and how they end, in states that an operator seldom meets."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from letopis.ops.cli.interface.exit_codes import Exit
from letopis.ops.daemon.daemon import DaemonSettings
from tests.support.fix_command import Done, talk
from tests.support.sqlite_rows import change

Command = Callable[..., Done]

pytestmark = pytest.mark.usefixtures("elsewhere")

AWAY = "postgresql://bot@127.0.0.1:1/h"
NOT_COMPARED = "was not compared"
ERASE = "history erase --delete --reason asked --yes"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("--outbox a.db --outbox b.db status", Exit.USAGE, "this command takes one --outbox"),
        ("history show c1 --transcript --json", Exit.USAGE, "--transcript and --json"),
        ("history search nowhere", Exit.NOTHING, "nothing was found"),
        ("outbox show --conversation none", Exit.NOTHING, "nothing matched"),
        ("outbox skip --missing --state ready --reason r", Exit.USAGE, "--missing is for one --conversation"),
        ("outbox fix --conversation c1 --file large.json --reason r", Exit.USAGE, "large.json is larger than an event"),
        ("relay --once --outbox none*.db", Exit.NOTHING, "no outbox matches"),
        ("db verify --anchor a.json --receipt r.json", Exit.USAGE, "Give --anchor or --receipt"),
        ("db verify --anchor large.json", Exit.FAILED, "the anchor is larger than 0 MB"),
        (f"--store {AWAY} db verify", Exit.LATER, "refused"),
        (f"--store {AWAY} {ERASE} c1", Exit.OK, "other outboxes are not told, and keep what they hold of it"),
        (f"--store {AWAY} outbox verify --alone", Exit.OK, "bot.outbox.db: no problems found"),
        (f"--store {AWAY} outbox verify", Exit.OK, NOT_COMPARED),
        ("--store newer.db db upgrade", Exit.CONFIGURATION, "9999"),
        ("--store newer.db db verify", Exit.FAILED, "9999"),
        ("--store newer.db outbox verify", Exit.OK, NOT_COMPARED),
        ("--store other.db db verify", Exit.FAILED, "conversation 'c1' differs from the log: tokens"),
    ],
)
def test_state_is_told_by_words_and_code(
    letopis: Command, words: str, code: Exit, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = words.split()[1] if words.startswith("--store") else "bot.history.db"
    talk("words", deliver=store != AWAY, store=store)
    if store == "newer.db":
        change(store, "UPDATE letopis_version SET version_num = '9999'")
    elif store == "other.db":
        change(store, "UPDATE letopis_conversations SET tokens = 9")
    Path("large.json").write_bytes(b" " * 1025)
    for name in ("outbox.MAX_FILE_BYTES", "verify.MAX_ANCHOR_BYTES"):
        monkeypatch.setattr(f"letopis.ops.cli.{name}", 1024)
    done = letopis(*words.split())
    assert done.code == code
    assert says in done.out + done.err and (says == NOT_COMPARED) is (NOT_COMPARED in done.err)


def test_damaged_wal_is_not_opened(letopis: Command) -> None:
    talk("words")
    Path("bot.history.db-wal").write_bytes(b"\1" * 40)
    done = letopis("db", "verify")
    assert (done.code, done.out) == (Exit.FAILED, "the header of the WAL is damaged: SQLite reads nothing of it\n")
    assert Path("bot.history.db-wal").read_bytes() == b"\1" * 40


@pytest.mark.parametrize("lost", [False, True])
def test_salvage_says_what_is_lost(letopis: Command, lost: bool) -> None:
    talk("one", "two", deliver=False)
    change("bot.outbox.db", *["DELETE FROM letopis_outbox_events WHERE sequence = 2"] * lost)
    done = letopis("outbox", "salvage", "bot.outbox.db", "--to", "new.db")
    assert (done.code, done.out) == ((Exit.FAILED, "c1  2\n") if lost else (Exit.OK, ""))
    assert ("their conversations are blocked" in done.err) is lost


@pytest.mark.parametrize(("name", "texts"), [((), ["third"]), (("--from", "copy"), ["first", "second", "third"])])
def test_follow_begins_now_or_where_it_ended(
    letopis: Command, monkeypatch: pytest.MonkeyPatch, name: tuple[str, ...], texts: list[str]
) -> None:
    talk("first", "second")
    deeds, sleep = [lambda: asyncio.to_thread(talk, "third")], anyio.sleep

    async def slept(seconds: float) -> None:
        if not deeds:
            raise KeyboardInterrupt
        await (deeds.pop()() if seconds == 0.25 else sleep(seconds))

    monkeypatch.setattr(anyio, "sleep", slept)
    done = letopis("follow", "--json", *name)
    data = [json.loads(line)["data"] for line in done.out.splitlines()]
    assert (done.code, [entry["content"] for entry in data if "content" in entry]) == (130, texts)


def test_relay_names_conversations_only_where_it_is_configured(
    letopis: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []

    async def run(configure: Callable[[], DaemonSettings]) -> None:
        read.append(configure().trace_conversations)

    monkeypatch.setattr("letopis.ops.cli.relay._run", run)
    for toml, words in (("", ()), ("[daemon]\ntrace_conversations = true\n", ()), ("", ("--trace-conversations",))):
        Path("letopis.toml").write_text(toml)
        assert letopis("relay", *words).code == Exit.OK
    assert read == [False, True, True]
