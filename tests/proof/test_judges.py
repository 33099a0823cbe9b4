"""What no control of the proof shows: what its judges take for kept, refused, promised, torn and unread."""

import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from letopis import History, Message
from letopis.store import Closed, FaultClass, InvalidInput, LetopisError, RecordedEvent, StoreFault
from tests.campaigns.record_invariants import RecordAck
from tests.proof.corruption.part import NOT_READ, TIMES
from tests.proof.inputs import constructing
from tests.proof.inputs.calls import TABLES, parameters, untried
from tests.proof.inputs.running import fault_of, found_in
from tests.proof.power.disk import SECTOR, Disk, Kind, Model, Operation
from tests.proof.simulation.mutants import MUTANTS
from tests.proof.simulation.part import judged
from tests.proof.simulation.world import DIED, Result
from tests.support.defects import DEFECTS
from tests.support.promises import PATHS, WrittenPromises, line_of, read_promises

EVENT = RecordedEvent(
    conversation_id="c",
    event_id=UUID(int=1),
    origin_id=UUID(int=2),
    sequence=1,
    type="custom.x",
    schema_version=1,
    data={"a": [{"b": -0.0, "c": "x"}, 1]},
    metadata={"m": True},
    digest=b"",
    occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("error", "proper"),
    [
        (InvalidInput("field", "must be something else"), True),
        (Closed("the history is closed"), True),
        (TypeError("unsupported operand"), False),
        (StoreFault(fault_class=FaultClass.POISON, code="22021", reason="a value was refused"), False),
        (LetopisError(""), False),
        (InvalidInput("field", "holds a\x1b[2J sign"), False),
    ],
)
def test_what_is_a_proper_refusal(error: Exception, proper: bool) -> None:
    assert (fault_of(error) is None) is proper


def test_what_counts_as_kept() -> None:
    kept = ("x", "c", 1, True, -0.0, {"m": True}, [{"b": -0.0, "c": "x"}, 1], None)
    other = ("y", 1.0, 0.0, {"m": 1}, 10**5_000)

    assert [found_in(value, [EVENT]) for value in (*kept, *other)] == [True] * len(kept) + [False] * len(other)


def test_nothing_public_is_left_out_of_the_hostile_runs_without_a_reason() -> None:
    assert untried() == []
    assert constructing.untried() == []
    assert all(parameters(cls, method) is not None for cls, table in TABLES.items() for method in table)


def test_half_a_line_is_no_promise(tmp_path: Path) -> None:
    record, path = RecordAck("\1s:bots:3", UUID(int=4), 1, None), tmp_path / "acks"
    written = WrittenPromises(path)
    written.keep_record(record)
    written.keep_path()
    written.close()
    lines = [line_of("chat", UUID(int=1), 1), line_of("chat", UUID(int=1), None, saved=True), path.read_bytes()]

    kept = read_promises(b"".join((*lines, line_of("chat", UUID(int=3), 3)[:-1])))

    assert (kept.acks, kept.saved) == ([("chat", UUID(int=1), 1)], [UUID(int=1)])
    assert (kept.records, kept.paths, kept.possible_paths) == ([record], 1, (PATHS[0], PATHS[1]))


def test_a_torn_write_leaves_some_sectors() -> None:
    disk, old, new = Disk(), b"a" * (3 * SECTOR), b"b" * (2 * SECTOR)
    for kind, name, data, offset in (
        *((Kind.CREATE, "x", b"", 0), (Kind.SYNC_BEGIN, "", b"", 0), (Kind.SYNC, "", b"", 0)),
        *((Kind.WRITE, "x", old, 0), (Kind.SYNC_BEGIN, "x", b"", 0), (Kind.SYNC, "x", b"", 0)),
        (Kind.WRITE, "x", new, SECTOR // 2),
    ):
        disk.apply(Operation(kind=kind, name=name, data=data, offset=offset))
    chance = random.Random(1)

    assert len({disk.left(Model.TORN, chance)["x"] for _ in range(300)}) == 2**3
    assert disk.left(Model.DROPPED, chance) == {"x": old}


async def test_what_no_digest_covers_is_where_the_proof_of_corruption_looks_for_it(tmp_path: Path) -> None:
    async with History(tmp_path / "bot.outbox.db") as history:
        await history.append("chat-1", Message.user("words"))
        assert await history.drained(20)
    names: dict[str, list[str]] = {}
    for path in (tmp_path / "bot.outbox.db", tmp_path / "bot.history.db"):
        with closing(sqlite3.connect(path)) as connection:
            for table in {*NOT_READ, *TIMES}:
                if columns := connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall():
                    names[table] = [name for (name,) in columns]

    assert {names[table][place] for table, places in TIMES.items() for place in places} == {
        "occurred_at",
        "recorded_at",
    }
    left_out = {"appended_at", "attempts", "due_at", "pending_since", "fault_class", "fault"}
    tables = ("letopis_outbox_events", "letopis_outbox_lanes")
    assert {names[table][place] for table in tables for place in NOT_READ[table]} == left_out


def test_a_mutant_is_planted_and_not_caught_by_a_process_that_it_ended() -> None:
    died = Result(seed=1, profile="storm", broken=[f"1.5 s: bot-0 {DIED} AttributeError('no such function')"])
    lost = Result(seed=2, profile="storm", broken=["2.5 s: 'chat' is lost"])

    assert [judged("a defect", found).violations for found in ([died], [died, lost])] == [0, 1]
    assert MUTANTS.keys() <= DEFECTS.keys()
