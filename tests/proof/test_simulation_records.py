"""The simulation's own ledger of records is content with what is right, and notices what is not."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256

import pytest

from tests.proof.simulation.record_ledger import Changes, StoredRecords

LANE, SCOPE, PLACE = "\x01s:app:3", "\x01s:app", ("\x01s:app", "cp/", "a")
ORIGIN = b"o" * 16


def event_id(sequence: int) -> bytes:
    return bytes([sequence]) * 16


@dataclass
class World:
    """An outbox with three puts of a record, and a store that has applied the first."""

    store: sqlite3.Connection
    changes: Changes = field(default_factory=lambda: Changes(lambda _: False))
    heads: dict[tuple[bytes, str], int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.records = StoredRecords(self.store)
        for sequence in (1, 2, 3):
            data = {"namespace": "cp/", "key": "a", "sha256": sha256(event_id(sequence)).hexdigest()}
            self.changes.add(LANE, sequence, sequence, event_id(sequence), b"d", json.dumps(data))
        self.apply(1)
        assert self.problem() == ""

    def apply(self, sequence: int, value: bytes | None = None) -> None:
        """Apply a put as a store does, with another value on demand."""
        body = event_id(sequence) if value is None else value
        self.store.execute("DELETE FROM letopis_lanes")
        self.store.execute("INSERT INTO letopis_lanes VALUES (?, ?, ?)", (ORIGIN, LANE, sequence))
        entry = (ORIGIN, LANE, sequence, event_id(sequence), b"d", 0)
        self.store.execute("INSERT INTO letopis_record_ledger VALUES (?, ?, ?, ?, ?, ?)", entry)
        self.show(sequence, body)

    def show(self, sequence: int, body: bytes) -> None:
        self.store.execute("DELETE FROM letopis_records")
        row = (0, b"r", SCOPE, b"cp/", b"a", event_id(sequence), body)
        self.store.execute("INSERT INTO letopis_records VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def problem(self) -> str:
        return self.records.problem(self.heads, {ORIGIN: self.changes})


@pytest.fixture
def world() -> Iterator[World]:
    with closing(sqlite3.connect(":memory:")) as store:
        store.executescript(
            "CREATE TABLE letopis_lanes (origin_id, conversation_id, sequence);"
            "CREATE TABLE letopis_record_ledger (origin_id, conversation_id, sequence, event_id, digest, superseded);"
            "CREATE TABLE letopis_records (partition, record_id, scope, namespace, record_key, revision, body);"
            "CREATE TABLE letopis_record_parts (partition, record_id, part, body)"
        )
        yield World(store)


def test_one_put_after_the_other_is_right(world: World) -> None:
    for sequence in (2, 3):
        world.apply(sequence)
        assert world.problem() == ""


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda world: world.apply(3), "goes on from 1 to 3"),
        (lambda world: world.apply(2, b"other"), "not the one that was put"),
        (lambda world: world.show(2, event_id(2)), "not applied just now"),
        (lambda world: world.store.execute("DELETE FROM letopis_records"), "nobody has deleted it"),
        (lambda world: world.store.execute("UPDATE letopis_lanes SET sequence = 0"), "goes back from 1 to 0"),
        (lambda world: world.store.execute("UPDATE letopis_record_ledger SET superseded = 1"), "superseded"),
        (lambda world: (world.apply(2), world.show(1, event_id(1))), "put last is not there"),
    ],
)
def test_what_is_wrong_in_the_store_is_noticed(world: World, damage: Callable[[World], object], words: str) -> None:
    damage(world)

    assert words in world.problem()


def test_a_read_must_not_be_older_than_what_was_put_before_it_began(world: World) -> None:
    since = world.changes.newest(PLACE)

    assert world.changes.read_problem(PLACE, event_id(3), since=since) == ""
    assert "older put" in world.changes.read_problem(PLACE, event_id(2), since=since)
    assert "was put" in world.changes.read_problem(PLACE, None, since=since)
    assert "never put" in world.changes.read_problem(PLACE, event_id(9), since=since)
