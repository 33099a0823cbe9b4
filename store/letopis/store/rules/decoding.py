"""Decode the events of a delivery, and find the messages that they name, without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from letopis.store.errors import InvalidInput
from letopis.store.model.codec import RESERVED, decode
from letopis.store.model.event_types import (
    Body,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    MessageAppended,
    UnknownEvent,
    read,
)
from letopis.store.model.events import NO_UPCASTERS, Upcasters
from letopis.store.model.identifiers import check_identifier
from letopis.store.model.messages import text_message
from letopis.store.rules.apply_plan import SequencedEvent
from letopis.store.rules.preconditions import Precondition
from letopis.store.rules.redaction import ARRIVED_ERASED_KEY, is_stripped, message_of, with_note
from letopis.store.rules.reducer import MessageChange
from letopis.store.rules.rows import MessageRow

_APPENDED: Final = MessageAppended.type
_INTERNAL_KEYS: Final = f'"{RESERVED}'


@dataclass(slots=True)
class DecodedEvent:
    """An event of a delivery, its typed body and its precondition."""

    delivery: SequencedEvent
    body: Body
    expects: Precondition | None = None


def decode_events(deliveries: Iterable[SequencedEvent], upcasters: Upcasters) -> tuple[DecodedEvent, ...]:
    """Return the events of a delivery as every reader will read them."""
    decoded, plain = list[DecodedEvent](), upcasters is NO_UPCASTERS
    for delivery in deliveries:
        event = delivery.event
        type_name, schema_version, metadata = event.type, event.schema_version, event.metadata
        if not event.intact:
            raise InvalidInput("digest", "does not match the content: the event was damaged after it was appended")
        try:
            data = decode(event.data)
            current = plain and type_name == _APPENDED and schema_version == MessageAppended.schema_version
            plain_text = current and metadata is None and event.salt is not None
            if plain_text and (message := text_message(data)) is not None:
                decoded.append(DecodedEvent(delivery, MessageAppended(message=message)))
                continue
            if event.salt is None and not is_stripped(type_name, event.data, metadata):
                raise InvalidInput("salt", "is missing, and the content is not: the event was damaged")
            if event.salt is None:
                # Its cause may come later.
                event = replace(event, metadata=with_note(metadata, ARRIVED_ERASED_KEY))
                delivery = replace(delivery, event=event)
            ours = decode(metadata) if metadata is not None and _INTERNAL_KEYS in metadata else None
        except ValueError as error:
            raise InvalidInput("data", "is no JSON object") from error
        body = read(type_name, *upcasters.upcast(type_name, schema_version, data))
        # Reading a message has checked its id already.
        if isinstance(body, ConversationStarted) and body.owner_id is not None:
            check_identifier(body.owner_id, "data.owner_id")
        if isinstance(body, ConversationRewound) and body.to_message_id is not None:
            check_identifier(body.to_message_id, "data.to_message_id")
        decoded.append(DecodedEvent(delivery, body, None if ours is None else Precondition.of(ours)))
    return tuple(decoded)


def are_plain(decoded: Iterable[DecodedEvent]) -> bool:
    """Return True if each event only appends a message: it changes no other, and depends on nothing."""
    for item in decoded:
        event = item.delivery.event
        if type(item.body) is not MessageAppended or item.expects is not None:
            return False
        if event.redacted or event.salt is None:
            return False
    return True


def target_ids(decoded: Iterable[DecodedEvent]) -> frozenset[str]:
    """Return the ids of the messages that events change or name, whether or not those exist."""
    named = set()
    for item in decoded:
        body = item.body
        if isinstance(body, MessageChange):
            named.add(body.message_id)
        elif isinstance(body, ConversationRewound) and body.to_message_id is not None:
            named.add(body.to_message_id)
        elif isinstance(body, UnknownEvent) and (message_id := message_of(item.delivery.event, body)):
            named.add(message_id)
    return frozenset(named)


def removal_bound(decoded: Iterable[DecodedEvent], targets: Iterable[MessageRow]) -> int | None:
    """Return the version after which events may take messages off the path; ``None`` if they take none."""
    known: dict[str, int] = {}
    for row in targets:
        known[row.message_id] = min(row.version, known.get(row.message_id, row.version))
    appended: set[str] = set()
    bound: int | None = None
    for item in decoded:
        match item.body:
            case MessageAppended():
                appended.add(item.body.message.id)
            case ConversationDeleted() | ConversationRewound(to_message_id=None):
                return 0
            case ConversationRewound(to_message_id=str(target)) if target not in appended:
                # A message that is not stored here may be one that a fork inherits.
                version = known.get(target, 0)
                bound = version if bound is None else min(version, bound)
    return bound
