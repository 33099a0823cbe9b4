"""Merge pending events of a conversation over the history store's view of it, without I/O.

Each function takes the pending slice, which was read first, and the store's view. Without a view, because the store is
unavailable, the slice is all that the file retains. :meth:`PendingSlice.covers` has to hold for the two.

A *place* is the version that an event has in the history store or, while it is pending, the one that it will have
unless another outbox appends to the same conversation first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from letopis.outbox.event_log.retention import StoredRow
from letopis.outbox.pending_reads.pending_slice import CUTTING, PendingSlice, superseded_metadata
from letopis.store.model.codec import INTEGER_MAX
from letopis.store.model.conversations import Conversation, Page, RecordedMessage, Saved, Seen, event_ids
from letopis.store.model.event_types import ConversationStarted
from letopis.store.model.events import NO_UPCASTERS, RecordedEvent, Upcasters
from letopis.store.read.paging import Window
from letopis.store.read.reader import EMPTY_VIEW, StoreView
from letopis.store.rules.fold import Fold, PathPosition
from letopis.store.rules.sight import Sight


class AlreadyDelivered(Exception):
    """The event up to which the file was to be read is in the history store by now: read again from the store."""


@dataclass(frozen=True, slots=True)
class _Merge:
    """The slice after the view: it continues after sequence ``start``, which has place ``base``."""

    pending: PendingSlice
    view: StoreView
    unavailable: bool
    start: int
    base: int
    upto: int | None

    @classmethod
    def of(cls, pending: PendingSlice, view: StoreView | None, upto: int | None = None) -> _Merge:
        """Return the merge of the two."""
        start = pending.start(view)
        if upto is not None and view is not None and start >= upto:
            raise AlreadyDelivered
        base = pending.pruned if view is None else view.version
        return cls(pending, EMPTY_VIEW if view is None else view, view is None, start, base, upto)

    @property
    def rows(self) -> Iterable[StoredRow]:
        return self.pending.beyond(self.start, self.upto)

    @property
    def gone(self) -> bool:
        """Return True if the conversation was deleted, as far as the file alone tells."""
        return self.unavailable and self.pending.deleted and self.upto is None

    @property
    def seen(self) -> Seen:
        head = max(self.pending.head, self.view.sequence)
        return Seen(sequence=head, version=None if self.unavailable else self.view.version)

    def place(self, sequence: int) -> int:
        return self.base + sequence - self.start

    def place_of(self, message: RecordedMessage) -> int:
        return self.place(message.sequence) if message.version is None else message.version

    def saved(self, sequence: int) -> Saved:
        """Return how far an event has got. What is not in the view is not saved, even if it was delivered once."""
        lane = self.pending.lane
        if lane is None or (self.unavailable and sequence <= lane.delivered):
            return Saved.SAVED
        return Saved.BLOCKED if lane.state == "blocked" else Saved.PENDING

    def event(self, row: StoredRow) -> RecordedEvent:
        """Return an event, marked if the history store has set it aside."""
        event = row.event(self.pending.conversation_id, self.pending.origin_id)
        conflict = self.pending.conflicts.get(row.sequence)
        if conflict is None:
            return event
        return replace(event, metadata=superseded_metadata(event.metadata, conflict))

    def fold(self, rows: Iterable[StoredRow], upcasters: Upcasters, messages: Sequence[RecordedMessage] = ()) -> Fold:
        """Return the fold of the view and of some of the rows after it."""
        there = event_ids(messages)
        folding = Fold(
            self.view.conversation,
            messages=messages,
            elsewhere=self._older() if self.unavailable else self.view.places,
            beyond=self.view.beyond,
            upcasters=upcasters,
        )
        for row in rows:
            event = self.event(row)
            known = event.event_id.bytes in there or not self.adds(row)
            folding.apply(event, saved=self.saved(row.sequence), known=known)
        return folding

    def adds(self, row: StoredRow) -> bool:
        """Return False if a row appends a message that the store holds, and keeps where it is."""
        places = self.view.places
        return not (places and row.appends and str(row.data.get("message_id")) in places)

    def _older(self) -> dict[str, PathPosition]:
        """Assume that the messages that rewinds name and a pruned file does not hold are older ones."""
        if self.pending.pruned == 0:
            return {}
        cuts = self.pending.path_cuts(self.start, self.upto)
        named = {target for target, inside in cuts if target is not None and not inside}
        return {name: PathPosition(version=0, on_path=True, count=0) for name in named}


def merge_messages(
    pending: PendingSlice, view: StoreView | None, window: Window, *, upcasters: Upcasters, upto: int | None = None
) -> Page[RecordedMessage]:
    """Return the messages of a window: those of the view, which was read with it, and the pending ones after them."""
    if view is not None and not pending.rows and upto is None:
        seen = Seen(sequence=max(pending.head, view.sequence), version=view.version)
        return Page(view.messages, next=view.next, seen=seen)
    merge = _Merge.of(pending, view, upto)
    view = merge.view
    if merge.gone:
        return Page((), complete=False, seen=merge.seen)
    whole = any(row.type in CUTTING for row in merge.rows) or any(at > merge.start for at in pending.conflicts)
    rows, more = _rows_of(merge, window, whole=whole)
    if rows:
        folded = merge.fold(rows, upcasters, view.messages).result()
        messages = folded.messages if window.every else folded.path
        if whole:
            messages = tuple(
                message
                for message in messages
                if (window.before is None or merge.place_of(message) < window.before)
                and (window.after is None or merge.place_of(message) > window.after)
            )
    else:
        messages = view.messages
    older = view.next is not None or (merge.unavailable and pending.pruned > 0 and window.first is None)
    limit, cursor = window.limit, None
    more = more or (limit is not None and len(messages) > limit)
    if window.last is not None:
        messages = messages[-window.last :]
        cursor = merge.place_of(messages[0]) if messages and (more or older) else None
    else:
        messages = messages[:limit]
        more = more or view.next is not None
        cursor = merge.place_of(messages[-1]) if messages and more and limit is not None else None
    return Page(messages, next=None if cursor is None else str(cursor), complete=not merge.unavailable, seen=merge.seen)


def merge_conversation(
    pending: PendingSlice, view: StoreView | None, *, upcasters: Upcasters, upto: int | None = None
) -> Conversation | None:
    """Return the conversation of the view with what is pending, except whether it is the active one."""
    merge = _Merge.of(pending, view, upto)
    conversation = merge.view.conversation
    if rows := list(merge.rows):
        conversation = merge.fold(rows, upcasters).result().conversation
    if conversation is None:
        return None
    conversation = replace(conversation, seen=merge.seen)
    if merge.gone:
        conversation = replace(conversation, title=None, metadata={}, tags=(), state="deleted", reset_to=INTEGER_MAX)
        conversation = replace(conversation, message_count=0, inherits=False)
    if merge.unavailable and pending.lane is not None:
        lane = pending.lane
        owner_id = conversation.owner_id if conversation.owner_id is not None else lane.owner_id
        return replace(conversation, owner_id=owner_id, version=lane.delivered, pending=lane.pending)
    return conversation


def merge_events(
    pending: PendingSlice,
    view: StoreView | None,
    page: Page[RecordedEvent],
    *,
    after: int,
    limit: int,
    types: frozenset[str] | None = None,
    upcasters: Upcasters = NO_UPCASTERS,
) -> Page[RecordedEvent]:
    """Return ``page`` of the store's events, as of the view, filled up with pending ones."""
    merge = _Merge.of(pending, view)
    page = _seen(pending, view, page, upcasters)
    if page.next is not None:
        return Page(page.items, next=page.next)
    there = {event.event_id for event in page}
    events = list(page)
    cursor = None
    for row in merge.rows:
        if merge.place(row.sequence) <= after or (types is not None and row.type not in types):
            continue
        event = merge.event(row)
        if event.event_id in there:
            continue
        if len(events) >= limit:
            cursor = str(merge.place(row.sequence) - 1)
            break
        events.append(event)
    return Page(tuple(events), next=cursor, complete=not merge.unavailable)


