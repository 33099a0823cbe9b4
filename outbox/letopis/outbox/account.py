"""Account: what a relay has done, in figures and in log records that name their subject and never its content."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from letopis.outbox.lanes import Lane
from letopis.outbox.marks import Rewound
from letopis.store.codec import EncodedEvent, decode

logger: Final = logging.getLogger("letopis.outbox.relay")


@dataclass(slots=True)
class RelayStats:
    """What a relay has done since it was made.

    :ivar delivered: events that the history store took and that were acknowledged here.
    :ivar duplicates: events that the store held already: re-sent after a lost acknowledgement. No cause for alarm.
    :ivar faults: by fault class, those that passed by themselves included.
    :ivar blocked: times that a lane was blocked.
    :ivar rewound: events sent again because the store had lost them.
    :ivar acks_fenced: results not written back because another relay holds the lease by now.
    :ivar acks_lost: results not written back because the outbox file could not be written.
    :ivar loop_errors: times that the loop went on after an error it did not expect.
    """

    delivered: int = 0
    duplicates: int = 0
    batches: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    blocked: int = 0
    rewound: int = 0
    acks_fenced: int = 0
    acks_lost: int = 0
    loop_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is to be written back about one lane that is in trouble."""

    lane: Lane
    attempts: int
    fault_class: str
    fault: str
    event: EncodedEvent | None
    due_at_us: int | None = None
    """``None``: the lane is blocked."""
    delay: float = 0.0


def tell_mark(mark: Mark, *, attempts: int) -> None:
    """Log that a lane has to wait, or is blocked.

    :param attempts: retries that an event gets in all.
    """
    conversation_id = mark.lane.conversation_id
    if mark.due_at_us is not None:
        logger.warning(
            "conversation %r: event %d was refused (%d of %d retries used up), next try in %.1f s: %s",
            conversation_id,
            mark.lane.delivered + 1,
            max(0, mark.attempts - 1),
            attempts,
            mark.delay,
            mark.fault,
            extra=context(mark.lane, mark.event),
        )
        return
    logger.error(
        "conversation %r is blocked at event %d and waits for a person; nothing was dropped: %s",
        conversation_id,
        mark.lane.delivered + 1,
        mark.fault,
        extra=context(mark.lane, mark.event),
    )


def tell_rewound(rewound: Mapping[str, Rewound]) -> None:
    """Log what is sent again and what cannot be, in one record each: a store that was replaced has lost everything."""
    again = {one: done.events for one, done in rewound.items() if done.events and not done.lost}
    lost = {one: done.lost for one, done in rewound.items() if done.lost}
    if again:
        logger.warning(
            "the history store lost %d events that it had, of %d conversations; they are sent again",
            sum(again.values()),
            len(again),
            extra=context(None) | {"conversation_id": next(iter(again)) if len(again) == 1 else None},
        )
    if lost:
        logger.error(
            "%d conversations are blocked: the history store lost %d of their events, which are pruned here too",
            len(lost),
            sum(lost.values()),
            extra=context(None) | {"conversation_id": next(iter(lost)) if len(lost) == 1 else None},
        )


def context(lane: Lane | None, event: EncodedEvent | None = None) -> dict[str, Any]:
    """Return what every log record of the relay says of its subject; ``None`` where it has none."""
    message_id = None
    if event is not None:
        try:
            message_id = decode(event.data).get("message_id")
        except ValueError:
            message_id = None  # damaged data is no reason to say less about it
    return {
        "conversation_id": None if lane is None else lane.conversation_id,
        "owner_id": None if lane is None else lane.owner_id,
        "message_id": message_id,
        "event_id": None if event is None else str(event.event_id),
    }
