"""Delete the checkpoints that retention keeps no longer, by the adapter that knows how they are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Final, TypeVar

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.receipts import Deliveries
from letopis.outbox.pending_reads.record_reads import RecordReads
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.conversation_store import ConversationStore
from letopis.store.errors import ConfigurationError
from letopis.store.maintenance.due_checkpoints import DueCheckpoints

T = TypeVar("T")

MISSING: Final = "the retention of checkpoints needs langgraph where the relay runs: pip install 'letopis[langgraph]'"
_READ_SECONDS: Final = 30.0


class OwnLoop:
    """A home for the records of an outbox that is open in the running event loop, without a history."""

    def __init__(self, outbox: OutboxFile, gateway: StoreGateway) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.parts: OwnLoop = self
        self.outbox = outbox
        self.record_reads = RecordReads(outbox, gateway)
        self.deliveries = Deliveries(outbox, gateway)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()


async def prune_checkpoints(
    outbox: OutboxFile, store: ConversationStore, due: DueCheckpoints, *, dry_run: bool = False
) -> int:
    """Delete the due checkpoints of a namespace; return how many were deleted, or would be.

    :raises ConfigurationError: langgraph is not installed.
    :raises StoreUnavailable: the history store does not answer.
    """
    try:
        adapter = await asyncio.to_thread(import_module, "letopis.adapters.langgraph.retention")
    except ModuleNotFoundError as error:
        raise ConfigurationError(MISSING) from error
    gateway = StoreGateway(store, breaker=lambda: None, bound_to=outbox.probe.store_id, deadline=_READ_SECONDS)
    try:
        deleted: int = await adapter.prune_due(OwnLoop(outbox, gateway), due, dry_run=dry_run)
    finally:
        await gateway.close()
    return deleted