def merge_newest_events(
    pending: PendingSlice,
    view: StoreView | None,
    page: Page[RecordedEvent],
    *,
    before: int | None,
    after: int,
    limit: int,
    types: frozenset[str] | None,
    upcasters: Upcasters = NO_UPCASTERS,
) -> Page[RecordedEvent]:
    """Return the newest pending events before a place, filled up with ``page``, the newest of the store's."""
    merge = _Merge.of(pending, view)
    page = _seen(pending, view, page, upcasters)
    there = {event.event_id for event in page}
    events: list[RecordedEvent] = []
    places: list[int] = []
    for row in reversed(list(merge.rows)):
        version = merge.place(row.sequence)
        wanted = after < version and (before is None or version < before) and (types is None or row.type in types)
        if wanted and row.event_id not in there:
            events.append(merge.event(row))
            places.append(version)
    for event in reversed(page):
        events.append(event)
        places.append(event.version or 0)
    more = len(events) > limit or page.next is not None
    end = str(places[:limit][-1]) if more else None
    return Page(tuple(reversed(events[:limit])), next=end, complete=not merge.unavailable)


def _seen(
    pending: PendingSlice, view: StoreView | None, page: Page[RecordedEvent], upcasters: Upcasters
) -> Page[RecordedEvent]:
    """Return the store's events without what pending events erase."""
    if not pending.rows or (conversation := merge_conversation(pending, view, upcasters=upcasters)) is None:
        return page
    return replace(page, items=tuple(map(Sight.of(conversation, pending.redactions).event, page)))


