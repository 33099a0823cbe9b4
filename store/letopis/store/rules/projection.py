"""Project fresh events onto the row of a conversation and the rows of its messages, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from letopis.store.model.codec import RESERVED, EncodedEvent, decode
from letopis.store.model.conversations import Delivery
from letopis.store.model.event_types import (
    STATE_EVENTS,
    Body,
    ConversationActivated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRewound,
    ConversationTrimmed,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.rules.decoding import DecodedEvent
from letopis.store.rules.fold import reacted
from letopis.store.rules.preconditions import Conflict, with_conflict
from letopis.store.rules.redaction import mark_arrived_erased, message_of, strip_event
from letopis.store.rules.reducer import MAX_TOKENS, MessageChange, MessageSink, reduce_event, takes_effect
from letopis.store.rules.rows import ConversationRow, MessageRow

ACTIVATION_ORDER_KEY: Final = f"{RESERVED}order"
"""The key of an event's metadata that orders the activations of one outbox, whatever order its lanes deliver in."""
_APPENDED, _SENT, _FAILED = Delivery.APPENDED.value, Delivery.SENT.value, Delivery.FAILED.value


@dataclass(slots=True, kw_only=True)
class Projected:
    """What to write for the fresh events of a conversation."""

    row: ConversationRow
    first: int
    events: list[EncodedEvent] = field(default_factory=list)  # with conflicts noted, without redacted content
    messages: list[MessageRow] = field(default_factory=list)  # new or changed
    superseded: dict[int, Conflict] = field(default_factory=dict)  # by sequence
    redactions: set[str] = field(default_factory=set)  # ids of messages whose stored events are to be stripped
    deleted: bool = False  # so that all its stored events are to be stripped
    reset_at: int | None = None  # of the first event that erased all before it and let the conversation go on
    # Content that left: after the first version, up to the second, by the third; forks read it up to the last.
    trims: list[tuple[int, int, int, int]] = field(default_factory=list)
    released: bool = False  # it has ceased to read its parent
    activations: list[int | None] = field(default_factory=list)  # their orders; None for one without
    left_at: int | None = None  # when it was archived or deleted, if that came last
    # Messages that were not loaded: those after the first version left the path at the second.
    cuts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def versions(self) -> range:
        return range(self.first, self.first + len(self.events))

    @property
    def concerns_owner(self) -> bool:
        """Whether the row of the conversation's owner changes, or may."""
        row = self.row
        new_to_owner = row.number is None or self.activations or self.left_at is not None
        return row.conversation.owner_id is not None and bool(new_to_owner)


@dataclass(slots=True, kw_only=True)
class Unloaded:
    """Stored messages that events take off the path, and that are too many to be loaded."""

    beyond: Mapping[int, int]  # by version that events may lead back to: messages on the path beyond it
    bound: int  # of the last of them that is still on the path


def takes_content(body: Body) -> bool:
    """Return True if an event erases content that came before it."""
    if isinstance(body, ConversationRewound):
        return body.erase is True
    return isinstance(body, ConversationDeleted | ConversationTrimmed | MessageRedacted)


def project_events(
    row: ConversationRow,
    decoded: Sequence[DecodedEvent],
    targets: Iterable[MessageRow] = (),
    *,
    verdicts: Mapping[int, Conflict] | None = None,
    retain: int = 0,
    unloaded: Unloaded | None = None,
    plain: bool = False,
    held: bool = False,
) -> Projected:
    """Apply fresh events to the row of a conversation and the rows of its messages."""
    if plain and row.conversation.state != "deleted":
        return _append_all(row, decoded)
    inherited = row.conversation.inherits
    running = _Projection(row, targets, verdicts or {}, retain, unloaded, held=held)
    for item in decoded:
        running.apply(item)
    projected = running.projected
    projected.messages = [message for message in running.rows if message.new or message.changed]
    projected.released = inherited and not row.conversation.inherits
    return projected


def _append_all(row: ConversationRow, decoded: Sequence[DecodedEvent]) -> Projected:
    """Project events that only append messages: what :class:`_Projection` makes of them, in half the time."""
    state = row.conversation
    projected = Projected(row=row, first=state.version + 1)
    version, updated_at = state.version, state.updated_at
    for item in decoded:
        version += 1
        message, event = item.body.message, item.delivery.event  # type: ignore[attr-defined]
        projected.events.append(event)
        projected.messages.append(
            MessageRow(
                version, message.id, version, None, message.role, _APPENDED, None, None, (), False, message.author, True
            )
        )
        if event.occurred_at > updated_at:
            updated_at = event.occurred_at
        if message.tokens:
            state.tokens = min(state.tokens + message.tokens, MAX_TOKENS)
    state.version, state.updated_at = version, updated_at
    state.message_count += len(decoded)
    return projected


