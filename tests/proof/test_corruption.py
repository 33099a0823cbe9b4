"""What the proof of corruption does to a file is what it says: one bit, one page, an end, and never nothing."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from letopis import History, Message
from tests.proof.corruption.files import DAMAGES, PAGE, flipped
from tests.proof.corruption.part import NOT_READ, TIMES


@pytest.mark.parametrize("seed", range(20))
def test_a_flip_changes_one_bit(seed: int) -> None:
    data = os.urandom(3 * PAGE)
    damaged = flipped(data, Random(seed))

    assert sum((one ^ two).bit_count() for one, two in zip(data, damaged, strict=True)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_other_damages_change_whole_pages(seed: int) -> None:
    data = os.urandom(6 * PAGE)
    changed = {
        what: [
            place
            for place in range(6)
            if damage(data, Random(seed))[place * PAGE : (place + 1) * PAGE] != data[place * PAGE : (place + 1) * PAGE]
        ]
        for what, damage in DAMAGES.items()
    }

    assert len(changed["page zeroed"]) == 1
    assert len(changed["two pages swapped"]) == 2
    assert changed["end cut off"][-1] == 5


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
