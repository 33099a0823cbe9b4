"""What an operator's own trigger says of an event that it refuses, on an SQLite store."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from letopis import ConversationStore, Message
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.testing.outbox import Outbox

BY_ROW = pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 47), reason="RAISE takes an expression since SQLite 3.47")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("'no such luck'", "no such luck"),
        ("'it''s not to be'", "it's not to be"),
        pytest.param("'refused: ' || NEW.data", None, marks=BY_ROW),
    ],
)
async def test_the_words_of_a_trigger_are_told_and_never_a_value(tmp_path: Path, words: str, told: str | None) -> None:
    path = tmp_path / "history.db"
    async with ConversationStore.open(f"sqlite:///{path}") as store:
        await store.prepare()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "CREATE TRIGGER mine BEFORE INSERT ON letopis_events WHEN NEW.data LIKE '%private%'"
                f" BEGIN SELECT RAISE(ABORT, {words}); END"
            )
        outbox = Outbox()
        outbox.append("c", Message.user("private"))
        with pytest.raises(StoreFault) as refused:
            await outbox.deliver(store)
        outbox.append("d", Message.user("the connection is as it was"))
        await store.apply(outbox.origin, [outbox.batch("d")])

    assert (refused.value.fault_class, refused.value.code) == (FaultClass.POISON, "SQLITE_CONSTRAINT_TRIGGER")
    assert ("trigger: " in refused.value.reason) == (told is not None)
    assert told is None or f"(trigger: {told})" in refused.value.reason
    assert "private" not in str(refused.value)
