"""Put large content in place in messages that were read: from the outbox file, otherwise from the store."""

from __future__ import annotations

import sqlalchemy as sa

from letopis.outbox.event_log.contents import read_contents
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.messages import Message, needs_content
from letopis.store.read.contents import Contents, Wanted, missing_of, wanted_in, wanted_of, with_content, with_contents


class ContentReads:
    """Reads the large content that messages refer to; without a reference it reads nothing."""

    def __init__(self, outbox: OutboxFile, gateway: StoreGateway) -> None:
        self._outbox = outbox
        self._gateway = gateway

    async def of_page(self, page: Page[RecordedMessage]) -> Page[RecordedMessage]:
        """Return a page with all content in place; otherwise a note is in its place, and the page is not complete."""
        if (wanted := wanted_of(page)) is None:
            return page
        return with_contents(page, wanted, await self._read(wanted))

    async def of_message(self, conversation_id: str, message: Message) -> Message:
        """Return a message of a conversation with its content in place."""
        if not needs_content(message):
            return message
        wanted = {conversation_id: wanted_in(message)}
        return with_content(message, (await self._read(wanted)).get(conversation_id, {}))

    async def _read(self, wanted: Wanted) -> Contents:
        # The file first: what is delivered and pruned after that is in the store.
        contents = await self._outbox.read(lambda connection: _read_local(connection, wanted))
        if missing := missing_of(wanted, contents):
            stored = await self._gateway.read(lambda: self._gateway.store.runtime.contents(missing))
            for conversation_id, bodies in (stored or {}).items():
                contents[conversation_id] = {**contents[conversation_id], **bodies}
        return contents


def _read_local(connection: sa.Connection, wanted: Wanted) -> dict[str, dict[str, bytes]]:
    return {name: read_contents(connection, name, names) if names else {} for name, names in wanted.items()}
