"""The replay of a path follows rewinds, put-backs and resets, and notices a list of messages that does not."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.campaigns.paths import ReplayedPath, examine_replayed, examine_wholeness
from tests.campaigns.states import (
    Findings,
    OutboxEvent,
    OutboxLane,
    OutboxState,
    StoredEvent,
    StoredMessage,
    StoreState,
)

ORIGIN = UUID(int=1)
SAID, BACK = "message.appended", {"puts_back": str(UUID(int=101))}


def event(version: int, kind: str, message_id: str | None = None, **more: Any) -> StoredEvent:
    return StoredEvent(
        0, version, "a", version, UUID(int=100 + version), ORIGIN, version, kind, b"", b"", message_id, **more
    )


REWOUND = event(3, "conversation.rewound", to_message_id="1")
PUT_BACK = event(4, SAID, "2", noted=BACK)
AGAIN = event(5, SAID, "1", noted=BACK)  # without effect: it is on the path


def told(rows: dict[int, int | None], *more: StoredEvent) -> StoreState:
    """Two messages are said, the second is popped and put back, the first is put back though it is there."""
    events = [event(1, SAID, "1"), event(2, SAID, "2"), REWOUND, PUT_BACK, AGAIN, *more]
    return StoreState(
        events=events,
        lanes={},
        conversations={},
        messages=[StoredMessage("a", version, left) for version, left in rows.items()],
        log_heads={},
    )


def replayed(state: StoreState) -> list[str]:
    found = Findings()
    examine_replayed(state, found)
    return found.shown


def test_what_the_log_leads_to_is_right() -> None:
    assert replayed(told({1: None, 2: 3, 4: None})) == []


@pytest.mark.parametrize(
    "rows",
    [
        {1: None, 2: 3},  # the put-back was taken for a duplicate
        {1: None, 2: None},  # the rewind was lost
        {1: None, 2: 3, 4: None, 5: None},  # put back twice
        {1: 3, 2: 3, 4: None},  # more left than was asked
        {},
    ],
)
def test_another_path_is_noticed(rows: dict[int, int | None]) -> None:
    assert replayed(told(rows))


def test_what_was_put_aside_moves_nothing_and_a_reset_takes_all() -> None:
    aside = event(6, SAID, "3", noted={"superseded": {"expected": 1, "actual": 2}})
    reset = event(7, "conversation.rewound", resets=True)
    new = event(8, SAID, "4")

    assert replayed(told({1: None, 2: 3, 4: None, 6: 6}, aside)) == []
    assert replayed(told({1: 7, 2: 3, 4: 7, 6: 6, 8: None}, aside, reset, new)) == []
    assert replayed(told({1: 7, 2: 3, 4: None, 6: 6, 8: None}, aside, reset, new))


def test_the_path_of_a_fork_is_not_followed() -> None:
    path = ReplayedPath()
    path.take("conversation.started", 1, forked=True)
    assert path.forked


def kept(place: int, batch: int | None) -> OutboxEvent:
    return OutboxEvent("a", place, UUID(int=100 + place), b"", b"", batch=None if batch is None else UUID(int=batch))


def half(upto: int, state: str = "ready") -> list[str]:
    """Return what is found if the store holds so many of an append of three events, which begins at the second."""
    outbox = OutboxState(
        name="bot.outbox.db",
        origin_id=ORIGIN,
        events=[kept(1, None), kept(2, 102), kept(3, 102), kept(4, 102)],
        lanes={"a": OutboxLane(4, upto, 0, state)},
    )
    found = Findings()
    examine_wholeness(outbox, {(ORIGIN, "a", place): event(place, SAID) for place in range(1, upto + 1)}, found)
    return found.shown


def test_half_an_append_with_one_condition_is_noticed() -> None:
    assert [bool(half(upto)) for upto in range(5)] == [False, False, True, True, False]
    assert not half(3, "blocked")
