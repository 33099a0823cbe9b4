"""Read of a history what a page about it shows, each read bounded in time and size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa

from letopis.console.incident_list import IncidentReport, list_incidents
from letopis.console.store_log import (
    LAST_CHARACTER,
    ForkSummary,
    LoggedRow,
    forks,
    ids_with_prefix,
    log_in_brief,
    positions_at,
)
from letopis.console.stuck_lanes import StuckGroup, StuckLane, count_stuck, list_stuck
from letopis.outbox.concurrency.home_loop import at_home
from letopis.outbox.event_log.statements import query_one
from letopis.outbox.history.history import History
from letopis.outbox.history.options import Options
from letopis.outbox.operations.admin import AuditEntry, OutboxAdmin, Via, list_actions
from letopis.outbox.operations.pending_events import (
    PendingEvent,
    Repair,
    Selection,
    list_pending,
    list_repairs,
    value_of,
)
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.store_identity import StoreIdentity
from letopis.store.model.events import to_microseconds
from letopis.store.read.reader import Reader

T = TypeVar("T")

MAX_PARTITIONS: Final = 16
"""Partitions of a log up to which its growth is measured: each takes reads of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What happened in equal spans of time.

    :ivar edges: the moments between the spans, in order; one more than there are spans.
    :ivar appended: events appended to this outbox, by span.
    :ivar saved: events that the history store recorded, of all outboxes; ``None`` if it was not available or has very
        many partitions.
    """

    edges: tuple[datetime, ...]
    appended: tuple[int, ...]
    saved: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHeads:
    """The history store's identity, and the last position of each partition of its log."""

    identity: StoreIdentity
    heads: tuple[int, ...]


@at_home()
class Insight:
    """Reads a history for its operators, in the event loop that its outbox is open in.

    Reads of the history store return ``None`` while it is unavailable, within the history's ``read_timeout``.

    :param history: it need not be open.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self._home = history._home
        self._positions: dict[int, dict[int, int]] = {}

    @property
    def path(self) -> Path:
        """The outbox file."""
        return Path(self._home.settings.path)

    @property
    def options(self) -> Options:
        """The options that the history was given."""
        return self._home.settings.options

    async def activity(self, edges: Sequence[datetime]) -> Activity:
        """Return what was appended and saved between moments, which must rise.

        The first call reads about 20 times as many rows as there are moments; later ones those that are new.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        moments = [to_microseconds(edge) for edge in edges]
        appended = await self._read(partial(count_appended, moments=moments))
        saved = await self._ask(partial(self._saved, moments))
        return Activity(edges=tuple(edges), appended=tuple(appended), saved=None if saved is None else tuple(saved))

    async def stuck(
        self, *, limit: int, after: str = "", state: str | None = None, fault_class: str | None = None
    ) -> list[StuckLane]:
        """Return at most ``limit`` stuck conversations by id, the first one behind ``after``."""
        return await self._read(partial(list_stuck, limit=limit, after=after, state=state, fault_class=fault_class))

    async def stuck_groups(self) -> list[StuckGroup]:
        """Return the numbers of stuck conversations by state and class of fault."""
        return await self._read(count_stuck)

    async def pending(
        self, selection: Selection, *, limit: int, after: tuple[str, int] = ("", 0)
    ) -> list[PendingEvent]:
        """Return at most ``limit`` pending events by conversation and sequence, the first one behind ``after``."""
        return await self._read(partial(list_pending, selection=selection, limit=limit, after=after))

    async def event(self, event_id: UUID) -> tuple[PendingEvent, list[Repair]] | None:
        """Return a pending event and its repairs; ``None`` if no pending event has the id."""

        def read(connection: sa.Connection) -> tuple[PendingEvent, list[Repair]] | None:
            found = list_pending(connection, Selection(event_ids=(event_id,)), limit=1)
            return (found[0], list_repairs(connection, found[0])) if found else None

        return await self._read(read)

    async def value(self, entry: PendingEvent) -> bytes | None:
        """Return the value of a pending put of a record; ``None`` where a later put replaced it."""
        return await self._read(partial(value_of, entry=entry))

    async def incidents(self, *, limit: int = 50) -> list[IncidentReport]:
        """Return open incidents and then past ones, with who was notified."""
        return await self._read(partial(list_incidents, limit=limit))

    async def audit(self, *, limit: int, before: int | None = None) -> list[AuditEntry]:
        """Return what operators did, the newest first."""
        return await self._read(partial(list_actions, limit=limit, before=before))

    async def heads(self) -> StoreHeads | None:
        """Return the identity of the history store and the heads of its log."""

        async def ask(store: ConversationStore) -> StoreHeads:
            return StoreHeads(identity=await store.identity(), heads=await _heads(store))

        return await self._ask(ask)

    async def forks(self, conversation_id: str, *, limit: int = 20) -> list[ForkSummary] | None:
        """Return some forks of a conversation."""
        return await self._ask(lambda store: forks(store, conversation_id, limit=limit))

    async def conversation_ids(self, prefix: str, *, limit: int) -> list[str]:
        """Return at most ``limit`` ids of conversations that begin with ``prefix``, sorted.

        While the history store is unavailable, they are those that the outbox knows.
        """

        def read(connection: sa.Connection) -> list[str]:
            rows = connection.exec_driver_sql(_IDS, (prefix, prefix + LAST_CHARACTER, limit))
            return [row[0] for row in rows]

        local = await self._read(read)
        stored = await self._ask(lambda store: ids_with_prefix(store, prefix, limit=limit))
        return sorted({*local, *(stored or ())})[:limit]

    async def log_in_brief(self, *, partition: int, after: int, limit: int) -> list[LoggedRow] | None:
        """Return what figures of messages need of the next ``limit`` positions of the history store's log."""
        return await self._ask(lambda store: log_in_brief(store, partition=partition, after=after, limit=limit))

    async def acting(self, work: Callable[[OutboxAdmin], Awaitable[T]], *, by: str | None, via: Via) -> T:
        """Return what ``work`` does with the admin of the outbox, in its event loop."""
        await self.history.prepare()
        return await work(OutboxAdmin(self.history.outbox, by=by, via=via))

    async def store_url(self) -> str:
        """Return the URL of the history store, with its password: for a program that is started to check it."""
        await self.history.prepare()
        return self.history.store.url.render_as_string(hide_password=False)

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        await self.history.prepare()
        return await self.history.outbox.read(work)

    async def _ask(self, ask: Callable[[ConversationStore], Awaitable[T]]) -> T | None:
        await self.history.prepare()

        async def asked(store: ConversationStore) -> T:
            return await ask(store)

        gateway = self.history._parts.gateway
        return await gateway.read(lambda: asked(gateway.store))

    async def _saved(self, moments: list[int], store: ConversationStore) -> list[int] | None:
        heads = await _heads(store)
        if len(heads) > MAX_PARTITIONS:
            return None
        counts = [0] * (len(moments) - 1)
        for partition, head in enumerate(heads):
            at = await self._positions_at(store, partition, head, moments)
            for index in range(len(counts)):
                counts[index] += max(0, at[index + 1] - at[index])
        return counts

    async def _positions_at(self, store: ConversationStore, partition: int, head: int, moments: list[int]) -> list[int]:
        """Return the position at each moment; those that lie some time back are remembered."""
        known = self._positions.setdefault(partition, {})
        for moment in [one for one in known if one < moments[0] or known[one] > head]:
            del known[moment]
        new = [one for one in moments if one not in known]
        floor = max((known[one] for one in known if new and one < new[0]), default=0)
        found = await positions_at(store, new, partition=partition, head=head, floor=floor) if new else []
        at = known | dict(zip(new, found, strict=True))
        settled = moments[-1] - round(_SETTLED.total_seconds() * 1_000_000)
        known.update({one: position for one, position in at.items() if one < settled})
        return [at[one] for one in moments]


