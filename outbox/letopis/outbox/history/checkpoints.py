"""Delete the checkpoints that retention keeps no longer, by the adapter that knows how they are stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Final, TypeVar

from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.receipts import Deliveries
from letopis.outbox.pending_reads.record_reads import RecordReads
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import StoreFault
from letopis.store.errors import (
    Closed,
    ConfigurationError,
    LetopisError,
    OutboxFull,
    OutboxUnavailable,
    StoreUnavailable,
)
from letopis.store.maintenance.due_checkpoints import DueCheckpoints

T = TypeVar("T")

MISSING: Final = "the retention of checkpoints needs langgraph where the relay runs: pip install 'letopis[langgraph]'"
_READ_SECONDS: Final = 30.0
_CONCERNS_ALL: Final = (StoreFault, StoreUnavailable, OutboxFull, OutboxUnavailable, Closed)
logger = logging.getLogger("letopis.outbox.history")


class OwnLoop:
    """The records of an outbox that is open in the running event loop."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.outbox = outbox
        self._gateway = StoreGateway(
            store, breaker=lambda: None, bound_to=outbox.probe.store_id, deadline=_READ_SECONDS
        )
        self.record_reads = RecordReads(outbox, self._gateway)
        self.deliveries = Deliveries(outbox, self._gateway)

    @property
    def parts(self) -> OwnLoop:
        return self

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    async def close(self) -> None:
        await self.deliveries.close()
        await self._gateway.close()


class CheckpointPruner:
    """Deletes due checkpoints through one outbox."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self._outbox = outbox
        self._store = store

    async def __call__(self, due: DueCheckpoints, *, dry_run: bool = False) -> int:
        """Delete the due checkpoints of a namespace; return how many were deleted, or would be.

        Those of a thread that cannot be read here stay, which is logged.

        :raises ConfigurationError: langgraph is not installed.
        :raises StoreUnavailable: the history store does not answer.
        """
        try:
            adapter = await asyncio.to_thread(import_module, "letopis.adapters.langgraph.retention")
        except ModuleNotFoundError as error:
            raise ConfigurationError(MISSING) from error
        home = OwnLoop(self._outbox, self._store)
        try:
            deleted: int = await adapter.prune_due(home, due, dry_run=dry_run)
        except _CONCERNS_ALL:
            raise
        except Exception as error:  # a thread that cannot be pruned must not keep the others from it
            reason = error if isinstance(error, LetopisError) else type(error).__name__
            logger.warning("checkpoints in %r stay, retention cannot read them: %s", due.conversation_id, reason)
            return 0
        finally:
            await home.close()
        return deleted
