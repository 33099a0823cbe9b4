"""Find one message by its id, pending events included."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.lookups import conversations_of
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.contents import ContentReads
from letopis.outbox.pending_reads.merge import merge_messages
from letopis.outbox.pending_reads.pending_slice import PendingSlice
from letopis.outbox.pending_reads.read_path import ReadPath
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.errors import InvalidInput, StoreUnavailable
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import check_identifier
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import Window
from letopis.store.read.reader import Reader, StoreView, ViewQuery

_MAX_CONVERSATIONS: Final = 8  # looked through for one id; with more than one that has it, it is ambiguous
_EVERY: Final = Window(every=True)


@dataclass(slots=True, kw_only=True, eq=False)
class MessageFinder:
    outbox: OutboxFile
    gateway: StoreGateway
    path: ReadPath
    upcasters: Upcasters
    contents: ContentReads

    async def find(self, message_id: str, conversation_id: str | None) -> RecordedMessage | None:
        check_identifier(message_id, "message_id")
        if conversation_id is not None:
            message, complete = await self._find_in(check_identifier(conversation_id, "conversation"), message_id)
            if message is None and not complete:
                raise StoreUnavailable("this message")
            return message
        # The file first: what is delivered after that is in the store.
        names = await self._conversations_of(message_id, retained=False)
        runtime = self.gateway.store.runtime
        stored = await self.gateway.read(
            lambda: runtime.read(Reader.conversations_of, message_id, limit=_MAX_CONVERSATIONS)
        )
        if stored is None:
            names = stored = await self._conversations_of(message_id, retained=True)
        several: list[RecordedMessage] = []
        complete = not self.gateway.unavailable
        for name in dict.fromkeys((*names, *stored)):
            message, known = await self._find_in(name, message_id)
            complete = complete and known
            if message is not None:
                several.append(message)
        if len(several) > 1:
            raise InvalidInput("message_id", "several conversations have a message of this id: name one of them")
        if not several and not complete:
            raise StoreUnavailable("this message")
        return several[0] if several else None

    async def _conversations_of(self, message_id: str, *, retained: bool) -> list[str]:
        return await self.outbox.read(
            lambda connection: conversations_of(connection, message_id, retained=retained, limit=_MAX_CONVERSATIONS)
        )

    async def _find_in(self, conversation_id: str, message_id: str) -> tuple[RecordedMessage | None, bool]:
        named, complete = await self.named(conversation_id, (message_id,))
        return named.get(message_id), complete

    async def named(
        self, conversation_id: str, message_ids: Collection[str]
    ) -> tuple[dict[str, RecordedMessage], bool]:
        """Return messages of a conversation by id, on the path or off it, and whether the store was reached."""
        query = ViewQuery(conversation_id=conversation_id, origin_id=self.outbox.origin.origin_id)

        async def ask(pending: PendingSlice) -> tuple[StoreView, None] | None:
            names = pending.names

            async def read(lineage: Lineage, connection: AsyncConnection) -> StoreView:
                reader = lineage.reader
                view = await reader.head_view(connection, query)
                if view.conversation is None or view.conversation.state == "deleted":
                    return view
                places = await reader.path_of(connection, conversation_id, names, counted=False) if names else {}
                messages = await reader.named(connection, conversation_id, message_ids)
                return replace(view, places=places, messages=messages)

            view = await self.gateway.read(lambda: self.gateway.store.runtime.snapshot(read))
            return None if view is None else (view, None)

        def merge(pending: PendingSlice, view: StoreView | None, _: None) -> tuple[dict[str, RecordedMessage], bool]:
            page = merge_messages(pending, view, _EVERY, upcasters=self.upcasters)
            return {message.id: message for message in page if message.id in message_ids}, page.complete

        named, complete = await self.path.read(conversation_id, ask, merge)
        page = await self.contents.of_page(Page(tuple(named.values()), complete=complete))
        return dict(zip(named, page, strict=True)), page.complete
