"""How processes are killed: the gate's filter, where a death is planted, and what counts as a promise."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest

from tests.campaigns.record_invariants import RecordAck
from tests.campaigns.states import StoredEvent, StoreState
from tests.proof.crash import moments
from tests.proof.crash.exact import every
from tests.proof.crash.gate import compiled
from tests.proof.crash.moments import MOMENTS, Moment, Side, Who
from tests.proof.crash.steps import STEPS
from tests.support.promises import PATHS, WrittenPromises, half_kept, line_of, read_promises

ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000


class Dead(Exception):
    """Instead of the end of the process."""


def decided(program: bytes, *, number: int, architecture: int) -> int:
    """Run the filter as the kernel does, on a call."""
    steps = list(struct.iter_unpack("=HBBI", program))
    loaded, place = 0, 0
    while True:
        code, yes, no, value = steps[place]
        match code:
            case 0x20:
                loaded = {0: number, 4: architecture}[value]
            case 0x15:
                place += yes if loaded == value else no
            case _:
                return value
        place += 1


def test_the_filter_stops_the_calls_that_are_named_and_no_others() -> None:
    program = compiled([1, 18, 75], 7)

    assert [number for number in range(300) if decided(program, number=number, architecture=7) == NOTIFY] == [1, 18, 75]
    assert {decided(program, number=number, architecture=8) for number in range(300)} == {ALLOW}


@pytest.mark.parametrize(("count", "most"), [(5, 5), (5, 50), (100, 10), (326, 8), (577, 120)])
@pytest.mark.parametrize("seed", [0, 1, 20261125])
def test_calls_are_taken_evenly(count: int, most: int, seed: int) -> None:
    numbers = every(count, most, seed)

    assert set(numbers) <= set(range(1, count + 1))
    assert len({b - a for a, b in pairwise(numbers)}) <= 1
    assert min(count, most) * 0.6 <= len(numbers) <= max(min(count, most) * 1.5, 1)


def test_every_moment_is_in_the_code_and_has_a_name_of_its_own() -> None:
    assert len({moment.name for moment in MOMENTS}) == len(MOMENTS)
    for moment in (*MOMENTS, *STEPS):
        owner, name = moments.found(moment.function)
        assert callable(getattr(owner, name)), moment.function


def moment(side: Side) -> Moment:
    return Moment("made up", Who.BOT, "made:up", side, "nothing stored", counts=lambda given, _: given[0] > 0)


def die() -> None:
    raise Dead


@pytest.mark.parametrize(("side", "made"), [(Side.BEFORE, [1, 0]), (Side.AFTER, [1, 0, 2])])
async def test_a_death_is_at_the_call_that_was_meant(
    side: Side, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "die", die)
    done: list[int] = []

    def call(value: int) -> int:
        done.append(value)
        return value

    async def later(value: int) -> int:
        return call(value)

    dying = moments.wrapped(call, moment(side), 2)
    assert (dying(1), dying(0)) == (1, 0)
    with pytest.raises(Dead):
        dying(2)
    assert done == made

    done.clear()
    dying = moments.wrapped(later, moment(side), 2)
    assert (await dying(1), await dying(0)) == (1, 0)
    with pytest.raises(Dead):
        await dying(2)
    assert done == made


def test_half_a_line_is_no_promise(tmp_path: Path) -> None:
    lines = [line_of("chat", UUID(int=number), number) for number in (1, 2)]
    saved = line_of("chat", UUID(int=1), None, saved=True)

    record = RecordAck("\1s:bots:3", UUID(int=4), 1, None)
    path = tmp_path / "acks"
    written = WrittenPromises(path)
    written.keep_record(record)
    written.keep_path()
    written.close()

    kept = read_promises(b"".join((*lines, saved, path.read_bytes(), line_of("chat", UUID(int=3), 3)[:-1])))

    assert read_promises(b"").acks == []
    assert kept.acks == [("chat", UUID(int=1), 1), ("chat", UUID(int=2), 2)]
    assert kept.saved == [UUID(int=1)]
    assert (kept.records, kept.paths, kept.possible_paths) == ([record], 1, (PATHS[0], PATHS[1]))
    assert read_promises(b"").possible_paths == ((), PATHS[0])


def test_what_is_kept_by_half_is_found(tmp_path: Path) -> None:
    outbox = tmp_path / "bot.outbox.db"
    assert half_kept(outbox, stored()) == []
    with closing(sqlite3.connect(outbox)) as connection, connection:
        connection.execute("CREATE TABLE books (event_id BLOB PRIMARY KEY)")
        connection.executemany("INSERT INTO books VALUES (?)", [(UUID(int=number).bytes,) for number in (1, 2)])

    assert half_kept(outbox, stored(1, 2)) == []
    assert len(half_kept(outbox, stored(1))) == 1
    assert len(half_kept(outbox, stored(1, 2, 3))) == 1
    assert len(half_kept(outbox, stored(3))) == 3


def stored(*numbers: int) -> StoreState:
    """Return a history with these messages in a conversation that books are kept of, and one elsewhere."""
    events = [
        StoredEvent(0, 1, name, 1, UUID(int=number), UUID(int=0), 1, "message.appended", b"", b"")
        for name, number in [("chat", 99), *(("books-1", number) for number in numbers)]
    ]
    return StoreState(events=events, lanes={}, conversations={}, messages=[], log_heads={})
