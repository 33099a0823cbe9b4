"""Check and encode the events of an append, before the outbox file is touched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from letopis.outbox.telemetry.tracing import current_traceparent
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import (
    DEFAULT_LIMITS,
    INTEGER_MAX,
    RESERVED,
    TRACEPARENT,
    EncodedEvent,
    Limits,
    encode,
    encode_message,
)
from letopis.store.model.conversations import Seen
from letopis.store.model.event_types import Body, MessageAppended
from letopis.store.model.events import Event, check_type
from letopis.store.model.identifiers import Owner, check_identifier, owner_id
from letopis.store.model.messages import EMPTY, Message, empty
from letopis.store.rules.preconditions import PRECONDITION_KEY, TURN_TYPES, Precondition

if TYPE_CHECKING:
    from letopis.store.read.records import RecordsView
    from letopis.store.rules.record_plan import RecordChange

_UUID_LENGTH: Final = 36


class HasSeen(Protocol):
    """An object that knows how much of a conversation was seen: a page, a conversation or a receipt."""

    @property
    def seen(self) -> Seen | None:
        """How much was seen."""


After = int | Seen | HasSeen  # what to append after: the sequence of a receipt, or what was read


@dataclass(slots=True)
class PreparedChange:
    """A change of a record that is checked and encoded, and its event; its sequence is not known yet."""

    event: EncodedEvent
    change: RecordChange


@dataclass(slots=True)
class Prepared:
    """An append that is checked and encoded; nothing in it depends on the outbox file."""

    conversation_id: str
    events: tuple[EncodedEvent, ...]
    message_ids: tuple[str | None, ...]  # of the messages that the events append
    owner_id: str | None = None
    expects: Precondition | None = None
    # by derived event id, the id that the event has if Letopis made its message id
    aliases: Mapping[UUID, UUID] = field(default_factory=empty)
    to_confirm: Mapping[UUID, str] | None = None  # by event id, the messages whose sending is to be confirmed
    writer: str = ""  # who is to confirm it
    draft: str | None = None  # the message whose draft it completes; refused if an erasure has deleted that
    changes: tuple[PreparedChange, ...] = ()  # the events as changes of records, which may be of several lanes
    view: RecordsView | None = None  # what the history store held of records with conditions
    trusting: bool = False  # the store may decide a condition that the file cannot


def prepare(
    conversation_id: str,
    what: Sequence[Message | Body | Event],
    *,
    owner: Owner | None = None,
    metadata: Mapping[str, Any] | None = None,
    occurred_at: datetime | None = None,
    expected: After | None = None,
    after: After | None = None,
    fail_if_types: Collection[str] | None = None,
    confirm: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Prepared:
    """Check and encode what is to be appended, without touching the file; the parameters are ``History.append``'s."""
    conversation_id = check_identifier(conversation_id, "conversation_id")
    if not what:
        raise InvalidInput("event", "there is nothing to append")
    expects = None
    if expected is not None or after is not None or fail_if_types is not None:
        expects = condition(expected=expected, after=after, fail_if_types=fail_if_types)
    trace = current_traceparent()
    events: list[EncodedEvent] = []
    message_ids: list[str | None] = []
    aliases: dict[UUID, UUID] = {}
    for given in what:
        message = given.message if isinstance(given, MessageAppended) else given
        if isinstance(message, Message):
            about = metadata
            if about is not None or trace is not None or expects is not None:
                about = _with_ours(about, trace, expects)
            event = encode_message(
                message,
                conversation_id=conversation_id,
                metadata=EMPTY if about is None else about,
                occurred_at=occurred_at,
                limits=limits,
            )
            message_ids.append(message.id)
            if message.event_id is None and (alias := made_id(message.id)) is not None:
                aliases[event.event_id] = alias
        else:
            plain = Event.of(
                given,
                conversation_id=conversation_id,
                metadata=EMPTY if metadata is None else metadata,
                occurred_at=occurred_at,
            )
            if isinstance(plain.metadata, Mapping):
                plain = replace(plain, metadata=_with_ours(plain.metadata, trace, expects))
            event = encode(plain, conversation_id=conversation_id, limits=limits)
            message_ids.append(plain.data["message_id"] if plain.type == MessageAppended.type else None)
        events.append(event)
        if expects is not None and expects.batch_id is None:
            expects = replace(expects, batch_id=event.event_id)  # the first event decides for all
    return Prepared(
        conversation_id,
        tuple(events),
        tuple(message_ids),
        None if owner is None else owner_id(owner),
        expects,
        aliases,
        None if confirm is False else _to_confirm(confirm, what, events, message_ids),
    )


