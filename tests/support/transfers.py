"""Export conversations and records as JSON Lines, and import what was exported."""

import io
from typing import Any

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.transfer.exporter import Exporter, RecordSource
from letopis.outbox.transfer.importer import ImportCounts, Importer
from letopis.store import ConversationStore
from letopis.store.transfer.jsonl import Refused, SeenKeys, read_lines


async def exported(source: Any, *, records: bool = True, one: str | None = None, owner: str | None = None) -> bytes:
    """Return the lines of a history or a store: all, or those of a conversation or an owner."""
    flow = Exporter(source, RecordSource(source) if records else None)
    return b"".join([line async for line in (flow.of_all(owner=owner) if one is None else flow.of_one(one))])


async def imported(outbox: OutboxFile, store: ConversationStore, raw: bytes) -> tuple[ImportCounts, list[Refused]]:
    """Import lines into an outbox, and return what became of them."""
    refused: list[Refused] = []
    with SeenKeys() as count, Importer(outbox, store, tell=refused.append) as intake:
        return await intake.take(read_lines(io.BytesIO(raw), count=count)), refused
