"""Project fresh events onto the row of a conversation and the rows of its messages, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from letopis.store.model.codec import INTEGER_MAX, RESERVED, EncodedEvent, decode
from letopis.store.model.conversations import Delivery
from letopis.store.model.event_types import (
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
from letopis.store.rules.erasure_plan import Cause, ErasurePlan
from letopis.store.rules.fold import reacted
from letopis.store.rules.preconditions import Conflict, with_conflict
from letopis.store.rules.redaction import RETAINED_KEY, arrived_erased, message_of, strip_event, with_note
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
    plans: list[ErasurePlan] = field(default_factory=list)  # what is to be erased of the events that are stored
    released: bool = False  # it has ceased to read its parent
    activations: list[int | None] = field(default_factory=list)  # their orders; None for one without
    left_at: int | None = None  # when it was archived or deleted, if that came last
    # Messages that were not loaded: those after the first version, up to the second, left the path at the third.
    cuts: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def versions(self) -> range:
        return range(self.first, self.first + len(self.events))

    @property
    def deleted(self) -> bool:
        """Whether one of the events deleted the conversation."""
        return any(plan.cause is Cause.DELETION for plan in self.plans)

    @property
    def concerns_owner(self) -> bool:
        """Whether the row of the conversation's owner changes, or may."""
        row = self.row
        new_to_owner = row.number is None or self.activations or self.left_at is not None
        return row.conversation.owner_id is not None and bool(new_to_owner)


@dataclass(slots=True, kw_only=True)
class Unloaded:
    """Stored messages that events take off the path, and that are too many to be loaded."""

    beyond: Mapping[int, int]  # by version that events may lead back to or reset: messages on the path beyond it
    bound: int  # of the last of them that is still on the path
    start: int = 0  # those up to it have left the path


def takes_content(body: Body) -> bool:
    """Return True if an event erases content that came before it."""
    if isinstance(body, ConversationRewound):
        return body.erase is True
    return isinstance(body, ConversationDeleted | ConversationTrimmed | MessageRedacted)


@dataclass(frozen=True, slots=True)
class HeldMessages:
    """Messages whose authors are on hold, in a conversation that may not be.

    :ivar message_ids: those of them that are to be redacted.
    :ivar first: the version of the first of all.
    """

    message_ids: frozenset[str] = frozenset()
    first: int = INTEGER_MAX

    def forbid(self, body: Body) -> bool:
        """Return True if an event would erase one of them by a redaction or a trim."""
        if isinstance(body, MessageRedacted):
            return body.message_id in self.message_ids
        return isinstance(body, ConversationTrimmed) and body.upto >= self.first