def last_event_at(pending: PendingSlice, view: StoreView | None, moment: datetime) -> UUID | None:
    """Return the last pending event, in order, that occurred by a moment; ``None`` if there is none."""
    for row in reversed(list(_Merge.of(pending, view).rows)):
        if row.occurred_at <= moment:
            return row.event_id
    return None


def place_of(pending: PendingSlice, view: StoreView | None, message: RecordedMessage) -> int:
    """Return the place of a message of a merged page."""
    return _Merge.of(pending, view).place_of(message)


def may_inherit(pending: PendingSlice, view: StoreView | None) -> bool:
    """Return True if a conversation may be a fork that reads its parent, without decoding events."""
    if view is not None and view.conversation is not None and view.conversation.forked_from is not None:
        return view.conversation.inherits
    for row in pending.rows and pending.beyond(pending.start(view)):
        if row.type == ConversationStarted.type and '"forked_from"' in row.values[4]:
            return True
    return False


def leaves_too_much_out(pending: PendingSlice, view: StoreView) -> bool:
    """Return True if a slice of the newest messages holds fewer of them: one appends what the view shows already."""
    merge = _Merge.of(pending, view)
    return not all(merge.adds(row) for row in merge.rows if row.appends)


def left_on_path(pending: PendingSlice, view: StoreView, *, upto: int | None = None) -> tuple[int, int | None]:
    """Return the versions after which and up to which pending events leave stored messages on the path."""
    bound: int | None = None
    for target, inside in pending.path_cuts(pending.start(view), upto):
        there = None if target is None else view.places.get(target)
        if target is None or (there is None and not inside and view.inherits):
            bound = 0
        elif there is not None and there.on_path and (bound is None or there.version <= bound):
            bound = there.version
    return pending.floor(pending.start(view), upto), bound


def _rows_of(merge: _Merge, window: Window, *, whole: bool) -> tuple[Sequence[StoredRow], bool]:
    """Return the window's messages and all events that may change them, and whether messages were left out."""
    rows = list(merge.rows)
    if whole or not rows:
        return rows, False
    room = window.limit
    if window.first is not None:
        # Messages that the store has left come first.
        room = 0 if merge.view.next is not None else window.first - len(merge.view.messages)
    backward = window.last is not None
    kept: list[StoredRow] = []
    cut = merge.pending.left_out and rows[0].sequence > merge.start + 1
    for row in reversed(rows) if backward else rows:
        if row.appends:
            version = merge.place(row.sequence)
            if (
                (window.before is not None and version >= window.before)
                or (window.after is not None and version <= window.after)
                or not merge.adds(row)
            ):
                continue
            if room is not None and room <= 0:
                cut = True
                if backward:
                    break  # earlier events do not change what is shown
                continue
            room = None if room is None else room - 1
        kept.append(row)
    if backward:
        kept.reverse()
    return kept, cut
