"""What the command refuses: the code that it exits with, what it says, and that nothing is made or changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from letopis.ops.cli.interface.exit_codes import Exit
from tests.support.fix_command import Done, talk
from tests.support.sqlite_rows import change, rows

SECRET: Final = "hunter2-correct-horse"
AWAY: Final = f"postgresql://bot:{SECRET}@127.0.0.1:1/h"
USAGE, NOTHING, CONFIGURATION, LATER = Exit.USAGE, Exit.NOTHING, Exit.CONFIGURATION, Exit.LATER

IN_AN_EMPTY_FOLDER: Final = [
    ("statsu", USAGE, "did you mean 'status'?"),
    ("import jsonl x", USAGE, "did you mean `letopis history import`?"),
    ("verify", USAGE, "`letopis db verify` or `letopis outbox verify`?"),
    ("init --new-origin", CONFIGURATION, "there is no outbox"),
    (f"init --store oracle://bot:{SECRET}@db/h", CONFIGURATION, "not a supported kind of database"),
    ("status", CONFIGURATION, "letopis init"),
    ("relay --once", CONFIGURATION, "letopis init"),
    ("history import jsonl none.jsonl", USAGE, "none.jsonl cannot be read: No such file or directory"),
    ("--outbox none.db --store none.history.db history list", CONFIGURATION, "letopis db upgrade"),
    ("db check", CONFIGURATION, "there is no such file"),
    ("--store no.db db rebuild", CONFIGURATION, "letopis db upgrade"),
    ("--store no.db db anchor --out one.json", CONFIGURATION, "there is no such file"),
    (
        f"--store {AWAY} db check",
        LATER,
        "letopis: postgresql://bot:***@127.0.0.1:1/h: the history store cannot be reached",
    ),
]
OF_A_BOT: Final = [
    ("status --jsno", USAGE, "--json"),
    ("status bot.outbox.db", USAGE, "extra argument (bot.outbox.db); a file is named by --outbox, a history store by"),
    ("status a\x1b[2Jb", USAGE, "Error: "),
    ("history show c1 \u2028", USAGE, "Error: "),
    ("status --watch --check", USAGE, "--watch does not end"),
    ("relay --listen 99999", CONFIGURATION, "'99999' is no address to listen on: give a port from 0 to 65535"),
    ("outbox show", USAGE, "--conversation"),
    ("outbox show telegram:4711", USAGE, "'telegram:4711' is not the id of an event, as `letopis outbox list`"),
    ("outbox retry", USAGE, ""),
    (
        "outbox skip --reason x --yes --conversation a\udc80",
        USAGE,
        "conversation_id: has a lone surrogate (U+DC80) at 1",
    ),
    ("outbox pause --all", USAGE, "--all"),
    ("outbox skip --conversation c1 --yes", USAGE, "--reason"),
    ("outbox fix --conversation c1 --reason r", USAGE, ""),
    ("outbox fix --conversation c1 --file no.json --reason r", USAGE, "no.json"),
    ("history list --state deleted", NOTHING, ""),
    ("history list --after nowhere", USAGE, "after"),
    ("history show c3", NOTHING, ""),
    ("history show c1 --before nowhere", USAGE, "before"),
    ("history show c1 --follow --as-of 1", USAGE, "--follow"),
    *((f"history show c1 --as-of {moment}", USAGE, "as-of") for moment in ("-1", "2026-01-01", "²")),
    ("history export jsonl out.jsonl --owner 42 --conversation c1", USAGE, ""),
    ("history stats --since yesterday", USAGE, "is no RFC 3339 time"),
    ("history stats --by=", USAGE, "by"),
    ("history erase c1 --reason r --yes", USAGE, "Give --reset"),
    ("history erase --reset --reason r --yes", USAGE, "Name conversations, or an owner"),
    ("history erase --person 42 --owner 42 --delete --reason r", USAGE, "or a person with --person"),
    ("history erase c1 --reset --yes", USAGE, "--reason"),
    ("history erase c1 --reset --reason r", USAGE, "stdin is not a terminal"),
    ("history erase --person 42 --delete --reason r --receipt r.json", USAGE, "--receipt needs --wait"),
    ("history erase c1 c2 --delete --reason r --wait --receipt r.json", USAGE, "--receipt needs --wait"),
    ("history erase --person 42 --delete --reason r --wait --receipt mine --yes", Exit.FAILED, "mine exists"),
    ("history erase --person 43 --delete --reason r --wait --receipt r.json --yes", NOTHING, "no records"),
    ("history erase c1 nobody --reset --reason r --yes", NOTHING, "no conversation 'nobody'; nothing was erased"),
    ("history hold", NOTHING, ""),
    ("history hold c1", USAGE, "--reason"),
    ("history hold c1 --owner 42 --reason r", USAGE, ""),
    ("history hold --release", USAGE, ""),
    ("history retain --dry-run", USAGE, "retention"),
    ("history tag unknown --add pinned", NOTHING, ""),
    ("history tag c1", USAGE, "--add"),
    ("db anchor --out mine", Exit.FAILED, "mine exists"),
    ("history export jsonl mine", Exit.FAILED, "mine exists"),
    ("db rebuild --conversation nowhere", NOTHING, "there is no conversation 'nowhere'"),
    ("demo --keep .", USAGE, "is not empty"),
    ("move", USAGE, "name the target"),
    ("move --to bot.history.db", CONFIGURATION, "the same store"),
    ("move --to bot.outbox.db", CONFIGURATION, "the same file"),
    ("move --to nowhere/new.db", CONFIGURATION, "does not exist"),
    (f"move --to {AWAY}", LATER, "try again later"),
    ("move --store none.db --to new.db", CONFIGURATION, "there is no such file"),
    ("move --cancel --to new.db", USAGE, "takes no --to"),
    ("move --cancel", NOTHING, "takes deliveries"),
]


@pytest.fixture(scope="module")
def bot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bot: one conversation of owner 42, which the history store holds."""
    folder = tmp_path_factory.mktemp("bot")
    talk("what nobody else may read", path=folder / "bot.outbox.db")
    (folder / "mine").write_text("mine")
    return folder


