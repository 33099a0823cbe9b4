"""Read the pending slice first, then one view of the history store, and merge the two.

What was acknowledged before the read began is in the slice, or had been delivered before it was taken and is in the
view. What is delivered in between is in both, and the merge drops it by the sequence that the view reports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

from letopis.outbox.event_log.statements import on_cursor
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.pending_reads.merge import leaves_too_much_out, left_on_path
from letopis.outbox.pending_reads.pending_slice import PendingSlice, read_retained, read_slice
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.store.read.paging import Window
from letopis.store.read.reader import StoreView, ViewQuery

T = TypeVar("T")
V = TypeVar("V")

_MAX_ATTEMPTS: Final = 4
_MAX_READ_HERE: Final = 8  # pending events that are read in the event loop: more, or a busy file, would block it


class ReadPath:
    """Reads conversations from an outbox file and the history store that it delivers to."""

    def __init__(self, outbox: OutboxFile, gateway: StoreGateway) -> None:
        self._outbox = outbox
        self._gateway = gateway

    async def read(
        self,
        conversation_id: str,
        ask: Callable[[PendingSlice], Awaitable[tuple[StoreView, V] | None]],
        merge: Callable[[PendingSlice, StoreView | None, V | None], T],
        *,
        newest: int | None = None,
    ) -> T:
        """Read the pending slice, then call ``ask``, and merge; without a view if the store lacks or fails."""
        since: int | None = None
        enough = newest
        for _ in range(0 if self._gateway.unavailable else _MAX_ATTEMPTS):
            pending = await self._pending(conversation_id, since, enough)
            answer = await ask(pending)
            if answer is None or (view := answer[0]).sequence < pending.pruned:
                break
            if view.sequence < pending.since:
                since = view.sequence  # the store was restored
            elif pending.left_out and leaves_too_much_out(pending, view):
                since, enough = pending.since, None
            else:
                return merge(pending, *answer)
        origin_id = self._outbox.origin.origin_id
        retain = partial(read_retained, conversation_id=conversation_id, origin_id=origin_id, newest=newest)
        retained = await self._outbox.read(lambda connection: on_cursor(connection, retain))
        return merge(retained, None, None)

    async def read_window(
        self,
        conversation_id: str,
        window: Window | None,
        merge: Callable[[PendingSlice, StoreView | None], T],
        *,
        upto: int | None = None,
        newest: int | None = None,
        whole: bool = False,
    ) -> T:
        """Read a conversation with messages of a window, or none, and merge them with what is pending."""
        origin_id = self._outbox.origin.origin_id

        async def ask(pending: PendingSlice) -> tuple[StoreView, None] | None:
            query = ViewQuery(
                conversation_id=conversation_id,
                origin_id=origin_id,
                window=window,
                names=pending.names if pending.rows else (),
                bound=partial(left_on_path, pending, upto=upto) if pending.rows and pending.cuts else None,
                whole=whole,
            )
            view = await self._gateway.read(partial(self._gateway.store.runtime.view, query))
            return None if view is None else (view, None)

        def merged(pending: PendingSlice, view: StoreView | None, _: Any) -> T:
            return merge(pending, view)

        return await self.read(conversation_id, ask, merged, newest=newest)

    async def _pending(self, conversation_id: str, since: int | None, newest: int | None) -> PendingSlice:
        origin_id = self._outbox.origin.origin_id
        if since is None:
            # A few rows in cached pages, without a lock, are read faster than a thread is woken.
            probe = self._outbox.probe
            there = probe.lookup(conversation_id)
            if there.settled:
                return PendingSlice.nothing(conversation_id, origin_id, there.head)
            if there.known and there.head - there.delivered <= _MAX_READ_HERE:
                few = probe.read(partial(read_slice, conversation_id=conversation_id, origin_id=origin_id))
                if few is not None:
                    return few
        read = partial(read_slice, conversation_id=conversation_id, origin_id=origin_id, since=since, newest=newest)
        return await self._outbox.read(lambda connection: on_cursor(connection, read))