_SETTLED: Final = timedelta(seconds=30)
"""Age from which on no transaction that is still open can add an event from before a moment."""


_BOUNDS: Final = "SELECT coalesce(min(position), 1), coalesce(max(position), 0) FROM letopis_outbox_events"
_IDS: Final = (
    "SELECT conversation_id FROM letopis_outbox_lanes WHERE conversation_id >= ? AND conversation_id < ?"
    " ORDER BY conversation_id LIMIT ?"
)
_AT: Final = "SELECT position, appended_at FROM letopis_outbox_events WHERE position >= ? ORDER BY position LIMIT 1"


def count_appended(connection: sa.Connection, moments: Sequence[int]) -> list[int]:
    """Return how many events were appended between each two moments, in UTC microseconds, which must rise.

    Positions rise with each append, and delivered events that were pruned since count too. A few dozen rows are read,
    however many events there are.
    """
    with closing(connection.connection.cursor()) as cursor:
        first, last = query_one(cursor, _BOUNDS) or (1, 0)
        edges: list[int] = []
        low = first
        for moment in moments:
            low = _first_from(cursor, moment, low, last + 1)
            edges.append(low)
    return [later - earlier for earlier, later in pairwise(edges)]


def _first_from(cursor: Any, moment: int, low: int, high: int) -> int:
    """Return the first position from ``low`` on that was appended at a moment or later; ``high`` if there is none."""
    while low < high:
        middle = (low + high) // 2
        found = query_one(cursor, _AT, (middle,))
        if found is None or found[1] >= moment:
            high = middle
        else:
            low = found[0] + 1
    return low


async def _heads(store: ConversationStore) -> tuple[int, ...]:
    return tuple((await store.runtime.read(Reader.heads)).values())
