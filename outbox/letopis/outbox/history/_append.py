"""Append events and messages to the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from letopis.outbox.event_log.append_encoding import After, Prepared, prepare
from letopis.outbox.event_log.lookups import conflict_of, holds_event, holds_message
from letopis.outbox.event_log.reused_ids import PathUnknown
from letopis.outbox.history.joint_write import append_in
from letopis.outbox.history.receipts import Deliveries, Receipt
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import (
    ConversationGone,
    EventIdReused,
    InvalidInput,
    NotConfirmed,
    Reuse,
    StoreUnavailable,
    VersionConflict,
)
from letopis.store.model.codec import Limits
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.event_types import Body, ReactionAdded, ReactionRemoved
from letopis.store.model.identifiers import check_identifier
from letopis.store.rules.preconditions import Conflict, Precondition
from letopis.store.rules.reducer import MessageChange

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.pending_reads.store_gateway import StoreGateway
    from letopis.store.read.lineage import Lineage


class Appender:
    def __init__(self, *, outbox: OutboxFile, gateway: StoreGateway, deliveries: Deliveries, limits: Limits) -> None:
        self.outbox = outbox
        self._gateway = gateway
        self.deliveries = deliveries
        self.limits = limits

    async def append(
        self,
        prepared: Prepared,
        *,
        confirm: Literal["store"] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of the confirmation
    ) -> Receipt:
        """Append durably; of messages that were delivered before, ask the history store whether it shows them still."""
        if confirm is not None:
            return await self._append_confirmed(prepared, timeout)
        prepared.ask = prepared.on_path is not None
        try:
            appended = await self.outbox.append(prepared)
        except PathUnknown as unknown:
            on_path, elsewhere = await self._on_path(prepared.conversation_id, unknown)
            appended = await self.outbox.append(replace(prepared, on_path=on_path, elsewhere=elsewhere, ask=False))
        return Receipt(appended, self.deliveries)

    async def _on_path(self, conversation_id: str, unknown: PathUnknown) -> tuple[Collection[UUID], Collection[str]]:
        """Return the events and messages that the store shows; none while it is unavailable: it decides later."""
        from letopis.store.read.reader import ViewQuery  # a program that only imports the class does without

        query = ViewQuery(conversation_id=conversation_id, origin_id=self.outbox.origin.origin_id)

        async def read(lineage: Lineage, connection: AsyncConnection) -> tuple[RecordedMessage, ...]:
            view = await lineage.reader.head_view(connection, query)
            if view.conversation is not None and view.conversation.state == "deleted":
                raise ConversationGone(conversation_id=conversation_id)
            return await lineage.reader.named(
                connection, conversation_id, (*unknown.messages.values(), *unknown.targets)
            )

        shown = await self._gateway.read(lambda store: store.outbox_access.snapshot(read))
        on_path: list[UUID] = []
        for event_id, message_id in unknown.messages.items() if shown is not None else ():
            there = [message for message in shown or () if message.id == message_id]
            if there and all(message.redacted for message in there):
                raise EventIdReused(
                    conversation_id=conversation_id, event_id=event_id, message_id=message_id, reason=Reuse.ERASED
                )
            if not there or any(message.on_path for message in there):
                on_path.append(event_id)
        return on_path, {message.id for message in shown or () if message.on_path} & unknown.targets

    async def _append_confirmed(self, prepared: Prepared, timeout: float | None) -> Receipt:  # noqa: ASYNC109
        """Append after asking the history store, and return once it has said that the append stands."""
        expects, first = prepared.expects, prepared.events[0].event_id
        if expects is None:
            raise InvalidInput("confirm", "needs expected or after, which name what was seen")
        # A retry of what is written waits for its answer only.
        if not await self.outbox.read(lambda connection: holds_event(connection, first)):
            asked = await self._gateway.read(lambda store: self._ask(store, prepared.conversation_id, first, expects))
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
            raise NotConfirmed(conversation_id=prepared.conversation_id, event_ids=receipt.event_ids)
        raise VersionConflict(
            conversation_id=prepared.conversation_id,
            expected=late.expected,
            actual=late.actual,
            in_store=True,
            set_aside=True,
        )

    async def _ask(
        self, store: ConversationStore, conversation_id: str, event_id: UUID, expects: Precondition
    ) -> tuple[Conflict | None]:
        origin_id = self.outbox.origin.origin_id
        return (await store.outbox_access.conflict_before(conversation_id, event_id, expects, origin_id=origin_id),)

    async def append_in(self, connection: AsyncConnection | AsyncSession, prepared: Prepared) -> Receipt:
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
        places = await self._gateway.read(lambda store: store.outbox_access.path_of(conversation_id, missing))
        if places is not None and (unknown := [message_id for message_id in missing if message_id not in places]):
            which = "" if len(message_ids) == 1 else f" {unknown[0]!r}"
            raise InvalidInput(
                "message_id", f"no message of this conversation has this id{which} (an inherited one is its parent's)"
            )
