"""The verdicts on conditional events: by what a writer had seen, however its events are split into deliveries."""

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


def logged(version: int, *, own: bool = False, kind: str = TURN, **more: Any) -> LoggedEvent:
    given = {"event_id": UUID(int=version), "sequence": version, "conflict": None, **more}
    return LoggedEvent(version=version, type=kind, own=own, **given)


OWN = logged(1, own=True, sequence=1)
LATE = Conflict(expected=1, actual=2)
ASIDE = logged(2, conflict=Conflict(expected=0, actual=1))
MIXED = [logged(1), logged(2, own=True, sequence=1), logged(3, kind=FREE)]


def turn(sequence: int, **more: Any) -> Precondition:
    return Precondition(**{"sequence": sequence, "types": TURN_TYPES, **more})


@pytest.mark.parametrize(
    ("log", "expects", "head", "verdict"),
    [
        pytest.param([OWN], turn(1, version=1), 1, None, id="a turn that nobody was before"),
        pytest.param([], turn(0, types=None), 0, None, id="the first turn of all"),
        pytest.param([OWN, logged(2), logged(3)], turn(1, version=1), 1, LATE, id="both versions are named"),
        pytest.param([OWN, logged(2, kind=FREE)], turn(1, version=1), 1, None, id="what changes no message"),
        pytest.param(
            [OWN, logged(2, kind=FREE)], turn(1, version=1, types=frozenset({FREE})), 1, LATE, id="unless it is named"
        ),
        pytest.param([OWN, logged(2, kind=FREE)], turn(1, version=1, types=None), 1, LATE, id="or all are"),
        pytest.param([OWN, logged(2, kind=FREE)], turn(1, version=1, types=frozenset()), 1, None, id="none is"),
        pytest.param(MIXED, turn(1), 1, None, id="no version: what was before the last own event is taken as seen"),
        pytest.param(MIXED, turn(0), 1, Conflict(expected=0, actual=1), id="and no other"),
        pytest.param([OWN, logged(2)], turn(2), 1, None, id="an answer to what comes with it has seen all"),
        pytest.param(
            [OWN, ASIDE], turn(1, version=1, types=None), 1, None, id="what was superseded is in nobody's way"
        ),
        pytest.param(
            [OWN, logged(2), logged(3, own=True, sequence=3)], turn(2), 3, LATE, id="brought first by another outbox"
        ),
    ],
)
def test_the_verdict_on_a_turn(
    log: list[LoggedEvent], expects: Precondition, head: int, verdict: Conflict | None
) -> None:
    assert detect_conflicts([(head + 1, UUID(int=999), expects)], log, head=head).get(head + 1) == verdict


def test_a_turn_of_several_events_has_one_verdict() -> None:
    first, second = UUID(int=11), UUID(int=12)
    together = [(2, first, turn(1, version=1)), (3, second, turn(1, version=1, batch_id=first))]
    rival = [OWN, logged(2)]

    assert detect_conflicts(together, [OWN], head=1) == {}
    assert detect_conflicts(together, rival, head=1) == {2: LATE, 3: LATE}
    # The rival comes when the first half is stored: the second half follows it.
    stands = [OWN, logged(2, own=True, sequence=2, event_id=first), logged(3)]
    assert detect_conflicts(together[1:], stands, head=2) == {}
    lost = [*rival, logged(3, own=True, sequence=2, event_id=first, conflict=LATE)]
    assert detect_conflicts(together[1:], lost, head=2) == {3: LATE}


def test_an_answer_to_what_was_put_aside_is_put_aside() -> None:
    """A tool's result must not stand where its call does not."""
    call, result = (2, UUID(int=1), turn(1, version=1)), (3, UUID(int=2), turn(2))
    log = [OWN, logged(2)]
    assert detect_conflicts([call, result], log, head=1) == {2: LATE, 3: LATE}
    assert detect_conflicts([result], [*log, logged(3, own=True, sequence=2, conflict=LATE)], head=2) == {3: LATE}


@pytest.mark.parametrize("refused", [{"held": True}, {"erased": "message"}], ids=["by a hold", "for a redaction"])
def test_what_follows_an_event_that_was_refused_is_not_late(refused: dict[str, Any]) -> None:
    first = UUID(int=11)
    aside = logged(3, own=True, sequence=2, event_id=first, conflict=Conflict(expected=0, actual=1, **refused))
    rest, answer = (3, UUID(int=1), turn(1, version=2, batch_id=first)), (3, UUID(int=2), turn(2))
    for following in (rest, answer):
        assert detect_conflicts([following], [OWN, logged(2), aside], head=2) == {}


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
        {"sequence": json_values}, optional=dict.fromkeys(("version", "types", "turn"), json_values)
    )
)
def test_a_condition_that_is_none_is_told_and_never_raises(value: Any) -> None:
    found = Precondition.of({PRECONDITION_KEY: value})
    assert found is None or isinstance(found, Precondition)
    assert Conflict.of({SUPERSEDED_KEY: value}) is None or isinstance(value, dict)


