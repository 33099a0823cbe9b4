"""Log what a relay does, naming conversations and events but never their content."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from letopis.outbox.event_log.acknowledge import Rewound
from letopis.outbox.event_log.lanes import DueBatches, Lane
from letopis.outbox.relay.lane_retries import LaneFailure
from letopis.outbox.relay.send_result import SendResult
from letopis.store.model.codec import EncodedEvent, decode

logger: Final = logging.getLogger("letopis.outbox.relay")


def log_context(lane: Lane | None = None, event: EncodedEvent | None = None) -> dict[str, Any]:
    """Return the fields that every log record of the relay has; ``None`` where there is no lane or event."""
    message_id = None
    if event is not None:
        try:
            message_id = decode(event.data).get("message_id")
        except ValueError:
            message_id = None  # damaged data is no reason to report less
    return {
        "conversation_id": None if lane is None else lane.conversation_id,
        "owner_id": None if lane is None else lane.owner_id,
        "message_id": message_id,
        "event_id": None if event is None else str(event.event_id),
    }


def log_delivery(due: DueBatches, sent: SendResult, failures: Sequence[LaneFailure]) -> None:
    """Log what a delivery overcame: passing faults, refused conversations that are delivered, and conflicts."""
    if sent.faults and sent.delivered and not (failures or sent.fault):
        passed = ", ".join(f"{count} {one}" for one, count in sent.faults.items())
        logger.info("delivered after faults that passed: %s", passed, extra=log_context())
    failed = {one.lane.conversation_id for one in failures}
    for conversation_id in sent.delivered:
        lane = due.lanes[conversation_id]
        if lane.state == "retrying" and conversation_id not in failed:
            logger.info(
                "conversation %r is delivered again after %d refusals",
                conversation_id,
                lane.attempts,
                extra=log_context(lane),
            )
    for conversation_id, conflicts in sent.superseded.items():
        logger.info(
            "%d events of conversation %r came after another writer's turn: kept, and put aside",
            len(conflicts),
            conversation_id,
            extra=log_context(due.lanes[conversation_id]),
        )


def log_lane_failure(failure: LaneFailure, *, attempts: int) -> None:
    """Log that a lane waits for a retry, or is blocked.

    :param attempts: retries that the policy allows an event.
    """
    lane = failure.lane
    if failure.blocks:
        logger.error(
            "conversation %r is blocked at event %d and waits for an operator; nothing was dropped: %s",
            lane.conversation_id,
            lane.delivered + 1,
            failure.fault,
            extra=log_context(lane, failure.event),
        )
        return
    logger.warning(
        "conversation %r: event %d was refused (%d of %d retries used up), next try in %.1f s: %s",
        lane.conversation_id,
        lane.delivered + 1,
        max(0, failure.attempts - 1),
        attempts,
        failure.delay,
        failure.fault,
        extra=log_context(lane, failure.event),
    )


def log_rewind(rewound: Mapping[str, Rewound]) -> None:
    """Log what is sent again and what cannot be, in one record each: a store that was replaced has lost everything."""
    again = {one: done.events for one, done in rewound.items() if done.events and not done.lost}
    lost = {one: done.lost for one, done in rewound.items() if done.lost}
    if again:
        logger.warning(
            "the history store lost %d events that it had, of %d conversations; they are sent again",
            sum(again.values()),
            len(again),
            extra=log_context() | {"conversation_id": next(iter(again)) if len(again) == 1 else None},
        )
    if lost:
        logger.error(
            "%d conversations are blocked: the history store lost %d of their events, which are pruned here too",
            len(lost),
            sum(lost.values()),
            extra=log_context() | {"conversation_id": next(iter(lost)) if len(lost) == 1 else None},
        )
