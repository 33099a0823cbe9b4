"""Projection: what fresh events make of a conversation's row and its messages; by the rules of ``fold``, and pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson

from letopis.store.codec import RESERVED, EncodedEvent, decode, digest_of
from letopis.store.conversation import Delivery as State
from letopis.store.conversation import Reaction
from letopis.store.erasure import OF_A_MESSAGE, stripped
from letopis.store.errors import InvalidInput
from letopis.store.fold import PROJECTION_RULES, SUPERSEDED, Tally, reacted
from letopis.store.identifiers import check_identifier
from letopis.store.making import quick
from letopis.store.plan import Delivery, Row
from letopis.store.turns import Conflict, Expects
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import (
    Body,
    ConversationActivated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    UnknownEvent,
    read,
)


@dataclass(slots=True, kw_only=True)
class ConversationRow:
    """A row of the conversations while a batch is applied to it; mutable for the time of one transaction."""

    partition: int
    conversation_id: str
    tally: Tally[int]
    number: int | None = None
    retained: int = 0
    rules: int = PROJECTION_RULES
    new: bool = False

    def as_row(self) -> Row:
        """Return the values in the order of the table's columns."""
        tally = self.tally
        fork = tally.fork
        return (
            self.partition,
            self.conversation_id,
            tally.owner_id,
            self.number,
            tally.title,
            tally.state,
            tally.version,
            tally.message_count,
            tally.tokens,
            tally.created_at,
            tally.updated_at,
            None if fork is None else fork.conversation_id,
            None if fork is None else fork.version,
            orjson.dumps(tally.metadata, option=orjson.OPT_SORT_KEYS).decode() if tally.metadata else None,
            None if fork is None else fork.event_id,
            int(tally.inherits),
            tally.inherited_to,
            self.retained,
            # A row that older rules made stays one of theirs, whatever is added: a rebuild has to find it.
            self.rules,
        )


@dataclass(slots=True, kw_only=True)
class MessageRow:
    """A row of the messages while a batch is applied to it; mutable for the time of one transaction."""

    version: int
    message_id: str
    content_version: int
    delivery_version: int | None
    role: str
    state: str
    left_at: int | None = None
    redacted_at: int | None = None
    reactions: tuple[Reaction, ...] = ()
    new: bool = False
    changed: bool = False

    def as_row(self, partition: int, conversation_id: str) -> Row:
        """Return the values in the order of the table's columns."""
        return (
            partition,
            conversation_id,
            self.version,
            self.message_id,
            self.content_version,
            self.delivery_version,
            self.role,
            self.state,
            self.left_at,
            self.redacted_at,
            reactions_to_text(self.reactions),
        )


def reactions_to_text(reactions: Sequence[Reaction]) -> str | None:
    """Return reactions as their column holds them."""
    if not reactions:
        return None
    return orjson.dumps([[one.key, one.actor, one.value] for one in reactions]).decode()


