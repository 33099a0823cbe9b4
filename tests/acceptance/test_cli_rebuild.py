"""`letopis db rebuild` repairs rows from the log, and its exit code tells whether they were right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from letopis.store import ConversationStarted, ConversationStore, Message
from letopis.store.testing.outbox import Outbox
from tests.support.sqlite_rows import change, rows


@pytest.fixture
def history(elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "history.db"
    monkeypatch.setenv("LETOPIS_STORE", str(path))

    async def fill() -> None:
        async with ConversationStore.open(path) as store:
            outbox = Outbox()
            for name in ("a", "b", "c"):
                outbox.append(name, ConversationStarted(owner_id="42", title="secret"), Message.user("hello"))
            await outbox.deliver(store)

    anyio.run(fill)
    return path


def test_a_right_store_passes_the_check(history: Path, letopis: Any) -> None:
    assert letopis("db", "rebuild", "--check") == (
        0,
        "",
        "3 conversations with 6 events checked, 0 changed\n",
    )
    assert letopis("db", "rebuild") == (0, "", "0 conversations with 0 events rebuilt, 0 changed\n")
    assert letopis("db", "rebuild", "--all")[2] == "3 conversations with 6 events rebuilt, 0 changed\n"


def test_a_wrong_one_is_found_and_mended(history: Path, letopis: Any) -> None:
    change(history, "UPDATE letopis_conversations SET title = 'forged' WHERE conversation_id = 'b'")

    code, out, err = letopis("db", "rebuild", "--check")
    assert (code, out) == (1, "b: title\n")
    assert "1 differ from the log" in err
    assert "secret" not in out + err
    assert "forged" not in out + err

    code, out, err = letopis("db", "rebuild", "--conversation", "b", "--json")
    assert code == 0
    assert json.loads(out) == {
        "conversations": 1,
        "events": 2,
        "differing": 1,
        "written": 1,
        "differences": [{"conversation_id": "b", "count": 1, "names": ["title"]}],
    }
    assert letopis("db", "rebuild", "--check")[0] == 0


def test_rows_of_older_rules_are_brought_up_to_date(history: Path, letopis: Any) -> None:
    change(history, "UPDATE letopis_conversations SET rules = 1 WHERE conversation_id <> 'b'")

    assert letopis("db", "rebuild") == (0, "", "2 conversations with 4 events rebuilt, 0 changed\n")
    assert letopis("db", "rebuild")[2] == "0 conversations with 0 events rebuilt, 0 changed\n"


def test_what_the_log_does_not_have_cannot_be_mended(history: Path, letopis: Any) -> None:
    change(history, "DELETE FROM letopis_events WHERE conversation_id = 'b'")

    code, out, err = letopis("db", "rebuild", "--all")

    assert (code, out) == (1, "b: events missing\n")
    assert "cannot be rebuilt from the log: restore the database" in err


def test_the_index_is_brought_up_to_the_log(history: Path, letopis: Any) -> None:
    code, out, _ = letopis("db", "index", "--json")
    assert (code, json.loads(out)) == (0, {"events": 6})
    assert letopis("db", "index") == (0, "", "0 events indexed\n")
    assert rows(history, "SELECT count(*) FROM letopis_search WHERE document <> ''") == [(3,)]
