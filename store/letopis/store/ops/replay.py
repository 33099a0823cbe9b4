"""Replay the recorded events of one conversation into its rows, by the rules of an apply; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Final

import sqlalchemy as sa

from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.row_mapping import conflict_of
from letopis.store.model.codec import INTEGER_MAX, EncodedEvent, decode
from letopis.store.model.event_types import (
    MessageEdited,
    read,
)
from letopis.store.model.events import Upcasters
from letopis.store.rules.apply_plan import SequencedEvent
from letopis.store.rules.decoding import DecodedEvent, removal_bound, target_ids
from letopis.store.rules.projection import Projected, project_events
from letopis.store.rules.redaction import message_of
from letopis.store.rules.reducer import ConversationState
from letopis.store.rules.rows import ConversationRow, MessageRow
from letopis.store.rules.sight import Sight


class ConversationReplay:
    """The rows of one conversation, messages without content, while its events are applied page by page."""

    def __init__(self, partition: int, conversation_id: str, upcasters: Upcasters) -> None:
        self.partition = partition
        self.conversation_id = conversation_id
        self.key: dict[str, Any] = {"partition": partition, "conversation": conversation_id}
        self.row: ConversationRow | None = None  # None before the first event
        self.messages: list[MessageRow] = []
        self.events = 0  # that were applied, which is the version of the last
        self.unredacted: set[int] = set()  # events with content that a redaction met damaged rows of
        self._events_of_message: dict[str, list[int]] = {}  # versions of the events that hold its content
        self._with_content: dict[int, str] = {}  # the types of all events that hold content, by version
        self._upcasters = upcasters
        self._messages_by_id: dict[str, list[MessageRow]] = {}
        self._empty_edits: set[int] = set()

    def apply(self, page: Sequence[sa.Row[Any]]) -> None:
        """Apply the next rows of the log."""
        if not page:
            return
        for version, row in enumerate(page, self.events + 1):
            if row.version != version:
                raise _damaged(f"event {version} of a conversation is missing")
        if self.row is None:
            first = page[0].occurred_at
            tally = ConversationState(created_at=first, updated_at=first)
            self.row = ConversationRow(
                partition=self.partition, conversation_id=self.conversation_id, conversation=tally
            )
        decoded = tuple(self._decode(row) for row in page)
        verdicts = {row.version: conflict for row in page if (conflict := conflict_of(row.metadata)) is not None}
        # What forks read is considered at the end: no event is redacted here because of it.
        projected = project_events(self.row, decoded, self._changed_by(decoded), verdicts=verdicts, retain=INTEGER_MAX)
        self._note_content(page, projected, decoded)
        for message in projected.messages:
            if message.new:
                self.messages.append(message)
                self._messages_by_id.setdefault(message.message_id, []).append(message)
            message.new = message.changed = False
        for plan in projected.plans:
            # Erase the messages of earlier pages, as the store does when it applies the event.
            for message in self.messages if plan.at else ():
                if message.version < page[0].version and plan.after < message.version <= plan.upto:
                    message.erase(plan.at)
        self.events += len(page)

    @property
    def content_up_to(self) -> int:
        """The version of the last erased event that still holds content, or 0."""
        return max(self._erased(), default=0)

    @property
    def deleted(self) -> bool:
        """Whether the conversation was deleted."""
        return self.row is not None and self.row.conversation.state == "deleted"

    def pending_redactions(self) -> list[int]:
        """Return the versions of the events whose content is to be removed; :attr:`row` says what forks retain."""
        if self.row is None:
            return []
        erased = (version for version in self._erased() if version > self.row.retained)
        return sorted(self.unredacted.union(erased))

    def _erased(self) -> Iterator[int]:
        """Yield the versions of the erased events that still hold content."""
        state = None if self.row is None else self.row.conversation
        if state is not None:
            sight = Sight(conversation_id=self.conversation_id, reset_to=state.reset_to, trimmed=state.trimmed)
            yield from (version for version, name in self._with_content.items() if sight.hides(version, name))
            for name, versions in self._events_of_message.items():  # also later changes of what was erased
                messages = self._messages_by_id.get(name)
                if messages and all((message.redacted_at or 0) > message.version for message in messages):
                    yield from versions

    def _note_content(self, page: Sequence[sa.Row[Any]], projected: Projected, decoded: Sequence[DecodedEvent]) -> None:
        """Note which events hold content, and which of them a later redaction should have emptied."""
        for message_id in {name for plan in projected.plans for name in plan.message_ids or ()}:
            self.unredacted.update(self._events_of_message.pop(message_id, ()))
        for row, event, item in zip(page, projected.events, decoded, strict=True):
            if row.salt is None:
                continue
            self._with_content[row.version] = row.type
            if event.redacted:
                self.unredacted.add(row.version)
            elif (of_message := message_of(event, item.body)) is not None:
                self._events_of_message.setdefault(of_message, []).append(row.version)

    def compared_values(self, message: MessageRow) -> dict[str, Any]:
        """Return the comparable values of a message, replayed or stored."""
        # An edit without content does not count.
        content = message.version if message.content_version in self._empty_edits else message.content_version
        return {name: getattr(message, name) for name in _COMPARED} | {"content_version": content}

    def _decode(self, row: sa.Row[Any]) -> DecodedEvent:
        try:
            data = decode(row.data)
            if row.metadata is not None:
                decode(row.metadata)
        except ValueError:
            # Not chained: the error quotes the text.
            data = None
        if data is None:
            raise _damaged(f"event {row.version} of a conversation is not the JSON that was written")
        # SQLite keeps what a flipped bit made of a value's type.
        if any(not isinstance(getattr(row, name), kind) for name, kind in _TYPES.items()):
            raise _damaged(f"event {row.version} of a conversation has a value of another type")
        body = read(row.type, *self._upcasters.upcast(row.type, row.schema_version, data))
        if row.salt is None and isinstance(body, MessageEdited):
            self._empty_edits.add(row.version)
        event = EncodedEvent(
            conversation_id=self.conversation_id,
            event_id=row.event_id,
            type=row.type,
            schema_version=row.schema_version,
            data=row.data,
            metadata=row.metadata,
            digest=row.digest,
            salt=row.salt,
            occurred_at=row.occurred_at,
            redacted=row.salt is None,
        )
        # Conflicts are looked up by version: sequences belong to an outbox, not to the conversation.
        return DecodedEvent(delivery=SequencedEvent(sequence=row.version, event=event), body=body)

    def _changed_by(self, decoded: Sequence[DecodedEvent]) -> list[MessageRow]:
        """Return the rows that a page may change: those it names, and those it takes off the path."""
        named = [message for name in target_ids(decoded) for message in self._messages_by_id.get(name, ())]
        after = removal_bound(decoded, named)
        if after is None:
            return named
        named_versions = {message.version for message in named}
        beyond = takewhile(lambda message: message.version > after, reversed(self.messages))
        leaving = (message for message in beyond if message.left_at is None)
        return [*named, *(message for message in leaving if message.version not in named_versions)]


_TYPES: Final = {
    "type": str,
    "schema_version": int,
    "metadata": str | None,
    "digest": bytes,
    "salt": bytes | None,
    "occurred_at": int,
}
"""What columns of an event hold, beside its data."""


_COMPARED: Final = (
    *("message_id", "content_version", "delivery_version", "role", "state"),
    *("left_at", "redacted_at", "reactions", "author"),
)


def _damaged(what: str) -> StoreFault:
    return StoreFault(fault_class=FaultClass.UNCLASSIFIED, code="damaged", reason=f"{what}: the database is damaged")
