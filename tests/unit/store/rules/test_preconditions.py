"""The verdicts on conditional events: by what a writer had seen, however its events are split into deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letopis.store import Event
from letopis.store.model.codec import digest_of, encode
from letopis.store.rules.preconditions import (
    PRECONDITION_KEY,
    SUPERSEDED_KEY,
    TURN_TYPES,
    Conflict,
    LoggedEvent,
    Precondition,
    batch_of,
    detect_conflicts,
    lowest_seen_version,
    with_conflict,
    with_one_leader,
)

TURN = "message.appended"
FREE = "reaction.added"
TYPES = (TURN, FREE, "conversation.rewound", "conversation.renamed", "custom.x")


def logged(
    version: int, *, own: bool = False, kind: str = TURN, sequence: int | None = None, **more: Any
) -> LoggedEvent:
    return LoggedEvent(
        version=version,
        event_id=more.get("event_id", UUID(int=version)),
        type=kind,
        sequence=version if sequence is None else sequence,
        own=own,
        conflict=more.get("conflict"),
    )


def one(log: list[LoggedEvent], expects: Precondition, *, head: int = 0) -> Conflict | None:
    return detect_conflicts([(head + 1, UUID(int=999), expects)], log, head=head).get(head + 1)


def test_a_turn_that_nobody_was_before_stands() -> None:
    assert one([logged(1, own=True, sequence=1)], Precondition(sequence=1, version=1, types=TURN_TYPES), head=1) is None
    assert one([], Precondition(sequence=0)) is None


def test_a_turn_that_somebody_was_before_loses_and_names_both_versions() -> None:
    log = [logged(1, own=True, sequence=1), logged(2), logged(3)]

    assert one(log, Precondition(sequence=1, version=1, types=TURN_TYPES), head=1) == Conflict(expected=1, actual=2)


def test_what_does_not_change_the_messages_is_in_nobodys_way_but_in_a_strict_ones() -> None:
    log = [logged(1, own=True, sequence=1), logged(2, kind=FREE)]

    assert one(log, Precondition(sequence=1, version=1, types=TURN_TYPES), head=1) is None
    assert one(log, Precondition(sequence=1, version=1, types=frozenset({FREE})), head=1) == Conflict(
        expected=1, actual=2
    )
    assert one(log, Precondition(sequence=1, version=1), head=1) == Conflict(expected=1, actual=2)
    assert one(log, Precondition(sequence=1, version=1, types=frozenset()), head=1) is None


def test_without_a_version_what_came_before_the_writers_own_last_event_is_taken_as_seen() -> None:
    log = [logged(1), logged(2, own=True, sequence=1), logged(3, kind=FREE)]

    assert one(log, Precondition(sequence=1, types=TURN_TYPES), head=1) is None
    assert one(log, Precondition(sequence=0, types=TURN_TYPES), head=1) == Conflict(expected=0, actual=1)


def test_an_answer_to_what_comes_with_it_has_seen_all_that_is_there() -> None:
    log = [logged(1, own=True, sequence=1), logged(2)]

    assert one(log, Precondition(sequence=2, types=TURN_TYPES), head=1) is None


def test_what_was_superseded_is_in_nobodys_way() -> None:
    log = [logged(1, own=True, sequence=1), logged(2, conflict=Conflict(expected=0, actual=1))]

    assert one(log, Precondition(sequence=1, version=1), head=1) is None


def test_a_turn_of_several_events_has_one_verdict() -> None:
    first, second = UUID(int=11), UUID(int=12)
    together = [
        (2, first, Precondition(sequence=1, version=1, types=TURN_TYPES)),
        (3, second, Precondition(sequence=1, version=1, types=TURN_TYPES, batch_id=first)),
    ]
    log = [logged(1, own=True, sequence=1)]
    rival = [*log, logged(2)]

    assert detect_conflicts(together, log, head=1) == {}
    assert detect_conflicts(together, rival, head=1) == {
        2: Conflict(expected=1, actual=2),
        3: Conflict(expected=1, actual=2),
    }
    # The rival comes when the first half is stored: the second half follows it.
    stands = [*log, logged(2, own=True, sequence=2, event_id=first), logged(3)]
    assert detect_conflicts(together[1:], stands, head=2) == {}
    lost = [*rival, logged(3, own=True, sequence=2, event_id=first, conflict=Conflict(expected=1, actual=2))]
    assert detect_conflicts(together[1:], lost, head=2) == {3: Conflict(expected=1, actual=2)}


def test_an_answer_to_what_was_put_aside_is_put_aside() -> None:
    """A tool's result must not stand where its call does not."""
    call = Precondition(sequence=1, version=1, types=TURN_TYPES)
    result = Precondition(sequence=2, types=TURN_TYPES)
    log = [logged(1, own=True, sequence=1), logged(2)]
    late = Conflict(expected=1, actual=2)

    assert detect_conflicts([(2, UUID(int=1), call), (3, UUID(int=2), result)], log, head=1) == {2: late, 3: late}
    stored = [*log, logged(3, own=True, sequence=2, conflict=late)]
    assert detect_conflicts([(3, UUID(int=2), result)], stored, head=2) == {3: late}


