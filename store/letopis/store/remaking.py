"""Remaking: the rows of one conversation from its recorded events, by the very rules that an apply works by; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from letopis.store.codec import EncodedEvent, decode
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.fold import Tally
from letopis.store.plan import Delivery
from letopis.store.projection import (
    ConversationRow,
    Interpreted,
    MessageRow,
    Projected,
    leaves_after,
    message_of,
    project,
    targets_of,
)
from letopis.store.rows import conflict_of
from letopis.store.turns import Conflict
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import ConversationDeleted, MessageEdited, read


class Remaking:
    """The rows of one conversation, while its events are taken in page by page.

    Of a message it holds what its row holds, never what was said.

    :ivar row: ``None`` before the first event.
    :ivar messages: in order.
    :ivar events: how many were taken in, which is the version of the last.
    :ivar unerased: versions of events that still hold what a redaction took away: the row was damaged when that came.
    """

    def __init__(self, partition: int, conversation_id: str, upcasters: Upcasters) -> None:
        self.partition = partition
        self.conversation_id = conversation_id
        self.row: ConversationRow | None = None
        self.messages: list[MessageRow] = []
        self.events = 0
        self.unerased: set[int] = set()
        self._holding: dict[str, list[int]] = {}  # by message, the versions of the events that hold its content
        self._whole: list[int] = []  # of all events that hold content
        self._upcasters = upcasters
        self._known: dict[str, list[MessageRow]] = {}
        self._emptied: set[int] = set()

    def take(self, page: Sequence[sa.Row[Any]]) -> None:
        """Take in the next rows of the log.

        :raises StoreFault: an event is missing, or is not what was written: the database was damaged.
        """
        if not page:
            return
        for version, found in enumerate(page, self.events + 1):
            if found.version != version:
                raise _damaged(f"event {version} of a conversation is missing")
        if self.row is None:
            first = page[0].occurred_at
            tally = Tally(created_at=first, updated_at=first)
            self.row = ConversationRow(partition=self.partition, conversation_id=self.conversation_id, tally=tally)
        interpreted = tuple(self._interpreted(found) for found in page)
        projected = project(self.row, interpreted, self._changed_by(interpreted), verdicts=_verdicts(page))
        self._note_content(page, projected, interpreted)
        for message in projected.messages:
            if message.new:
                self.messages.append(message)
                self._known.setdefault(message.message_id, []).append(message)
            message.new = message.changed = False
        if projected.deleted:
            for message in self.messages:
                message.reactions = ()
        self.events += len(page)

    def to_erase(self) -> list[int]:
        """Return the versions of the events that hold content and must not; :attr:`row` says what forks retain."""
        if self.row is not None and self.row.tally.state == "deleted":
            gone = (version for version in self._whole if version > self.row.retained)
            return sorted(self.unerased.union(gone))
        return sorted(self.unerased)

    def _note_content(
        self, page: Sequence[sa.Row[Any]], projected: Projected, interpreted: Sequence[Interpreted]
    ) -> None:
        """Note which events hold content, and which of them a redaction has emptied since, or should have."""
        for message_id in projected.redactions:
            self.unerased.update(self._holding.pop(message_id, ()))
        deleted = self.row is not None and self.row.tally.state == "deleted"
        for found, event, item in zip(page, projected.events, interpreted, strict=True):
            if found.digest is None:
                continue
            if found.type != ConversationDeleted.type:
                self._whole.append(found.version)
            if event.redacted and not deleted:
                self.unerased.add(found.version)
            elif (of_message := message_of(event, item.body)) is not None:
                self._holding.setdefault(of_message, []).append(found.version)

    def seen(self, message: MessageRow) -> tuple[Any, ...]:
        """Return what can be told of a message, of these rows or of those that are stored.

        An edit without content is none, and in a deleted conversation nothing tells a message that was redacted before
        it came from one that was emptied with all others.
        """
        content = message.version if message.content_version in self._emptied else message.content_version
        redacted = message.redacted_at
        if redacted == message.version and self.row is not None and self.row.tally.state == "deleted":
            redacted = None
        return (
            message.message_id,
            content,
            message.delivery_version,
            message.role,
            message.state,
            message.left_at,
            redacted,
            message.reactions,
        )

    def _interpreted(self, found: sa.Row[Any]) -> Interpreted:
        try:
            data = decode(found.data)
        except ValueError:
            # Not chained: the error holds the text.
            data = None
        if data is None:
            raise _damaged(f"event {found.version} of a conversation is not the JSON that was written")
        body = read(found.type, *self._upcasters.upcast(found.type, found.schema_version, data))
        if found.digest is None and isinstance(body, MessageEdited):
            self._emptied.add(found.version)
        event = EncodedEvent(
            conversation_id=self.conversation_id,
            event_id=found.event_id,
            type=found.type,
            schema_version=found.schema_version,
            data=found.data,
            metadata=found.metadata,
            digest=found.digest or b"",
            occurred_at=found.occurred_at,
            redacted=found.digest is None,
        )
        # Sequences are an outbox's own, and versions the conversation's: verdicts are found by these.
        return Interpreted(delivery=Delivery(sequence=found.version, event=event), body=body)

    def _changed_by(self, interpreted: Sequence[Interpreted]) -> list[MessageRow]:
        """Return the rows that a page may change: those it names, and those that it takes off the path."""
        named = [message for name in targets_of(interpreted) for message in self._known.get(name, ())]
        after = leaves_after(interpreted, named)
        if after is None:
            return named
        there = {message.version for message in named}
        leaving = (message for message in self._beyond(after) if message.left_at is None)
        return [*named, *(message for message in leaving if message.version not in there)]

    def _beyond(self, version: int) -> Iterator[MessageRow]:
        for message in reversed(self.messages):
            if message.version <= version:
                return
            yield message


SEEN = ("message_id", "content_version", "delivery_version", "role", "state", "left_at", "redacted_at", "reactions")
"""The names of what :meth:`Remaking.seen` returns."""


def _verdicts(page: Sequence[sa.Row[Any]]) -> dict[int, Conflict]:
    return {found.version: late for found in page if (late := conflict_of(found.metadata)) is not None}


def _damaged(what: str) -> StoreFault:
    return StoreFault(fault_class=FaultClass.UNCLASSIFIED, code="damaged", reason=f"{what}: the database was damaged")