def refused(done: Done, code: int, says: str) -> None:
    """Require a code, words on stderr alone, and nothing among them that could move a cursor or is a secret."""
    assert (done.code, done.out) == (code, ""), done.err
    assert says in done.err
    for word in ("Traceback", SECRET, "nobody else", "by itself"):
        assert word not in done.err
    assert not set("\x1b\u202e\u2028") & set(done.err)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("words", "code", "says"), IN_AN_EMPTY_FOLDER, ids=[one[0] for one in IN_AN_EMPTY_FOLDER])
def test_nothing_is_made_where_nothing_is(
    words: str, code: Exit, says: str, letopis: Callable[..., Done], tmp_path: Path
) -> None:
    refused(letopis(*words.split(" ")), code, says)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("words", "code", "says"), OF_A_BOT, ids=[ascii(one[0]) for one in OF_A_BOT])
def test_nothing_is_changed_by_a_mistake(
    words: str, code: Exit, says: str, letopis: Callable[..., Done], bot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bot)
    before = held(bot)

    refused(letopis(*words.split(" ")), code, says)

    assert held(bot) == before


def held(folder: Path) -> tuple[list[str], list[object]]:
    """Return the names of the files in a bot's folder, and what both databases and a file of the user hold."""
    names = {path.name for path in folder.iterdir() if not path.name.endswith((".lock", "-wal", "-shm"))}
    lanes = rows(folder / "bot.outbox.db", "SELECT conversation_id, head, delivered, state FROM letopis_outbox_lanes")
    logged = rows(folder / "bot.history.db", "SELECT position, type, data FROM letopis_events")
    closed = rows(folder / "bot.history.db", "SELECT closed, moved_to FROM letopis_log_heads, letopis_store")
    return sorted(names), [*lanes, *logged, *closed, (folder / "mine").read_text()]


@pytest.mark.usefixtures("elsewhere")
def test_a_file_of_another_kind_and_a_setting_beyond_its_limits(letopis: Callable[..., Done]) -> None:
    Path("bot.outbox.db").write_text("hello" * 1000)
    refused(letopis("status"), CONFIGURATION, "is no SQLite database")

    Path("letopis.toml").write_text("[daemon]\nstop_timeout = -1\n")
    refused(letopis("relay"), CONFIGURATION, "stop_timeout")


@pytest.mark.usefixtures("elsewhere")
def test_a_move_to_a_store_of_a_newer_release_is_refused(letopis: Callable[..., Done]) -> None:
    for path in ("bot.history.db", "new.db"):
        assert letopis("--store", path, "db", "upgrade").code == 0
    change("new.db", "UPDATE letopis_version SET version_num = '9999'")

    refused(letopis("move", "--to", "new.db"), CONFIGURATION, "install the newer release")