def conflicts_of_shown(
    projected: Projected, decoded: Sequence[DecodedEvent], shown: Mapping[int, int]
) -> dict[int, Conflict]:
    """Return the conflicts of messages that were on the path before a delivery, and left it by an event of it."""
    # They exist already, so the delivery does not append them, but their sender must learn of the conflict.
    sequences = {version: item.delivery.sequence for version, item in zip(projected.versions, decoded, strict=True)}
    left = {row.version: row.left_at for row in projected.messages}
    rows_of: dict[str, list[MessageRow]] = {}
    for row in projected.messages:
        rows_of.setdefault(row.message_id, []).append(row)
    same = {row.version: rows_of[row.message_id] for row in projected.messages}
    conflicts = {}
    for sequence, version in shown.items():
        at = left.get(version) or min((at for after, at in projected.cuts if version > after), default=None)
        if at is None or sequences.get(at, 0) >= sequence:
            continue
        # It may have been put back meanwhile, and be on the path at the end, or have left it once more after this.
        if not any(
            row.left_at is None or sequences.get(row.version, 0) < sequence < sequences.get(row.left_at, 0)
            for row in same.get(version, ())
        ):
            conflicts[sequence] = Conflict(expected=version, actual=at)
    return conflicts


class _Projection(MessageSink):
    """A projection in progress; it receives the effects on messages itself."""

    def __init__(
        self,
        row: ConversationRow,
        targets: Iterable[MessageRow],
        verdicts: Mapping[int, Conflict],
        retain: int,
        unloaded: Unloaded | None,
        *,
        held: bool,
    ) -> None:
        self.projected = Projected(row=row, first=row.conversation.version + 1)
        self.rows = sorted(targets, key=lambda message: message.version)
        self._row = row
        self._verdicts = verdicts
        self._retain = retain
        self._unloaded = unloaded
        self._held = held
        self._version = 0  # of the event that is being applied
        self._events = self.projected.events
        self._bodies: list[Body] = []
        self._by_id: dict[str, list[MessageRow]] = {}
        for message in self.rows:
            self._by_id.setdefault(message.message_id, []).append(message)

    def apply(self, item: DecodedEvent) -> None:
        state, body, event = self._row.conversation, item.body, item.delivery.event
        self._version = self.projected.first + len(self._events)
        deleted = state.state == "deleted"
        if event.salt is None:
            event = mark_arrived_erased(event)
        conflict = self._verdicts.get(item.delivery.sequence)
        if conflict is None:
            if deleted:
                conflict = Conflict(expected=0, actual=state.version, erased="conversation")
            elif self._held and takes_content(body):
                conflict = Conflict(expected=0, actual=state.version, held=True)
            elif not event.redacted and (item.back or isinstance(body, MessageEdited)):
                conflict = self._conflict_with_redaction(message_of(event, body))
        if conflict is not None:
            self.projected.superseded[item.delivery.sequence] = conflict
            event = with_conflict(event, conflict)
        first = isinstance(body, MessageAppended) and not item.back
        if deleted or (not first and self._is_of_redacted(event, body)):
            event = strip_event(event)
        self._events.append(event)
        self._bodies.append(body)
        at, late = event.occurred_at, conflict is not None
        reduce_event(state, body, self, version=self._version, occurred_at=at, superseded=late, back=item.back)
        if conflict is None and isinstance(body, ConversationActivated):
            self.projected.left_at = None
            order = None if event.metadata is None else decode(event.metadata).get(ACTIVATION_ORDER_KEY)
            self.projected.activations.append(order if isinstance(order, int) else None)
        elif conflict is None and isinstance(body, ConversationArchived | ConversationDeleted):
            self.projected.left_at = event.occurred_at

    def _conflict_with_redaction(self, message_id: str | None) -> Conflict | None:
        """Return the conflict of new content of a message if all of its id were redacted: it must not be shown."""
        redacted = [message.redacted_at for message in self._by_id.get(message_id or "", ())]
        if not redacted or None in redacted:
            return None
        actual = max(version for version in redacted if version is not None)
        return Conflict(expected=0, actual=actual, erased="message")

    def _is_of_redacted(self, event: EncodedEvent, body: Body) -> bool:
        """Return True if an event holds content of a redacted message, superseded or not."""
        messages = self._by_id.get(message_of(event, body) or "", ())
        return any(message.redacted_at is not None for message in messages)

    def append(self, body: MessageAppended, *, superseded: bool, back: bool) -> bool:
        version = self._version
        there = self._by_id.setdefault(body.message.id, [])
        if back and not superseded and any(message.left_at is None for message in there):
            return False
        message = MessageRow(
            version=version,
            message_id=body.message.id,
            content_version=version,
            delivery_version=None,
            role=body.message.role,
            state=_APPENDED,
            left_at=version if superseded else None,
            redacted_at=version if self._events[-1].redacted else None,
            back=back,
            author=body.message.author,
            new=True,
        )
        there.append(message)
        self.rows.append(message)
        return True

    def change(self, body: MessageChange) -> None:
        has_content = not self._events[-1].redacted
        for message in self._by_id.get(body.message_id, ()):
            redacted, on_path = message.redacted_at is not None, message.left_at is None
            if not takes_effect(body, has_content=has_content, redacted=redacted, on_path=on_path):
                continue
            message.changed = True
            match body:
                case MessageEdited():
                    message.content_version = self._version
                case MessageSent():
                    message.delivery_version, message.state = self._version, _SENT
                case MessageFailed():
                    message.delivery_version, message.state = self._version, _FAILED
                case MessageRedacted():
                    self._redact(message)
                case ReactionAdded() | ReactionRemoved():
                    message.reactions = reacted(message.reactions, body)

    def _redact(self, message: MessageRow) -> None:
        message.content_version = message.version
        message.erase(self._version)
        if message.left_at is not None:
            message.reactions = ()  # a fold of the log finds it erased before they came
        # Stored events are stripped also if the message is new here: an edit may have been delivered before it.
        self.projected.redactions.add(message.message_id)
        for index, (event, body) in enumerate(zip(self._events, self._bodies, strict=True)):
            if message_of(event, body) == message.message_id:
                self._events[index] = strip_event(event)

    def rewind_to(self, message_id: str, count: int) -> int | None:
        named = self._by_id.get(message_id)
        if not named:
            return None
        on_path = [message.version for message in named if message.left_at is None]
        return count - self._remove_after(on_path[-1]) if on_path else count

    def clear_path(self) -> None:
        self._remove_after(0)

    def erase(self) -> None:
        """Erase all that came before; forks still read what is retained."""
        self._row.retained = min(self._retain, self._version - 1)
        for message in self.rows:
            message.erase(self._version)
            message.reactions, message.changed = (), True
        self._strip_before(retained=self._row.retained)
        if self.projected.reset_at is None:
            self.projected.reset_at = self._version

    def trim(self, after: int, upto: int) -> None:
        """Take content away up to a version; forks still read what is retained."""
        kept = min(self._retain, upto)
        self._row.retained = max(self._row.retained, kept)
        for message in self.rows:
            if after < message.version <= upto:
                message.erase(self._version)
                message.reactions, message.changed = (), True
        for index, event in enumerate(self._events[:-1]):
            version = self.projected.first + index
            if max(after, kept) < version <= upto and not event.type.startswith(STATE_EVENTS):
                self._events[index] = strip_event(event)
        self.projected.trims.append((after, upto, self._version, max(after, kept)))

    def delete(self) -> None:
        self._remove_after(0)
        for message in self.rows:
            if message.reactions:
                message.reactions, message.changed = (), True
        self._row.retained = self._retain
        self.projected.deleted = True
        self._strip_before(retained=self._retain, keep=ConversationDeleted.type)

    def _strip_before(self, *, retained: int, keep: str | None = None) -> None:
        """Strip the events before the current one, but for those that forks read and those of the type ``keep``."""
        for index, event in enumerate(self._events[:-1]):
            if self.projected.first + index > retained and event.type != keep:
                self._events[index] = strip_event(event)

    def _remove_after(self, after: int) -> int:
        """Take the messages after a version off the path; return how many."""
        removed = 0
        unloaded = self._unloaded
        if unloaded is not None and after < unloaded.bound:
            removed = unloaded.beyond.get(after, 0) - unloaded.beyond.get(unloaded.bound, 0)
            unloaded.bound = after
            self.projected.cuts.append((after, self._version))
        for message in self.rows:
            if message.version > after and message.left_at is None:
                message.left_at = self._version
                message.changed = True
                removed += message.new or unloaded is None
        return removed
