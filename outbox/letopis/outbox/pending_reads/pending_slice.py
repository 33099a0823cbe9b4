"""Read the pending slice of a conversation: the events in the outbox file that the history store may not hold.

It is read before the store. An event that is delivered in between is in both, and the merge drops it by the sequence
that the store's view reports; an event that is not in the slice was delivered before, and is in the view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self
from uuid import UUID

from letopis.outbox.event_log.lanes import Lane, lane_of
from letopis.outbox.event_log.retention import StoredRow, rows_after
from letopis.outbox.event_log.statements import query_all
from letopis.store.model.event_types import (
    ConversationDeleted,
    ConversationRewound,
    EventSkipped,
    MessageAppended,
    MessageRedacted,
)
from letopis.store.read.reader import StoreView
from letopis.store.rules.preconditions import SUPERSEDED_KEY, Conflict

CUTTING: Final = frozenset({ConversationRewound.type, ConversationDeleted.type})
"""Events that take messages off the path which may be in the store alone."""
_MADE_ID_VERSION: Final = 7

_CUTTING: Final = (
    "SELECT 1 FROM letopis_outbox_log WHERE conversation_id = ? AND sequence > ? AND type IN (?, ?) LIMIT 1"
)
_CONFLICTS: Final = (
    "SELECT sequence, expected, actual FROM letopis_outbox_superseded WHERE conversation_id = ? AND sequence > ?"
)
_DELETED: Final = "SELECT 1 FROM letopis_outbox_lanes WHERE conversation_id = ? AND deleted_at > 0"
_REPAIRED: Final = (
    "SELECT 1 FROM letopis_outbox_log AS e JOIN letopis_outbox_repairs AS r ON r.event_id = e.event_id"
    " WHERE e.conversation_id = ? AND e.sequence = ?"
    " UNION ALL SELECT 1 FROM letopis_outbox_log AS e"
    " WHERE e.conversation_id = ? AND e.sequence = ? AND e.type = ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSlice:
    """One conversation's events after a sequence, as the file held them at one moment."""

    conversation_id: str
    origin_id: UUID
    lane: Lane | None = None  # ``None`` if the file holds nothing of the conversation, or only ``head`` was read
    head: int = 0  # the last sequence in the file; 0 for none
    since: int = 0  # the rows begin after it; a store that holds less needs another slice
    rows: tuple[StoredRow, ...] = ()  # in order, up to ``head``: all of them, or the newest if ``left_out``
    left_out: bool = False
    # by which the history store set events aside, by sequence
    conflicts: Mapping[int, Conflict] = field(default_factory=dict)
    deleted: bool = False  # without a view: deleted here or, as the store has told, through another outbox
    diverged: bool = False  # the store holds other events under the pending sequences: the file is a backup or a copy

    @classmethod
    def nothing(cls, conversation_id: str, origin_id: UUID, head: int) -> Self:
        """Return the slice of a conversation without pending events."""
        return cls(conversation_id=conversation_id, origin_id=origin_id, head=head, since=head)

    @property
    def pruned(self) -> int:
        """The last sequence that is no longer in the file."""
        return 0 if self.lane is None else self.lane.pruned

    @property
    def cuts(self) -> bool:
        """Whether an event of it may take messages off the path."""
        return not CUTTING.isdisjoint([row.type for row in self.rows])

    @property
    def names(self) -> frozenset[str]:
        """The ids of the messages to which its rewinds lead, or that the store may have already."""
        named = set[object]()
        for row in self.rows:
            if row.type == ConversationRewound.type:
                named.add(row.data.get("to_message_id"))
            # An event id that was made, and not derived from a chosen id of the message, is of a message that is new.
            elif row.type == MessageAppended.type and row.values[1][6] >> 4 != _MADE_ID_VERSION:
                named.add(row.data.get("message_id"))
        return frozenset(name for name in named if isinstance(name, str)) if named else frozenset()

    def start(self, view: StoreView | None) -> int:
        """Return the sequence after which its rows are not in a view."""
        if view is None or self.lane is None:
            return self.since
        if self.diverged and self.lane.delivered < view.sequence:
            return self.lane.delivered
        return view.sequence

    def path_cuts(self, start: int, upto: int | None = None) -> list[tuple[str | None, bool]]:
        """Return the messages after which the path is cut, in order, and whether each is in the slice itself."""
        cuts: list[tuple[str | None, bool]] = []
        if not self.cuts:
            return cuts
        appended: set[str] = set()
        for row in self.beyond(start, upto):
            if row.sequence in self.conflicts:
                continue
            if row.appends:
                appended.add(str(row.data.get("message_id")))
            elif row.type in CUTTING and row.data.get("upto") is None:
                target = row.data.get("to_message_id")
                cuts.append((target, target in appended))
        return cuts

    def floor(self, start: int, upto: int | None = None) -> int:
        """Return the version up to which resets with a bound take what is stored off the path; 0 for none."""
        cuts = (row for row in self.beyond(start, upto) if row.type in CUTTING and row.sequence not in self.conflicts)
        return max((row.data.get("upto") or 0 for row in cuts), default=0) if self.cuts else 0

    @property
    def redactions(self) -> frozenset[str]:
        """The messages that its events redact."""
        there = (row for row in self.rows if row.type == MessageRedacted.type and row.sequence not in self.conflicts)
        return frozenset(str(row.data.get("message_id")) for row in there)

    def beyond(self, start: int, upto: int | None = None) -> Iterable[StoredRow]:
        """Return the rows after ``start``, up to ``upto``."""
        if upto is None and (not self.rows or self.rows[0].sequence > start):
            return self.rows
        return [row for row in self.rows if row.sequence > start and (upto is None or row.sequence <= upto)]


