"""`letopis db rebuild` repairs rows from the log, and its exit code tells whether they were right."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner, Result

from letopis.outbox.cli import cli
from letopis.outbox.cli.interface.exit_codes import run
from letopis.store import ConversationStarted, ConversationStore, Message
from letopis.store.testing.outbox import Outbox


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of three conversations."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "history.db"

    async def fill() -> None:
        async with ConversationStore.open(path) as store:
            outbox = Outbox()
            for name in ("a", "b", "c"):
                outbox.append(name, ConversationStarted(owner_id="42", title="secret"), Message.user("hello"))
            await outbox.deliver(store)

    anyio.run(fill)
    return path


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def rebuild(path: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run(cli, ["--store", str(path), "db", "rebuild", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_right_store_passes_the_check(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild(history, "--check", capsys=capsys) == (
        0,
        "",
        "3 conversations with 6 events checked, 0 changed\n",
    )
    assert rebuild(history, capsys=capsys) == (0, "", "0 conversations with 0 events rebuilt, 0 changed\n")
    assert rebuild(history, "--all", capsys=capsys)[2] == "3 conversations with 6 events rebuilt, 0 changed\n"


def test_a_wrong_one_is_found_and_mended(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(history, "UPDATE letopis_conversations SET title = 'forged' WHERE conversation_id = 'b'")

    code, out, err = rebuild(history, "--check", capsys=capsys)
    assert (code, out) == (1, "b: title\n")
    assert "1 differ from the log" in err
    assert "secret" not in out + err
    assert "forged" not in out + err

    code, out, err = rebuild(history, "--conversation", "b", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out) == {
        "conversations": 1,
        "events": 2,
        "differing": 1,
        "written": 1,
        "differences": [{"conversation_id": "b", "count": 1, "names": ["title"]}],
    }
    assert rebuild(history, "--check", capsys=capsys)[0] == 0


def test_rows_of_older_rules_are_brought_up_to_date(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(history, "UPDATE letopis_conversations SET rules = 1 WHERE conversation_id <> 'b'")

    assert rebuild(history, capsys=capsys) == (0, "", "2 conversations with 4 events rebuilt, 0 changed\n")
    assert rebuild(history, capsys=capsys)[2] == "0 conversations with 0 events rebuilt, 0 changed\n"


def test_what_the_log_does_not_have_cannot_be_mended(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(history, "DELETE FROM letopis_events WHERE conversation_id = 'b'")

    code, out, err = rebuild(history, "--all", capsys=capsys)

    assert (code, out) == (1, "b: events missing\n")
    assert "cannot be rebuilt from the log: restore the database" in err


def test_one_that_is_not_there(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = rebuild(history, "--conversation", "nowhere", capsys=capsys)

    assert (code, out) == (3, "")
    assert "there is no conversation 'nowhere'" in err


def test_no_store_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    code, _, err = rebuild(tmp_path / "no.db", capsys=capsys)

    assert code == 78
    assert "letopis db upgrade" in err
    assert not (tmp_path / "no.db").exists()


def test_the_help_names_it() -> None:
    result: Result = CliRunner().invoke(cli, ["db", "--help"])

    assert "rebuild" in result.output


def test_the_index_is_brought_up_to_the_log(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["--store", str(history), "db", "index", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"events": 6}
    assert run(cli, ["--store", str(history), "db", "index"]) == 0
    assert capsys.readouterr().err == "0 events indexed\n"

    with closing(sqlite3.connect(history)) as connection:
        assert connection.execute("SELECT count(*) FROM letopis_search WHERE document <> ''").fetchone() == (3,)


def test_a_store_that_is_not_there_is_not_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(cli, ["--outbox", str(tmp_path / "bot.outbox.db"), "--store", str(tmp_path / "no.db"), "db", "index"])
    assert code == 78
    assert "letopis db upgrade" in capsys.readouterr().err