def test_an_event_that_another_outbox_brought_first_leaves_the_last_own_one_before_it() -> None:
    log = [logged(1, own=True, sequence=1), logged(2), logged(3, own=True, sequence=3)]

    assert one(log, Precondition(sequence=2, types=TURN_TYPES), head=3) == Conflict(expected=1, actual=2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
expectations = st.builds(
    Precondition,
    sequence=st.integers(0, 2**63 - 1),
    version=st.none() | st.integers(0, 2**63 - 1),
    types=st.none() | st.frozensets(st.sampled_from(TYPES)),
    batch_id=st.none() | st.uuids(),
)


@given(expectations)
def test_a_condition_is_read_as_it_was_written(expects: Precondition) -> None:
    assert Precondition.of({PRECONDITION_KEY: expects.to_data(), "other": 1}) == expects


@given(
    json_values
    | st.fixed_dictionaries(
        {"sequence": json_values}, optional={"version": json_values, "types": json_values, "turn": json_values}
    )
)
def test_a_condition_that_is_none_is_told_and_never_raises(value: Any) -> None:
    found = Precondition.of({PRECONDITION_KEY: value})

    assert found is None or isinstance(found, Precondition)
    assert Conflict.of({SUPERSEDED_KEY: value}) is None or isinstance(value, dict)


def test_there_is_none_where_there_is_none() -> None:
    assert Precondition.of({}) is None
    assert Conflict.of({}) is None
    assert Conflict.of({SUPERSEDED_KEY: Conflict(expected=1, actual=2).to_data()}) == Conflict(expected=1, actual=2)


@dataclass
class Log:
    """A conversation as a store would build it up by the verdicts."""

    rows: list[LoggedEvent] = field(default_factory=list)
    head: int = 0
    verdicts: dict[int, Conflict] = field(default_factory=dict)

    def rival(self, type_name: str) -> None:
        self.rows.append(logged(len(self.rows) + 1, kind=type_name, event_id=uuid4()))

    def deliver(self, batch: list[tuple[int, UUID, str, Precondition | None]], *, whole: bool = True) -> None:
        conditions = [(sequence, event_id, expects) for sequence, event_id, _, expects in batch if expects is not None]
        rows = self.rows if whole else self._needed(conditions)
        found = detect_conflicts(conditions, rows, head=self.head)
        for sequence, event_id, type_name, _ in batch:
            self.rows.append(
                logged(
                    len(self.rows) + 1,
                    own=True,
                    kind=type_name,
                    sequence=sequence,
                    event_id=event_id,
                    conflict=found.get(sequence),
                )
            )
        self.head = batch[-1][0]
        self.verdicts |= found

    def _needed(self, conditions: list[tuple[int, UUID, Precondition]]) -> list[LoggedEvent]:
        """What the store looks up: the own events that are named, and the others' after what was seen."""
        own = [row for row in self.rows if row.own]
        named = {expects.batch_id for _, _, expects in conditions}
        last = [
            max((row for row in own if row.sequence <= expects.sequence), key=lambda row: row.sequence, default=None)
            for _, _, expects in conditions
            if expects.version is None and expects.sequence <= self.head
        ]
        chosen = [row for row in own if row.event_id in named] + [row for row in last if row is not None]
        after = lowest_seen_version(conditions, chosen, head=self.head)
        return [*chosen, *(row for row in self.rows if not row.own and row.version > after)]


@st.composite
def speeches(draw: st.DrawFn) -> tuple[Sequence[str], list[tuple[int, UUID, str, Precondition | None]]]:
    """The earlier events of a rival, and those that one outbox appends after them, one or more at a time."""
    before = draw(st.lists(st.sampled_from(TYPES), max_size=4))
    said: list[tuple[int, UUID, str, Precondition | None]] = []
    for _ in range(draw(st.integers(1, 5))):
        sequence = len(said)
        expects = draw(
            st.none()
            | st.builds(
                Precondition,
                sequence=st.integers(0, sequence),
                version=st.none() | st.integers(0, len(before)),
                types=st.sampled_from([None, TURN_TYPES, frozenset({FREE})]),
            )
        )
        turn: UUID | None = None
        for _ in range(draw(st.integers(1, 3))):
            event_id = UUID(int=10_000 + len(said))
            whole = None if expects is None else Precondition(**{**_fields(expects), "batch_id": turn})
            said.append((len(said) + 1, event_id, draw(st.sampled_from(TYPES)), whole))
            turn = turn or event_id
    return before, said


def _fields(expects: Precondition) -> dict[str, Any]:
    return {"sequence": expects.sequence, "version": expects.version, "types": expects.types}


@settings(max_examples=300)
@given(speeches(), st.data())
def test_the_verdicts_do_not_hang_on_how_the_events_are_parted(
    speech: tuple[Sequence[str], list[tuple[int, UUID, str, Precondition | None]]], data: st.DataObject
) -> None:
    before, said = speech
    whole, parted, looked_up = Log(), Log(), Log()
    for log in (whole, parted, looked_up):
        for type_name in before:
            log.rival(type_name)
    whole.deliver(said)
    left = said
    while left:
        size = data.draw(st.integers(1, len(left)))
        parted.deliver(left[:size])
        looked_up.deliver(left[:size], whole=False)
        left = left[size:]

    assert parted.verdicts == whole.verdicts
    assert looked_up.verdicts == whole.verdicts


@settings(max_examples=200)
@given(speeches(), st.data())
def test_a_turn_wins_or_loses_as_a_whole_whoever_comes_in_between(
    speech: tuple[Sequence[str], list[tuple[int, UUID, str, Precondition | None]]], data: st.DataObject
) -> None:
    before, said = speech
    log = Log()
    for type_name in before:
        log.rival(type_name)
    for event in said:
        log.deliver([event])
        for type_name in data.draw(st.lists(st.sampled_from(TYPES), max_size=1)):
            log.rival(type_name)

    leaders = {event_id: sequence for sequence, event_id, _, _ in said}
    for sequence, _, _, expects in said:
        if expects is not None and expects.batch_id is not None:
            assert log.verdicts.get(sequence) == log.verdicts.get(leaders[expects.batch_id])


@pytest.mark.parametrize("type_name", sorted(TURN_TYPES))
def test_every_turn_type_is_in_the_way_of_a_turn(type_name: str) -> None:
    assert one([logged(1, kind=type_name)], Precondition(sequence=0, version=0, types=TURN_TYPES)) is not None


def test_the_note_of_a_conflict_leaves_the_order_of_the_callers_keys() -> None:
    event = encode(Event(type="custom.x", metadata={"z": 1, "a": {"y": 1, "b": 2}}), conversation_id="c")
    noted = with_conflict(event, Conflict(expected=1, actual=2))

    assert noted.metadata is not None and noted.metadata.startswith('{"z":1,"a":{"y":1,"b":2},')
    assert SUPERSEDED_KEY in noted.metadata
    assert digest_of("c", "custom.x", 1, noted.data, noted.metadata, event.salt or b"") == event.digest


def test_the_first_event_with_a_condition_decides_for_all_that_are_left_of_an_append() -> None:
    condition = {PRECONDITION_KEY: Precondition(sequence=1, batch_id=uuid4()).to_data()}
    plain, *led = (encode(Event(type="custom.x"), conversation_id="c") for _ in range(3))
    led = [replace(event, metadata=orjson.dumps({"mine": 1, **condition}).decode()) for event in led]

    found = with_one_leader([plain, *led])

    assert [event.event_id for event in found] == [plain.event_id, *(event.event_id for event in led)]
    assert [batch_of(event) for event in found] == [None, led[0].event_id, led[0].event_id]
    assert orjson.loads(found[1].metadata or "") == {"mine": 1, PRECONDITION_KEY: {"sequence": 1}}
