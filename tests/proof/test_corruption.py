"""What no digest covers, and no reader sees, is where the proof of corruption looks for it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from letopis import History, Message
from tests.proof.corruption.part import NOT_READ, TIMES


async def test_what_no_digest_covers_is_where_the_proof_looks_for_it(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        await history.append("chat-1", Message.user("words"))
        assert await history.drained(20)
    names: dict[str, list[str]] = {}
    for path in (tmp_path / "bot.outbox.db", tmp_path / "bot.history.db"):
        with closing(sqlite3.connect(path)) as connection:
            for table in {*NOT_READ, *TIMES}:
                if columns := connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall():
                    names[table] = [name for (name,) in columns]

    assert {table: [names[table][place] for place in places] for table, places in TIMES.items()} == {
        "letopis_outbox_events": ["occurred_at"],
        "letopis_events": ["occurred_at", "recorded_at"],
        "letopis_search": ["occurred_at"],
    }
    assert names["letopis_outbox_events"][NOT_READ["letopis_outbox_events"][0]] == "appended_at"
    assert [names["letopis_outbox_lanes"][place] for place in NOT_READ["letopis_outbox_lanes"]] == [
        *("attempts", "due_at", "pending_since", "fault_class", "fault")
    ]
