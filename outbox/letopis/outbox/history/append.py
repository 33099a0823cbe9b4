"""Append events and messages to the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.drafts.writer_lock import WriterLock
from letopis.outbox.event_log.append_encoding import After, Prepared, prepare
from letopis.outbox.event_log.lookups import conflict_of, holds_event, holds_message
from letopis.outbox.file.joint_write import append_in
from letopis.outbox.history.receipts import Deliveries, Receipt
from letopis.store.errors import (
    ConversationGone,
    InvalidInput,
    NotSaved,
    StoreUnavailable,
    VersionConflict,
)
from letopis.store.model.codec import Limits
from letopis.store.model.event_types import Body, ReactionAdded, ReactionRemoved
from letopis.store.model.identifiers import check_identifier
from letopis.store.read.lineage import Lineage
from letopis.store.read.reader import Reader, ViewQuery
from letopis.store.rules.preconditions import Conflict, Precondition
from letopis.store.rules.reducer import MessageChange

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.pending_reads.store_gateway import StoreGateway


class Appender:
    def __init__(self, *, outbox: OutboxFile, gateway: StoreGateway, deliveries: Deliveries, limits: Limits) -> None:
        self.outbox = outbox
        self._gateway = gateway
        self.deliveries = deliveries
        self.limits = limits
        self.writer_lock = WriterLock(outbox.path)

    async def append(
        self,
        prepared: Prepared,
        *,
        in_store: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - of the delivery
    ) -> Receipt:
        if in_store:
            return await self._append_in_store(prepared, timeout)
        if prepared.to_confirm is not None:
            self.claim(prepared)
        return Receipt(await self.outbox.append(prepared), self.deliveries)

    def claim(self, prepared: Prepared) -> None:
        """Make this process the one that is to confirm the messages of an append."""
        prepared.writer = self.writer_lock.acquire()

    async def _append_in_store(self, prepared: Prepared, timeout: float | None) -> Receipt:  # noqa: ASYNC109
        """Append, and return once the history store has it; ask the store about a condition first."""
        expects, first = prepared.expects, prepared.events[0].event_id
        # A retry of what is written waits for its answer only.
        if expects is not None and not await self.outbox.read(lambda connection: holds_event(connection, first)):
            asked = await self._gateway.read(partial(self._conflict_before, prepared.conversation_id, first, expects))
            if asked is None:
                raise StoreUnavailable("what other outboxes have written")
            if (conflict := asked[0]) is not None:
                raise VersionConflict(
                    conversation_id=prepared.conversation_id,
                    expected=conflict.expected,
                    actual=conflict.actual,
                    in_store=True,
                )
        receipt = await self.append(prepared)
        if await receipt.saved(timeout):
            return receipt
        late = await self.outbox.read(lambda connection: conflict_of(connection, receipt.event_ids))
        if late is None:
            raise NotSaved(conversation_id=prepared.conversation_id, event_ids=receipt.event_ids)
        raise VersionConflict(
            conversation_id=prepared.conversation_id,
            expected=late.expected,
            actual=late.actual,
            in_store=True,
            set_aside=True,
        )

    async def _conflict_before(
        self, conversation_id: str, event_id: UUID, expects: Precondition
    ) -> tuple[Conflict | None]:
        """Return the conflict that a conditional event would have if it were delivered now, after what is stored."""
        runtime, origin_id = self._gateway.store.runtime, self.outbox.origin.origin_id
        conflicts = (await runtime.prepared()).conflicts
        query = ViewQuery(conversation_id=conversation_id, origin_id=origin_id)

        async def read(lineage: Lineage, connection: AsyncConnection) -> Conflict | None:
            view = await lineage.reader.head_view(connection, query)
            if view.conversation is not None and view.conversation.state == "deleted":
                raise ConversationGone(conversation_id=conversation_id)
            key = {**lineage.reader.key(conversation_id), "origin": origin_id}
            return await conflicts.find_before(connection, key, event_id, expects, head=view.sequence)

        return (await runtime.snapshot(read),)

    async def append_in(self, connection: AsyncConnection | AsyncSession, prepared: Prepared) -> Receipt:
        if prepared.to_confirm is not None:
            self.claim(prepared)
        appended = await append_in(self.outbox, connection, prepared)
        return Receipt(appended, self.deliveries, void=asyncio.Event())  # whose end is not heard of

    async def write(
        self, conversation_id: str, *bodies: Body, owner: str | None = None, after: After | None = None
    ) -> Receipt:
        return await self.append(prepare(conversation_id, bodies, owner=owner, limits=self.limits, after=after))

    async def change(self, conversation_id: str, *bodies: MessageChange) -> Receipt:
        """Append events about messages that exist, on the path or off it, as far as that is known at present."""
        check_identifier(conversation_id, "conversation_id")
        for body in bodies:
            check_identifier(body.message_id, "message_id")
            if isinstance(body, ReactionAdded | ReactionRemoved):
                check_identifier(body.key, "key")
                if body.actor is not None:
                    check_identifier(body.actor, "actor")
        await self._check_messages(conversation_id, list(dict.fromkeys(body.message_id for body in bodies)))
        return await self.write(conversation_id, *bodies)

    async def _check_messages(self, conversation_id: str, message_ids: Sequence[str]) -> None:
        # The file first: what is delivered and pruned after that is in the store.
        missing = await self.outbox.read(
            lambda connection: [
                message_id for message_id in message_ids if not holds_message(connection, conversation_id, message_id)
            ]
        )
        if not missing:
            return
        runtime = self._gateway.store.runtime
        places = await self._gateway.read(lambda: runtime.read(Reader.path_of, conversation_id, missing))
        if places is not None and (unknown := [message_id for message_id in missing if message_id not in places]):
            which = "" if len(message_ids) == 1 else f" {unknown[0]!r}"
            raise InvalidInput(
                "message_id", f"no message of this conversation has this id{which} (an inherited one is its parent's)"
            )
