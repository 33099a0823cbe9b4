"""Records without asyncio: the same methods, each waiting."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis import ABSENT, BlockingHistory, Message, RecordConflict, RecordPut


def test_records_are_put_read_and_deleted(tmp_path: Path) -> None:
    with BlockingHistory(tmp_path / "bot.outbox.db") as history:
        records = history.records(conversation="chat-1")
        receipt = records.put(("form",), "step", {"at": 3}, expected=ABSENT, tags={"run": "r"})
        assert receipt.saved(15) and not receipt.superseded(15) and receipt.revision is not None
        found = records.get(("form",), "step")
        assert found is not None and found.value == {"at": 3} and found.revision == receipt.revision
        with pytest.raises(RecordConflict):
            records.put(("form",), "step", 4, expected=ABSENT)
        kept = records.put(("form",), "step", 4, expected=ABSENT, on_exists="keep")
        assert kept.kept and kept.saved(0)
        with history.transaction() as tx:
            tx.append("chat-1", Message.user("hello"))
            tx.put(records, ("form",), "other", b"bytes")
            tx.delete_record(records, ("form",), "step")
        several = records.put_many([RecordPut(("a",), "1", 1), RecordPut(("b",), "1", 2)])
        assert [one.saved(15) for one in several] == [True, True]
        assert [one.key for one in records.list(("form",))] == ["other"]
        assert records.namespaces() == (("a",), ("b",), ("form",))
        assert not history.records.find({"run": "r"})
        assert records.delete_where(("a",)).saved(15) and records.erase().saved(15)
        assert not records.list()
        assert [one.text for one in history.messages("chat-1")] == ["hello"]
