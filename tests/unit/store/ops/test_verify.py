"""`db verify` names what was changed by hand in an SQLite store, and a WAL that is not whole."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from letopis.store import ConversationStarted, ConversationStore, Message
from letopis.store.ops import verify
from tests.support.sayings import change, new_outbox, problems

UNMATCHED = "conversation 'c': the counter of an outbox does not match its "

ACTIVE_OF_ANN = "the active conversation of owner 'ann'"


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE letopis_owners SET next_number = 1", ["owner 'ann' would get a conversation number twice"]),
        (
            "UPDATE letopis_owners SET active_conversation_id = 'gone', active_partition = 0",
            [f"{ACTIVE_OF_ANN} does not exist", f"{ACTIVE_OF_ANN} is not the one that was activated last"],
        ),
        (
            "UPDATE letopis_lanes SET origin_id = zeroblob(16)",
            [f"{UNMATCHED}lane", f"{UNMATCHED}events", "1 lanes belong to an unknown outbox"],
        ),
        (
            "DELETE FROM letopis_log_heads",
            ["the log has no counters", "2 events are in a partition that does not exist"],
        ),
        (
            "UPDATE letopis_events SET data = CAST(X'FF' AS TEXT) WHERE position = 1",
            ["the log cannot be read [OperationalError]"],
        ),
    ],
)
async def test_change_by_hand_is_named(tmp_path: Path, statement: str, found: list[str]) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await new_outbox(store, "c", ConversationStarted(owner_id="ann"), Message.user("hello"))
        assert await problems(store) == []
        await change(store, statement)
        assert await problems(store) == found


@pytest.mark.parametrize(
    ("end", "grows", "problem"),
    [
        (20, False, "the WAL ends within its header, after 20 bytes"),
        (-100, False, "the WAL ends within a frame, after 4020 bytes of it"),
        (-100, True, ""),
    ],
)
def test_wal_that_is_cut_off_is_a_problem_unless_it_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int | None, grows: bool, problem: str
) -> None:
    wal = tmp_path / "history.db-wal"
    with closing(sqlite3.connect(tmp_path / "open.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (value)")
        subprocess.run(["cp", str(tmp_path / "open.db-wal"), str(wal)], check=True)
    content = wal.read_bytes()
    ends = iter(range(-99, 0))
    wal.write_bytes(content[:end])
    monkeypatch.setattr(verify.time, "sleep", lambda _: grows and wal.write_bytes(content[: next(ends)]))
    assert verify.wal_problem(tmp_path / "history.db") == problem