def _to_confirm(
    confirm: object,
    what: Sequence[Message | Body | Event],
    events: Sequence[EncodedEvent],
    message_ids: Sequence[str | None],
) -> dict[UUID, str]:
    """Return the assistant's messages of an append, which a bot sends, by event id."""
    if confirm is not True:
        raise InvalidInput("confirm", "must be True or False; in_store=True waits for the history store")
    messages = [given.message if isinstance(given, MessageAppended) else given for given in what]
    sent = {
        event.event_id: message_id
        for message, event, message_id in zip(messages, events, message_ids, strict=True)
        if message_id is not None and (not isinstance(message, Message) or message.role == "assistant")
    }
    if not sent:
        raise InvalidInput("confirm", "needs a message of the assistant, which is to be sent")
    return sent


def made_id(message_id: str) -> UUID | None:
    """Return the event id from which a message id may have been made; ``None`` if it was not."""
    if len(message_id) != _UUID_LENGTH or message_id[8] != "-":
        return None
    try:
        return UUID(message_id)
    except ValueError:
        return None


def _with_ours(given: Mapping[str, Any] | None, trace: str | None, expects: Precondition | None) -> Mapping[str, Any]:
    """Return the caller's metadata with the trace and the condition added."""
    if given is None:
        given = EMPTY
    elif isinstance(given, Mapping):
        for key in given:
            if isinstance(key, str) and key.startswith(RESERVED):
                raise InvalidInput(
                    "metadata", f"has a key that begins with {RESERVED!r}, which is reserved for Letopis"
                )
    if trace is None and expects is None:
        return given
    ours: dict[str, Any] = {}
    if trace is not None:
        ours[TRACEPARENT] = trace
    if expects is not None:
        ours[PRECONDITION_KEY] = expects.to_data()
    return {**ours, **given}


def condition(
    *, expected: After | None, after: After | None, fail_if_types: Collection[str] | None
) -> Precondition | None:
    """Return the condition of an append; ``None`` where the caller sets none."""
    if expected is not None and after is not None:
        raise InvalidInput("after", "cannot be combined with expected, which already covers every event")
    if expected is not None:
        if fail_if_types is not None:
            raise InvalidInput(
                "fail_if_types", "cannot be combined with expected, which already covers every event: use after"
            )
        seen = _seen(expected, "expected")
        return Precondition(sequence=seen.sequence, version=seen.version)
    if after is None:
        if fail_if_types is not None:
            raise InvalidInput("fail_if_types", "needs after, which names what was seen")
        return None
    types = TURN_TYPES if fail_if_types is None else check_types(fail_if_types, "fail_if_types")
    seen = _seen(after, "after")
    return Precondition(sequence=seen.sequence, version=seen.version, types=types)


def check_types(given: Collection[str], field: str = "types") -> frozenset[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(field, "must be a collection of event types, for example a set")
    try:
        return frozenset(check_type(name) for name in given)
    except InvalidInput as error:
        raise InvalidInput(field, error.reason) from error


def _seen(given: After, field: str) -> Seen:
    seen = given if isinstance(given, Seen | int) else getattr(given, "seen", None)
    if isinstance(seen, int) and not isinstance(seen, bool):
        seen = Seen(sequence=seen)
    if not isinstance(seen, Seen):
        raise InvalidInput(field, "must be a page or conversation that was read, a receipt, or a receipt's sequence")
    for value in (seen.sequence, seen.version or 0):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX:
            raise InvalidInput(field, "must be a whole number from 0")
    return seen
