"""The checker of records is content with what is right, and finds each way in which a promise can be broken."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
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
    return put(sequence)._replace(type="record.cleared", data={"namespace": ""}, body=None)


def sound() -> Any:
    """Four puts of one record: three are applied, the first two were hollowed, the last one is pending."""
    return SimpleNamespace(
        changes=[put(1, hollow=True), put(2, hollow=True), put(3), put(4)],
        lane=ChangeLane(4, 3, 0, "ready"),
        head=(3, 0),
        ledger={one: Entry(event_id(one), b"%032d" % one, superseded=False) for one in (1, 2, 3)},
        rows={PLACE: (event_id(3), sha(3))},
        acks=[RecordAck(LANE, event_id(one), one, sha(one)) for one in (1, 2, 3, 4)],
        turns=set[UUID](),
    )


def problems(it: Any, *, drained: bool = False) -> list[str]:
    store = RecordStore(heads={(ORIGIN, LANE): it.head}, ledger={(ORIGIN, LANE): it.ledger}, rows=it.rows)
    outbox = RecordOutbox(name="bot.outbox.db", origin_id=ORIGIN, lanes={LANE: it.lane}, changes={LANE: it.changes})
    return examine_records(store, [outbox], acknowledged=it.acks, turns=it.turns, drained=drained)


def test_nothing_is_wrong_with_a_sound_world() -> None:
    world = sound()
    assert problems(world) == []

    world.rows = {}
    world.changes[2] = put(3, hollow=True)  # hollowed before it was delivered, as all before it
    assert problems(world) == []

    world.changes, world.head = [put(1), put(2), clear(3)], (3, 0)
    world.lane, world.acks = ChangeLane(3, 3, 0, "ready"), world.acks[:2]
    assert problems(world, drained=True) == []


def _resurrect(world: Any) -> None:
    world.changes[2] = clear(3)
    world.acks = world.acks[:2]
    world.rows[PLACE] = (event_id(2), sha(2))


def _trim_too_much(world: Any) -> None:
    world.head = (3, 1)
    del world.ledger[1]


def _change(things: Any, place: Any, **fields: object) -> None:
    things[place] = things[place]._replace(**fields)


DAMAGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "goes back": (lambda it: it.rows.update({PLACE: (event_id(2), sha(2))}), "the last change is another one"),
    "loses the row": (lambda it: it.rows.clear(), "the last change is another one"),
    "changes the value": (lambda it: it.rows.update({PLACE: (event_id(3), sha(9))}), "not the one that was put"),
    "invents a record": (
        lambda it: it.rows.update({("\x01s:app", "cp/", "b"): (event_id(9), sha(9))}),
        "nobody has put it",
    ),
    "resurrects": (_resurrect, "the last change is another one"),
    "forgets a change": (lambda it: it.ledger.pop(2), "the ledger has 2 changes"),
    "applies twice": (lambda it: it.ledger.update({3: it.ledger[2]}), "was applied 2 times"),
    "applies another": (lambda it: _change(it.ledger, 3, digest=b"x" * 32), "another change than was appended"),
    "counts too much": (lambda it: setattr(it, "lane", it.lane._replace(delivered=4)), "the outbox counts 4 delivered"),
    "trims too much": (_trim_too_much, "could send 1 again"),
    "supersedes in silence": (lambda it: _change(it.ledger, 1, superseded=True), "the outbox is not told"),
    "damages the value": (lambda it: _change(it.changes, 3, body=sha(9)), "not what was put"),
    "damages the content": (lambda it: _change(it.changes, 3, content=b"x" * 32), "does not match its digest"),
    "drops a change": (lambda it: it.changes.pop(1), "keeps 3 changes"),
    "loses an acknowledged change": (lambda it: it.acks.append(RecordAck(LANE, event_id(5), 5, sha(5))), "is LOST"),
    "acknowledges another value": (lambda it: _change(it.acks, 3, sha256=sha(9)), "another value than"),
    "acknowledges another place": (lambda it: _change(it.acks, 3, sequence=3), "acknowledged at 3"),
    "keeps a record without its message": (
        lambda it: it.changes.__setitem__(3, put(4, tags={"message": UUID(int=7).hex})),
        "which is not there",
    ),
    "keeps a message without its record": (lambda it: it.turns.add(UUID(int=7)), "not the record that was put with it"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_broken_is_found(damage: Callable[[Any], object], words: str) -> None:
    world = sound()
    damage(world)

    assert any(words in problem for problem in problems(world)), problems(world)


def test_what_is_pending_is_a_problem_once_all_should_be_delivered() -> None:
    assert "1 changes still pending" in problems(sound(), drained=True)[0]


def test_a_record_of_a_deleted_conversation_is_found() -> None:
    place = ("\x01c:chat", "cp/", "a")
    store = RecordStore(rows={place: (event_id(1), sha(1))}, deleted=["\x01c:chat"])

    assert "its conversation is deleted" in examine_records(store, [])[0]
    assert examine_records(replace(store, rows={}), []) == []