NO_HELD_MESSAGES: Final = HeldMessages()


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
    held_messages: HeldMessages = NO_HELD_MESSAGES,
) -> Projected:
    """Apply fresh events to the row of a conversation and the rows of its messages."""
    if plain and row.conversation.state != "deleted":
        return _append_all(row, decoded)
    inherited = row.conversation.reads_parent
    running = _Projection(row, targets, verdicts or {}, retain, unloaded, held=held, held_messages=held_messages)
    for item in decoded:
        running.apply(item)
    projected = running.projected
    projected.messages = [message for message in running.rows if message.new or message.changed]
    projected.released = inherited and not row.conversation.reads_parent
    if running.redacted:
        ids = frozenset(running.redacted)
        projected.plans.append(ErasurePlan(lane=row.conversation_id, cause=Cause.REDACTION, message_ids=ids))
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
                version, message.id, version, None, message.role, _APPENDED, None, None, (), message.author, True
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
    conflicts = {}
    for sequence, version in shown.items():
        cuts = (at for after, upto, at in projected.cuts if after < version <= upto)
        at = left.get(version) or min(cuts, default=None)
        if at is not None and sequences.get(at, 0) < sequence:
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
        held_messages: HeldMessages,
    ) -> None:
        self.projected = Projected(row=row, first=row.conversation.version + 1)
        self.rows = sorted(targets, key=lambda message: message.version)
        self._row = row
        self._verdicts = verdicts
        self._retain = retain
        self._unloaded = unloaded
        self._held = held
        self._held_messages = held_messages
        self._version = 0  # of the event that is being applied
        self._events = self.projected.events
        self._bodies: list[Body] = []
        self.redacted = set[str]()  # ids of messages whose stored events are to be stripped
        self._by_id: dict[str, list[MessageRow]] = {}
        for message in self.rows:
            self._by_id.setdefault(message.message_id, []).append(message)

    def apply(self, item: DecodedEvent) -> None:
        state, body, event = self._row.conversation, item.body, item.delivery.event
        self._version = self.projected.first + len(self._events)
        deleted = state.state == "deleted"
        conflict = self._verdicts.get(item.delivery.sequence)
        if conflict is None:
            if deleted:
                conflict = Conflict(expected=0, actual=state.version, erased="conversation")
            elif (self._held and takes_content(body)) or self._held_messages.forbid(body):
                conflict = Conflict(expected=0, actual=state.version, held=True)
            elif not event.redacted and isinstance(body, MessageEdited):
                conflict = self._conflict_with_redaction(message_of(event, body))
        if conflict is not None:
            self.projected.superseded[item.delivery.sequence] = conflict
            event = with_conflict(event, conflict)
        if deleted or (not isinstance(body, MessageAppended) and self._is_of_redacted(event, body)):
            event = strip_event(event)
        self._events.append(event)
        self._bodies.append(body)
        at, late = event.occurred_at, conflict is not None
        arrived = event.redacted and arrived_erased(event.metadata)
        reduce_event(state, body, self, version=self._version, occurred_at=at, superseded=late, arrived_erased=arrived)
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

    def append(self, body: MessageAppended, *, superseded: bool) -> None:
        version, event = self._version, self._events[-1]
        message = MessageRow(
            version=version,
            message_id=body.message.id,
            content_version=version,
            delivery_version=None,
            role=body.message.role,
            state=_APPENDED,
            left_at=version if superseded else None,
            redacted_at=version if event.redacted else None,
            author=body.message.author,
            new=True,
            arrived_erased=event.redacted and arrived_erased(event.metadata),
        )
        self._by_id.setdefault(body.message.id, []).append(message)
        self.rows.append(message)

    def change(self, body: MessageChange, *, trimmed: int) -> None:
        has_content = not self._events[-1].redacted
        for message in self._by_id.get(body.message_id, ()):
            redacted, shown = message.redacted_at is not None, message.left_at is None and message.version > trimmed
            if not takes_effect(body, has_content=has_content, redacted=redacted, shown=shown):
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
        message.redact(self._version)
        if message.left_at is not None:
            message.reactions = ()  # a fold of the log finds it erased before they came
        # Stored events are stripped also if the message is new here: an edit may have been delivered before it.
        self.redacted.add(message.message_id)
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

    def leave(self, upto: int, count: int) -> int:
        return count - self._remove_after(0, upto)

    def erase(self, upto: int) -> None:
        deleted = isinstance(self._bodies[-1], ConversationDeleted)
        self._carry_out(Cause.DELETION if deleted else Cause.RESET, 0, upto)

    def trim(self, after: int, upto: int) -> None:
        self._carry_out(Cause.TRIM, after, upto)

    def _carry_out(self, cause: Cause, after: int, upto: int) -> None:
        """Carry a plan out over what is loaded here, and leave the rest to the writer; forks read what is retained."""
        last = self._version - 1
        kept = min(self._retain, last)
        everything = after == 0 and upto == last and cause is not Cause.TRIM
        self._row.retained = kept if everything else max(self._row.retained, kept)
        name, version = self._row.conversation_id, self._version
        plan = ErasurePlan(lane=name, cause=cause, after=after, upto=upto, beyond=last, at=version, retained=kept)
        for message in self.rows:
            if after < message.version <= upto:
                message.erase(version)
        for index, event in enumerate(self._events[:-1]):
            place = self.projected.first + index
            if plan.covers(place, event.type):
                self._events[index] = strip_event(event)
            elif place > upto and self._changes_erased(event, self._bodies[index]):
                noted = replace(event, metadata=with_note(event.metadata, RETAINED_KEY))
                self._events[index] = noted if place <= kept else strip_event(event)
        self.projected.plans.append(plan)

    def _changes_erased(self, event: EncodedEvent, body: Body) -> bool:
        """Return True if an event is a later change of a message of which no content is left."""
        messages = self._by_id.get(message_of(event, body) or "", ())
        erased = bool(messages) and all(message.redacted_at is not None for message in messages)
        return erased and not isinstance(body, MessageAppended)

    def _remove_after(self, after: int, upto: int = INTEGER_MAX) -> int:
        """Take the messages after a version off the path, or those up to one and those erased; return how many."""
        removed = 0
        unloaded = self._unloaded
        if unloaded is not None and (first := max(after, unloaded.start)) < (last := min(upto, unloaded.bound)):
            removed = unloaded.beyond.get(first, 0) - unloaded.beyond.get(last, 0)
            self.projected.cuts.append((first, last, self._version))
            if upto == INTEGER_MAX:
                unloaded.bound = after
            else:
                unloaded.start = upto
        for message in self.rows:
            within = after < message.version <= upto
            if (within or message.arrived_erased) and message.version > after and message.left_at is None:
                message.left_at = self._version
                message.changed = True
                removed += message.new or unloaded is None or not within
        return removed