def reactions_from_text(text: str | None) -> tuple[Reaction, ...]:
    """Return the reactions that their column holds."""
    if text is None:
        return ()
    return tuple(Reaction(key=key, actor=actor, value=value) for key, actor, value in orjson.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreted:
    """A fresh event, what it says, and under what condition."""

    delivery: Delivery
    body: Body
    expects: Expects | None = None


_interpreted: Final = quick(Interpreted)

TARGETING: Final = (MessageEdited, MessageSent, MessageFailed, MessageRedacted, ReactionAdded, ReactionRemoved)
"""What changes a message that was appended before."""
_OUR_KEYS: Final = f'"{RESERVED}'
_APPENDED: Final = State.APPENDED.value


def interpret(fresh: Iterable[Delivery], upcasters: Upcasters) -> tuple[Interpreted, ...]:
    """Read what fresh events say, as every reader will.

    :raises InvalidInput: the content does not match its digest, so the outbox was damaged; or a key that the store
        keeps in a column of its own is none that it can keep. Both mean that this event cannot be applied as it is.
    """
    interpreted = []
    for delivery in fresh:
        event = delivery.event
        type_name, schema_version, metadata = event.type, event.schema_version, event.metadata
        if digest_of(event.conversation_id, type_name, schema_version, event.data, metadata) != event.digest:
            raise InvalidInput("digest", "does not match the content: the event was damaged after it was appended")
        try:
            recorded = decode(event.data)
            expects = Expects.of(decode(metadata)) if metadata is not None and _OUR_KEYS in metadata else None
        except ValueError as error:
            raise InvalidInput("data", "is no JSON object") from error
        body = read(type_name, *upcasters.upcast(type_name, schema_version, recorded))
        # A message's own id was checked by reading it.
        if isinstance(body, ConversationStarted) and body.owner_id is not None:
            check_identifier(body.owner_id, "data.owner_id")
        if isinstance(body, ConversationRewound) and body.to_message_id is not None:
            check_identifier(body.to_message_id, "data.to_message_id")
        interpreted.append(_interpreted(delivery=delivery, body=body, expects=expects))
    return tuple(interpreted)


def targets_of(interpreted: Iterable[Interpreted]) -> frozenset[str]:
    """Return the ids of the messages that the events change or name, whether or not they exist."""
    named = set()
    for item in interpreted:
        if isinstance(item.body, TARGETING):
            named.add(item.body.message_id)
        elif isinstance(item.body, ConversationRewound) and item.body.to_message_id is not None:
            named.add(item.body.to_message_id)
        elif isinstance(item.body, UnknownEvent) and (message_id := message_of(item.delivery.event, item.body)):
            named.add(message_id)
    return frozenset(named)


def leaves_after(interpreted: Iterable[Interpreted], targets: Iterable[MessageRow]) -> int | None:
    """Return the version after which messages may leave the path through the events; ``None`` where none do.

    :param targets: the stored messages that the events name.
    """
    known: dict[str, int] = {}
    for row in targets:
        known[row.message_id] = min(row.version, known.get(row.message_id, row.version))
    appended: set[str] = set()
    bound: int | None = None
    for item in interpreted:
        match item.body:
            case MessageAppended():
                appended.add(item.body.message.id)
            case ConversationDeleted():
                return 0
            case ConversationRewound(to_message_id=None):
                return 0
            case ConversationRewound(to_message_id=str(target)) if target not in appended:
                # What is not here may be a fork's inherited message.
                bound = min(known.get(target, 0), bound if bound is not None else known.get(target, 0))
    return bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Projected:
    """What a conversation's fresh events come to.

    :ivar events: as they are to be recorded: with verdicts, and without what was redacted.
    :ivar versions: of the events, in the order of the events.
    :ivar messages: rows that are new or have changed.
    :ivar superseded: verdicts, by sequence.
    :ivar redactions: the ids of messages whose stored events are to be stripped.
    :ivar deleted: whether the conversation was deleted, so that all its stored events are to be stripped.
    :ivar released: whether it has ceased to read its parent.
    :ivar activations: the orders of its activations, ``None`` where one has none, in order.
    :ivar left: whether it was archived or deleted, so that it is not the active one any more.
    """

    row: ConversationRow
    events: tuple[EncodedEvent, ...]
    versions: range
    messages: tuple[MessageRow, ...]
    superseded: Mapping[int, Conflict]
    redactions: frozenset[str]
    deleted: bool
    released: bool
    activations: tuple[int | None, ...]
    left: bool


def project(
    row: ConversationRow,
    interpreted: Sequence[Interpreted],
    targets: Iterable[MessageRow] = (),
    *,
    verdicts: Mapping[int, Conflict] | None = None,
    retain: int = 0,
) -> Projected:
    """Take fresh events into a conversation's row and its messages; by the rules of ``fold``.

    :param row: the conversation as it stands; changed in place.
    :param targets: the stored messages that the events may change or take off the path; changed in place.
    :param verdicts: which events came too late, by sequence.
    :param retain: events up to this version are read by forks: a deletion leaves them their content.
    """
    running = _Projection(row, targets, dict(verdicts or {}), retain)
    for item in interpreted:
        running.take(item)
    return running.result()


class _Projection:
    """A projection under way."""

    def __init__(
        self, row: ConversationRow, targets: Iterable[MessageRow], verdicts: dict[int, Conflict], retain: int
    ) -> None:
        self._row = row
        self._first = row.tally.version + 1
        self._rows = sorted(targets, key=lambda message: message.version)
        self._known: dict[str, list[MessageRow]] = {}
        for message in self._rows:
            self._known.setdefault(message.message_id, []).append(message)
        self._verdicts = verdicts
        self._retain = retain
        self._superseded: dict[int, Conflict] = {}
        self._events: list[EncodedEvent] = []
        self._bodies: list[Body] = []
        self._redactions: set[str] = set()
        self._deleted = False
        self._inherited = row.tally.inherits
        self._activations: list[int | None] = []
        self._left = False

    def take(self, item: Interpreted) -> None:
        tally, body, event = self._row.tally, item.body, item.delivery.event
        version = self._first + len(self._events)
        conflict = self._verdicts.get(item.delivery.sequence)
        gone = tally.state == "deleted"
        if gone and conflict is None:
            conflict = Conflict(expected=0, actual=tally.version)
        if conflict is not None:
            self._superseded[item.delivery.sequence] = conflict
            event = with_verdict(event, conflict)
        if gone or (not isinstance(body, MessageAppended) and self._comes_after_its_redaction(event, body)):
            event = strip(event)
        tally.take(body, version=version, occurred_at=event.occurred_at, superseded=conflict is not None)
        self._events.append(event)
        self._bodies.append(body)
        if isinstance(body, MessageAppended):
            self._append(body, version, event, superseded=conflict is not None)
        elif conflict is None:
            self._effect(body, version, event)

    def _comes_after_its_redaction(self, event: EncodedEvent, body: Body) -> bool:
        """Whether an event holds content of a redacted message; whatever its verdict, and whether we know its shape."""
        return any(one.redacted_at is not None for one in self._known.get(message_of(event, body) or "", ()))

    def _append(self, body: MessageAppended, version: int, event: EncodedEvent, *, superseded: bool) -> None:
        message = MessageRow(
            version=version,
            message_id=body.message.id,
            content_version=version,
            delivery_version=None,
            role=body.message.role,
            state=_APPENDED,
            left_at=version if superseded else None,
            redacted_at=version if event.redacted else None,
            new=True,
        )
        self._known.setdefault(message.message_id, []).append(message)
        self._rows.append(message)

    def _effect(self, body: Body, version: int, event: EncodedEvent) -> None:
        tally = self._row.tally
        match body:
            case ConversationRewound():
                self._rewind(body.to_message_id, version)
            case ConversationDeleted():
                self._leave(0, version)
                for message in self._rows:
                    if message.reactions:
                        message.reactions, message.changed = (), True
                tally.message_count = 0
                self._row.retained = self._retain
                self._deleted = self._left = True
                self._events = [
                    event
                    if self._first + place <= self._retain or event.type == ConversationDeleted.type
                    else strip(event)
                    for place, event in enumerate(self._events)
                ]
            case ConversationArchived():
                self._left = True
            case ConversationActivated():
                self._left = False
                order = None if event.metadata is None else decode(event.metadata).get(ORDER)
                self._activations.append(order if isinstance(order, int) else None)
            case _ if isinstance(body, TARGETING):
                for message in self._known.get(body.message_id, ()):
                    self._change(message, body, version)
            case _:
                pass  # no message hangs on it

    def _change(self, message: MessageRow, body: Body, version: int) -> None:
        match body:
            case MessageEdited() if message.redacted_at is None and not self._events[-1].redacted:
                message.content_version = version
            case MessageEdited():
                self._events[-1] = strip(self._events[-1])
                return
            case MessageSent() | MessageFailed():
                message.delivery_version = version
                message.state = (State.SENT if isinstance(body, MessageSent) else State.FAILED).value
                if message.redacted_at is not None:
                    self._events[-1] = strip(self._events[-1])
            case MessageRedacted():
                self._redact(message, version)
            case ReactionAdded() | ReactionRemoved() if not self._events[-1].redacted:
                message.reactions = reacted(message.reactions, body)
            case _:
                return  # a reaction without content, whose conversation's deletion is on its way
        message.changed = True

    def _redact(self, message: MessageRow, version: int) -> None:
        message.content_version = message.version
        # Its own version is what it has while it came without content and the redaction was still to come.
        if message.redacted_at in (None, message.version):
            message.redacted_at = version
        # Also where the message itself comes only now: an edit may have overtaken it.
        self._redactions.add(message.message_id)
        for place, (event, body) in enumerate(zip(self._events, self._bodies, strict=True)):
            if message_of(event, body) == message.message_id:
                self._events[place] = strip(event)

    def _rewind(self, target: str | None, version: int) -> None:
        tally = self._row.tally
        if target is None:
            self._leave(0, version)
            tally.inherits, tally.message_count = False, 0
            return
        named = self._known.get(target, [])
        on_path = [message for message in named if message.left_at is None]
        if on_path:
            tally.message_count -= self._leave(on_path[-1].version, version)
        elif not named and tally.inherits:
            self._leave(0, version)
            tally.inherited_to, tally.message_count = target, 0

    def _leave(self, after: int, version: int) -> int:
        left = 0
        for message in self._rows:
            if message.version > after and message.left_at is None:
                message.left_at = version
                message.changed = True
                left += 1
        return left

    def result(self) -> Projected:
        return Projected(
            row=self._row,
            events=tuple(self._events),
            versions=range(self._first, self._first + len(self._events)),
            messages=tuple(message for message in self._rows if message.new or message.changed),
            superseded=self._superseded,
            redactions=frozenset(self._redactions),
            deleted=self._deleted,
            released=self._inherited and not self._row.tally.inherits,
            activations=tuple(self._activations),
            left=self._left,
        )


ORDER: Final = f"{RESERVED}order"
"""The key of an event's metadata that orders the activations of one outbox, whatever order its lanes deliver in."""


def message_of(event: EncodedEvent, body: Body) -> str | None:
    """Return the id of the message whose content an event holds, also where this release does not know its shape."""
    if event.type not in OF_A_MESSAGE:
        return None
    if isinstance(body, MessageAppended):
        return body.message.id
    if isinstance(body, TARGETING):
        return body.message_id
    try:
        return check_identifier(decode(event.data).get("message_id"), "message_id")
    except InvalidInput:
        return None  # no message can have it, and not every database can be asked for it


def strip(event: EncodedEvent) -> EncodedEvent:
    """Return an event without its content; what Letopis itself noted in its metadata stays."""
    data = orjson.dumps(stripped(event.type, decode(event.data)), option=orjson.OPT_SORT_KEYS).decode()
    metadata = ours_of(event.metadata)
    return replace(
        event,
        data=data,
        metadata=metadata,
        digest=digest_of(event.conversation_id, event.type, event.schema_version, data, metadata),
        redacted=True,
    )


def ours_of(metadata: str | None) -> str | None:
    """Return the part of an event's metadata that Letopis itself put there."""
    if metadata is None or _OUR_KEYS not in metadata:
        return None
    ours = {key: value for key, value in decode(metadata).items() if key.startswith(RESERVED)}
    return orjson.dumps(ours, option=orjson.OPT_SORT_KEYS).decode() if ours else None


def with_verdict(event: EncodedEvent, conflict: Conflict) -> EncodedEvent:
    """Return an event with the verdict that it came too late; its digest, which leaves that out, stays."""
    metadata = {**decode(event.metadata), SUPERSEDED: conflict.to_data()}
    return replace(event, metadata=orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS).decode())
