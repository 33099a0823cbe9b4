"""The checker of records is content with what is right, and finds each way in which a promise can be broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from tests.campaigns.record_invariants import (
    Change,
    ChangeLane,
    Entry,
    RecordAck,
    RecordOutbox,
    RecordStore,
    examine_records,
)

ORIGIN = UUID(int=1)
LANE = "\x01s:app:3"
PLACE = ("\x01s:app", "cp/", "a")


def event_id(sequence: int) -> UUID:
    return UUID(int=100 + sequence)


def sha(sequence: int) -> str:
    return f"{sequence:064}"


def put(sequence: int, *, key: str = "a", hollow: bool = False, **more: object) -> Change:
    data = {"namespace": "cp/", "key": key, "sha256": sha(sequence), **more}
    digest = b"%032d" % sequence
    body = None if hollow else sha(sequence)
    return Change(sequence, sequence, event_id(sequence), "record.put", data, digest, digest, hollow, body)


def clear(sequence: int) -> Change:
    digest = b"%032d" % sequence
    return Change(
        sequence,
        sequence,
        event_id(sequence),
        "record.cleared",
        {"namespace": ""},
        digest,
        digest,
        redacted=False,
        body=None,
    )


@dataclass
class World:
    """Four puts of one record: three are applied, the first two were hollowed, the last one is pending."""

    changes: list[Change] = field(default_factory=lambda: [put(1, hollow=True), put(2, hollow=True), put(3), put(4)])
    lane: ChangeLane = field(default_factory=lambda: ChangeLane(4, 3, 0, "ready"))
    head: tuple[int, int] = (3, 0)
    ledger: dict[int, Entry] = field(
        default_factory=lambda: {one: Entry(event_id(one), b"%032d" % one, superseded=False) for one in (1, 2, 3)}
    )
    rows: dict[tuple[str, str, str], tuple[UUID, str]] = field(default_factory=lambda: {PLACE: (event_id(3), sha(3))})
    acks: list[RecordAck] = field(
        default_factory=lambda: [RecordAck(LANE, event_id(one), one, sha(one)) for one in (1, 2, 3, 4)]
    )
    turns: set[UUID] = field(default_factory=set)

    def problems(self, *, drained: bool = False) -> list[str]:
        store = RecordStore(heads={(ORIGIN, LANE): self.head}, ledger={(ORIGIN, LANE): self.ledger}, rows=self.rows)
        outbox = RecordOutbox(
            name="bot.outbox.db", origin_id=ORIGIN, lanes={LANE: self.lane}, changes={LANE: self.changes}
        )
        return examine_records(store, [outbox], acknowledged=self.acks, turns=self.turns, drained=drained)


def test_nothing_is_wrong_with_a_sound_world() -> None:
    world = World()
    assert world.problems() == []

    world.rows = {}
    world.changes[2] = put(3, hollow=True)  # hollowed before it was delivered, as all before it
    assert world.problems() == []

    world.changes, world.head = [put(1), put(2), clear(3)], (3, 0)
    world.lane, world.acks = ChangeLane(3, 3, 0, "ready"), world.acks[:2]
    assert world.problems(drained=True) == []


def test_what_was_pruned_is_neither_lost_nor_wrong() -> None:
    world = World()
    world.changes, world.lane, world.head = [put(4)], ChangeLane(4, 3, 3, "ready"), (3, 3)
    world.ledger = {}

    assert world.problems() == []


def _go_back(world: World) -> None:
    world.rows[PLACE] = (event_id(2), sha(2))


def _lose_the_row(world: World) -> None:
    world.rows.clear()


def _change_the_value(world: World) -> None:
    world.rows[PLACE] = (event_id(3), sha(9))


def _invent_a_record(world: World) -> None:
    world.rows["\x01s:app", "cp/", "b"] = (event_id(9), sha(9))


def _resurrect(world: World) -> None:
    world.changes[2] = clear(3)
    world.acks = world.acks[:2]
    _go_back(world)


def _forget_a_change(world: World) -> None:
    del world.ledger[2]


def _apply_twice(world: World) -> None:
    world.ledger[3] = world.ledger[2]


def _apply_another(world: World) -> None:
    world.ledger[3] = Entry(event_id(3), b"x" * 32, superseded=False)


def _count_too_much(world: World) -> None:
    world.lane = world.lane._replace(delivered=4)


def _trim_too_much(world: World) -> None:
    world.head = (3, 1)
    del world.ledger[1]


def _supersede_in_silence(world: World) -> None:
    world.ledger[1] = world.ledger[1]._replace(superseded=True)


def _damage_the_value(world: World) -> None:
    world.changes[3] = world.changes[3]._replace(body=sha(9))


def _damage_the_content(world: World) -> None:
    world.changes[3] = world.changes[3]._replace(content=b"x" * 32)


def _drop_a_change(world: World) -> None:
    del world.changes[1]


def _lose_an_acknowledged_change(world: World) -> None:
    world.acks.append(RecordAck(LANE, event_id(5), 5, sha(5)))


def _acknowledge_another_value(world: World) -> None:
    world.acks[3] = world.acks[3]._replace(sha256=sha(9))


def _acknowledge_another_place(world: World) -> None:
    world.acks[3] = world.acks[3]._replace(sequence=3)


def _keep_a_record_without_its_message(world: World) -> None:
    world.changes[3] = put(4, tags={"message": UUID(int=7).hex})


def _keep_a_message_without_its_record(world: World) -> None:
    world.turns = {UUID(int=7)}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_go_back, "the last change is another one"),
        (_lose_the_row, "the last change is another one"),
        (_change_the_value, "not the one that was put"),
        (_invent_a_record, "nobody has put it"),
        (_resurrect, "the last change is another one"),
        (_forget_a_change, "the ledger has 2 changes"),
        (_apply_twice, "was applied 2 times"),
        (_apply_another, "another change than was appended"),
        (_count_too_much, "the outbox counts 4 delivered"),
        (_trim_too_much, "could send 1 again"),
        (_supersede_in_silence, "the outbox is not told"),
        (_damage_the_value, "not what was put"),
        (_damage_the_content, "does not match its digest"),
        (_drop_a_change, "keeps 3 changes"),
        (_lose_an_acknowledged_change, "is LOST"),
        (_acknowledge_another_value, "another value than"),
        (_acknowledge_another_place, "acknowledged at 3"),
        (_keep_a_record_without_its_message, "which is not there"),
        (_keep_a_message_without_its_record, "not the record that was put with it"),
    ],
)
def test_what_is_broken_is_found(damage: Callable[[World], None], words: str) -> None:
    world = World()
    damage(world)

    assert any(words in problem for problem in world.problems()), world.problems()


def test_what_is_pending_is_a_problem_once_all_should_be_delivered() -> None:
    assert "1 changes still pending" in World().problems(drained=True)[0]


def test_a_record_of_a_deleted_conversation_is_found() -> None:
    place = ("\x01c:chat", "cp/", "a")
    store = RecordStore(rows={place: (event_id(1), sha(1))}, deleted=["\x01c:chat"])

    assert "its conversation is deleted" in examine_records(store, [])[0]
    assert examine_records(replace(store, rows={}), []) == []