def read_slice(
    cursor: Any,
    conversation_id: str,
    *,
    origin_id: UUID,
    since: int | None = None,
    newest: int | None = None,
) -> PendingSlice:
    """Read what is pending of a conversation, on a driver's cursor."""
    lane = lane_of(cursor, conversation_id)
    if lane is None:
        return PendingSlice(conversation_id=conversation_id, origin_id=origin_id)
    start = max(lane.delivered if since is None else since, lane.pruned)
    conflicts = {
        row[0]: Conflict(expected=row[1], actual=row[2])
        for row in query_all(cursor, _CONFLICTS, (conversation_id, start))
    }
    cutting = (conversation_id, start, *sorted(CUTTING))
    whole = newest is None or bool(conflicts) or bool(query_all(cursor, _CUTTING, cutting))
    rows, left_out = _rows(cursor, conversation_id, start, None if whole else newest)
    return PendingSlice(
        conversation_id=conversation_id,
        origin_id=origin_id,
        lane=lane,
        head=lane.head,
        since=start,
        rows=rows,
        left_out=left_out,
        conflicts=conflicts,
        diverged=_diverged(cursor, lane),
    )


def read_retained(cursor: Any, conversation_id: str, *, origin_id: UUID, newest: int | None = None) -> PendingSlice:
    """Read all that the file retains of a conversation, or its newest part, while the store is unavailable."""
    pending = read_slice(cursor, conversation_id, origin_id=origin_id, since=0, newest=newest)
    return replace(pending, deleted=bool(query_all(cursor, _DELETED, (conversation_id,))))


def superseded_metadata(metadata: Mapping[str, Any], conflict: Conflict) -> Mapping[str, Any]:
    """Return an event's metadata, marked as superseded by the history store."""
    return {**metadata, SUPERSEDED_KEY: conflict.to_data()}


def _rows(cursor: Any, conversation_id: str, start: int, newest: int | None) -> tuple[tuple[StoredRow, ...], bool]:
    if newest is None:
        return tuple(rows_after(cursor, conversation_id, start)), False
    rows: list[StoredRow] = []
    left = newest
    for row in rows_after(cursor, conversation_id, start, backward=True):
        if row.appends:
            if left == 0:
                rows.reverse()
                return tuple(rows), True
            left -= 1
        rows.append(row)
    rows.reverse()
    return tuple(rows), False


def _diverged(cursor: Any, lane: Lane) -> bool:
    # A repaired event differs too, but the store holds the original, and the events after it may be equal.
    position = (lane.conversation_id, lane.delivered + 1)
    return (
        lane.state == "blocked"
        and lane.fault_class == "diverged"
        and not query_all(cursor, _REPAIRED, (*position, *position, EventSkipped.type))
    )
