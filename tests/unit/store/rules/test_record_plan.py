"""What the changes of a record lane come to follows from what is stored, and from nothing else."""

from dataclasses import replace
from hashlib import sha256
from typing import Any
from uuid import UUID

import orjson
import pytest

from letopis.store import HistoryDiverged, InvalidInput
from letopis.store.model.codec import EncodedEvent
from letopis.store.model.records import (
    ABSENT,
    MAX_KEY_BYTES,
    RECORD_DELETED,
    RECORD_PUT,
    RECORDS_CLEARED,
    Media,
    RecordKey,
)
from letopis.store.rules.apply_plan import ComparedLane, LaneBatch, SequencedEvent
from letopis.store.rules.record_plan import (
    LedgerEntry,
    RecordChange,
    RecordPlan,
    change_event,
    check_known_changes,
    decode_change,
    plan_changes,
)

LANE = "chat-1"
A, B = (b"space/", b"a"), (b"space/", b"b")
THERE, OTHER = UUID(int=90), UUID(int=91)


def change(sequence: int, kind: str, place: RecordKey = A, **more: Any) -> RecordChange:
    body = b"{}" if kind == RECORD_PUT else None
    given = {"event_id": UUID(int=sequence), "prefix": place[0], "key": place[1], "body": body, **more}
    return RecordChange(sequence=sequence, type=kind, **given)


def put(sequence: int, place: RecordKey = A, **more: Any) -> RecordChange:
    return change(sequence, RECORD_PUT, place, **more)


def delete(sequence: int, place: RecordKey = A, **more: Any) -> RecordChange:
    return change(sequence, RECORD_DELETED, place, **more)


def clear(sequence: int, prefix: bytes = b"", **more: Any) -> RecordChange:
    return change(sequence, RECORDS_CLEARED, (prefix, b""), **more)


@pytest.mark.parametrize(
    ("changes", "final", "superseded"),
    [
        ([put(1), put(2), put(3, B)], {A: 2, B: 3}, set()),
        ([put(1), delete(2)], {A: None}, set()),
        ([delete(1, B)], {}, set()),  # it never was
        ([put(1, expected=ABSENT)], {}, {1}),
        ([put(1, expected=ABSENT, keep=True)], {}, set()),
        ([put(1, expected=THERE), put(2, expected=UUID(int=1))], {A: 2}, set()),
        ([put(1, expected=THERE), put(2, expected=THERE)], {A: 1}, {2}),
        ([delete(1, expected=OTHER)], {}, {1}),
        ([delete(1, expected=OTHER, keep=True)], {}, set()),
        ([delete(1, expected=THERE), put(2, expected=ABSENT)], {A: 2}, set()),
        ([put(1, body=None), put(2)], {A: 2}, set()),  # hollowed: a later one of the same record follows
        ([clear(1), put(2)], {A: 2}, set()),
        ([put(1, B), clear(2, b"space/")], {A: None, B: None}, set()),
        ([clear(1, b"elsewhere/")], {}, set()),
        ([clear(1), put(2, expected=THERE)], {A: None}, {2}),
    ],
)
def test_plan_follows_the_order_of_changes(
    changes: list[RecordChange], final: dict[RecordKey, int | None], superseded: set[int]
) -> None:
    plan = plan_changes(changes, {A: THERE})
    found = {place: None if last is None else last.sequence for place, last in plan.final.items()}
    assert (found, plan.superseded) == (final, superseded)


def test_plan_keeps_nothing_for_a_conversation_that_is_gone() -> None:
    plan = plan_changes([put(1), delete(2), clear(3, erases=True)], {A: THERE}, gone=True)
    assert (plan.final, plan.superseded, plan.cleared, plan.erases) == ({A: None}, {1}, [b""], True)


def test_plan_ignores_changes_that_are_not_known_here() -> None:
    assert plan_changes([change(1, "record.renamed")], {A: THERE}) == RecordPlan()


def event(kind: str = RECORD_PUT, *, value: bytes = b'{"n":1}', **more: Any) -> EncodedEvent:
    about = {"size": len(value), "sha256": sha256(value).hexdigest(), "media": "json"} if kind == RECORD_PUT else {}
    data = {"namespace": "space/", "key": "a", **about, **more}
    body = value if kind == RECORD_PUT else None
    return change_event(LANE, kind, event_id=THERE, occurred_at=7, data=orjson.dumps(data), body=body)


def decoded(given: EncodedEvent) -> RecordChange:
    return decode_change(SequencedEvent(sequence=3, event=given))


def test_change_is_decoded_with_all_it_says() -> None:
    given = event(expected=str(OTHER), keep=True, tags={"step": 4})
    expected = put(3, event_id=THERE, expected=OTHER, keep=True, media=Media.JSON, size=7, tags={"step": 4})
    kept = {"checksum": sha256(b'{"n":1}').hexdigest(), "salt": given.salt, "body": b'{"n":1}'}
    assert decoded(given) == replace(expected, occurred_at=7, **kept)
    assert decoded(event(RECORD_DELETED, expected="absent")).expected is ABSENT
    assert decoded(event(RECORDS_CLEARED, erase=True)).erases
    assert decoded(event("record.renamed")).place == (b"", b"")


def test_erased_change_has_no_effect() -> None:
    bare = change_event(LANE, RECORD_PUT, event_id=THERE, occurred_at=7, data=b"{}")
    assert decoded(replace(bare, redacted=True)).type == ""
    assert decoded(replace(event(), redacted=True)).body is None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (replace(event(), digest=b"other"), "digest"),
        (replace(event(), body=None), "value"),
        (replace(event(), body=b"{}"), "value"),
        (replace(event(), body=b'{"n":2}'), "value"),
        (event(key=""), "data.key"),
        (event(key=None), "data.key"),
        (event(key="k" * (MAX_KEY_BYTES + 1)), "data.key"),
        (event(namespace=1), "data.namespace"),
        (event(media="film"), "data.media"),
        (event(expected="never"), "data.expected"),
        (change_event(LANE, RECORD_PUT, event_id=THERE, occurred_at=7, data=b"[]"), "data"),
    ],
)
def test_damaged_change_is_refused(given: EncodedEvent, field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        decoded(given)


@pytest.mark.parametrize("stored", [None, {"event_id": OTHER}, {"digest": b"other"}])
def test_another_change_at_its_sequence_diverges(stored: dict[str, Any] | None) -> None:
    given = event()
    deliveries = (SequencedEvent(sequence=1, event=given),)
    lane = ComparedLane(lane=LaneBatch(conversation_id=LANE, deliveries=deliveries), head=1, known=deliveries, fresh=())
    entry = {"event_id": THERE, "digest": given.digest, "superseded": False}
    with pytest.raises(HistoryDiverged) as refused:
        check_known_changes(lane, {} if stored is None else {1: LedgerEntry(**{**entry, **stored})}, floor=0)
    assert (refused.value.conversation_id, refused.value.sequence, refused.value.event_id) == (LANE, 1, THERE)