Speech = list[tuple[int, UUID, str, Precondition | None]]


@dataclass
class Log:
    """A conversation as a store would build it up by the verdicts."""

    before: Sequence[str]
    rows: list[LoggedEvent] = field(default_factory=list)
    head: int = 0
    verdicts: dict[int, Conflict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rivals(self.before)

    def rivals(self, type_names: Sequence[str]) -> None:
        for type_name in type_names:
            self.rows.append(logged(len(self.rows) + 1, kind=type_name, event_id=uuid4()))

    def deliver(self, batch: Speech, *, whole: bool = True) -> None:
        conditions = [(sequence, event_id, expects) for sequence, event_id, _, expects in batch if expects is not None]
        rows = self.rows if whole else self._needed(conditions)
        found = detect_conflicts(conditions, rows, head=self.head)
        for sequence, event_id, type_name, _ in batch:
            of_the_event = {"event_id": event_id, "conflict": found.get(sequence)}
            self.rows.append(logged(len(self.rows) + 1, own=True, kind=type_name, sequence=sequence, **of_the_event))
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
def speeches(draw: st.DrawFn) -> tuple[Sequence[str], Speech]:
    """The earlier events of a rival, and those that one outbox appends after them, one or more at a time."""
    before = draw(st.lists(st.sampled_from(TYPES), max_size=4))
    said: Speech = []
    for _ in range(draw(st.integers(1, 5))):
        condition = st.builds(
            Precondition,
            sequence=st.integers(0, len(said)),
            version=st.none() | st.integers(0, len(before)),
            types=st.sampled_from([None, TURN_TYPES, frozenset({FREE})]),
        )
        expects = draw(st.none() | condition)
        leader: UUID | None = None
        for _ in range(draw(st.integers(1, 3))):
            event_id = UUID(int=10_000 + len(said))
            whole = None if expects is None else replace(expects, batch_id=leader)
            said.append((len(said) + 1, event_id, draw(st.sampled_from(TYPES)), whole))
            leader = leader or event_id
    return before, said


@settings(max_examples=300)
@given(speeches(), st.data())
def test_the_verdicts_do_not_hang_on_how_the_events_are_parted(
    speech: tuple[Sequence[str], Speech], data: st.DataObject
) -> None:
    before, said = speech
    whole, parted, looked_up = Log(before), Log(before), Log(before)
    whole.deliver(said)
    left = said
    while left:
        size = data.draw(st.integers(1, len(left)))
        parted.deliver(left[:size])
        looked_up.deliver(left[:size], whole=False)
        left = left[size:]

    assert parted.verdicts == looked_up.verdicts == whole.verdicts


@pytest.mark.parametrize("type_name", sorted(TURN_TYPES))
def test_every_turn_type_is_in_the_way_of_a_turn(type_name: str) -> None:
    assert detect_conflicts([(1, UUID(int=9), turn(0, version=0))], [logged(1, kind=type_name)], head=0)


def test_the_note_of_a_conflict_leaves_the_order_of_the_callers_keys() -> None:
    event = encode(Event(type="custom.x", metadata={"z": 1, "a": {"y": 1, "b": 2}}), conversation_id="c")
    noted = with_conflict(event, LATE)
    assert (noted.metadata or "").startswith('{"z":1,"a":{"y":1,"b":2},') and SUPERSEDED_KEY in (noted.metadata or "")
    assert digest_of("c", "custom.x", 1, noted.data, noted.metadata, event.salt or b"") == event.digest


def test_the_first_event_with_a_condition_decides_for_all_that_are_left_of_an_append() -> None:
    condition = {PRECONDITION_KEY: Precondition(sequence=1, batch_id=uuid4()).to_data()}
    plain, *led = (encode(Event(type="custom.x"), conversation_id="c") for _ in range(3))
    led = [replace(event, metadata=orjson.dumps({"mine": 1, **condition}).decode()) for event in led]
    found = with_one_leader([plain, *led])
    assert [event.event_id for event in found] == [plain.event_id, *(event.event_id for event in led)]
    assert [batch_of(event) for event in found] == [None, led[0].event_id, led[0].event_id]
    assert orjson.loads(found[1].metadata or "") == {"mine": 1, PRECONDITION_KEY: {"sequence": 1}}
