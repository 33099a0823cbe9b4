"""Find the messages that match a query, in the index and in the log that it has not read yet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.cancellation import off_the_loop
from letopis.store.database.dialects import Dialect, in_batches
from letopis.store.database.schema import messages
from letopis.store.model.conversations import Page, RecordedMessage
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import partition_of
from letopis.store.read.reader import Reader
from letopis.store.read.statements import whole
from letopis.store.read.task_marks import is_shown
from letopis.store.search.documents import LogRanges
from letopis.store.search.index import Document, Index, SearchScope
from letopis.store.search.indexer import IndexProgress, index_progress
from letopis.store.search.query import Match, Query, match
from letopis.store.search.results import MAX_HITS, Hit, SearchPosition, hit_of

MAX_UNINDEXED_EVENTS: Final = 2_000
"""Events beyond the index that one search reads; with more than that, its page is not complete."""
MAX_UNINDEXED_SECONDS: Final = 1.0
"""Processor time after which a search reads no more of them: a busy machine finds as much as an idle one."""
UNINDEXED_EVENTS_PER_READ: Final = 100


_Candidate = tuple[Any, float]
"""A document or a row of the index, with its score: above 1 where it is not indexed as it is now."""


def _at_select(dialect: Dialect) -> sa.Select[Any]:
    return whole(
        sa.select(messages).where(
            *dialect.of_conversations(messages), dialect.among(messages.c.version, "versions"), is_shown(messages)
        )
    )


class Finder:
    """Searches one history store over connections that it is given."""

    def __init__(
        self, dialect: Dialect, index: Index, reader: Reader, *, partitions: int, upcasters: Upcasters
    ) -> None:
        self._index = index
        self._reader = reader
        self._partitions = partitions
        self._log = LogRanges(dialect, upcasters)
        self._at = dialect.shared(_at_select)

    async def start(self, connection: AsyncConnection, conversation: str | None) -> str:
        """Return the ``next`` of a page without hits, at which a search that begins now goes on."""
        return _start(self._searched(await index_progress(connection), conversation)).cursor

    async def find(
        self,
        connection: AsyncConnection,
        query: Query,
        *,
        owner: str | None,
        conversation: str | None,
        limit: int,
        after: SearchPosition | None,
    ) -> Page[Hit]:
        # Read first: what is indexed after this is found in both, and shown once.
        progress = self._searched(await index_progress(connection), conversation)
        position = after or _start(progress)
        scope = SearchScope(
            owner=owner,
            conversation=conversation,
            bounds={part.partition: min(part.head, position.bounds.get(part.partition, 0)) for part in progress},
        )
        unindexed, left_out = await self._unindexed(connection, query, progress, scope)
        room = min(limit, MAX_HITS - position.count)
        rows = await self._best(connection, query, scope, position.count + room + len(unindexed) + 1)
        known = {(found.partition, found.position) for found, _ in unindexed}
        indexed = [(row, _between_0_and_1(row.score)) for row in rows if (row.partition, row.position) not in known]
        left = [
            (found, score)
            for found, score in [*unindexed, *indexed]
            if found.position not in position.shown.get(found.partition, ())
        ]
        shown = left[:room]
        messages = await self._messages(connection, [found for found, _ in shown])
        hits = [
            hit
            for found, score in shown
            if (message := messages.get((found.conversation_id, found.version))) is not None
            and (hit := hit_of(message, query, score)) is not None
        ]
        following = position.with_shown((found.partition, found.position) for found, _ in shown)
        more = len(left) > room and following.count < MAX_HITS
        return Page(tuple(hits), next=following.cursor if more else None, complete=not left_out, unindexed=left_out)

    def _searched(self, progress: list[IndexProgress], conversation: str | None) -> list[IndexProgress]:
        if conversation is None:
            return progress
        partition = partition_of(conversation, self._partitions)
        return [part for part in progress if part.partition == partition]

    async def _unindexed(
        self, connection: AsyncConnection, query: Query, progress: Sequence[IndexProgress], scope: SearchScope
    ) -> tuple[list[_Candidate], int]:
        """Return hits among the messages that are not indexed as they are now, and how many events were left out."""
        matches = dict[tuple[int, int], tuple[Document, Match]]()  # one read has a message, a later one its edit
        left, left_out, spent = MAX_UNINDEXED_EVENTS, 0, 0.0
        for part in progress:
            after, partition = part.indexed, part.partition
            while after < part.head and left:
                size = min(left, UNINDEXED_EVENTS_PER_READ)
                log = await self._log.read(connection, partition=partition, after=after, upto=part.head, limit=size)
                # In a thread: stemming words is work for the processor.
                matching, seconds = await off_the_loop(_matching, query, scope, partition, log.documents)
                matches |= {(partition, found[0].position): found for found in matching}
                after, spent = log.last, spent + seconds
                left = left - log.events if log.events and spent < MAX_UNINDEXED_SECONDS else 0
            left_out += part.head - after
        newest = sorted(matches.values(), key=lambda pair: (pair[0].occurred_at, pair[0].position), reverse=True)
        return [(document, 1.0 + fit.score) for document, fit in newest], left_out

    async def _best(self, connection: AsyncConnection, query: Query, scope: SearchScope, wanted: int) -> list[Any]:
        """Return the ``wanted`` best hits of the index, or all where there are fewer."""
        limit = wanted
        while True:
            current, ranked = await self._index.best(connection, query, scope, limit=limit)
            if len(current) >= wanted or ranked < limit:
                return current[:wanted]
            limit *= 4

    async def _messages(
        self, connection: AsyncConnection, wanted: Sequence[Any]
    ) -> dict[tuple[str, int], RecordedMessage]:
        """Return candidates as they are now, by conversation and version."""
        messages = dict[tuple[str, int], RecordedMessage]()
        for part in in_batches(wanted):
            rows = await connection.execute(
                self._at,
                {
                    "partitions": sorted({document.partition for document in part}),
                    "conversations": sorted({document.conversation_id for document in part}),
                    "versions": sorted({document.version for document in part}),
                },
            )
            for row in rows:
                name = row.m_conversation_id
                messages[name, row.m_version] = self._reader.message(row, name)
        return messages


def _matching(
    query: Query, scope: SearchScope, partition: int, documents: Sequence[Document]
) -> tuple[list[tuple[Document, Match]], float]:
    """Return the documents that match, and the seconds of processor time that this took."""
    began = time.thread_time()
    matching = [
        (document, fit)
        for document in documents
        if document.position <= scope.bounds[partition]
        and (scope.conversation is None or document.conversation_id == scope.conversation)
        and (scope.owner is None or document.owner_id == scope.owner)
        and (fit := match(query, document.text)) is not None
    ]
    return matching, time.thread_time() - began


def _start(progress: Sequence[IndexProgress]) -> SearchPosition:
    return SearchPosition(bounds={part.partition: part.head for part in progress}, shown={})


def _between_0_and_1(score: Any) -> float:
    """Return a score of any scale as a number between 0 and 1, in the same order."""
    positive = max(0.0, float(score))
    return positive / (1.0 + positive)
