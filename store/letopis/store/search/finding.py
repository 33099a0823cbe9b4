"""Finding: the hits of a query, from the index and from what it has not read yet, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.conversation import Page, RecordedMessage
from letopis.store.dialects import Dialect, lookups
from letopis.store.identifiers import partition_of
from letopis.store.reads import Reader
from letopis.store.schema import messages
from letopis.store.search.documents import Stretches
from letopis.store.search.hits import HITS_MAX, Hit, Place, pack
from letopis.store.search.index import Document, Index, Where
from letopis.store.search.indexing import Standing, standings
from letopis.store.search.marking import snippet
from letopis.store.search.query import Match, Query, match
from letopis.store.selects import whole
from letopis.store.upcasters import Upcasters

UNREAD_MAX: Final = 2_000
"""Events beyond the index that one search looks through; more than that, and it is not complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A message that may be a hit. Its score is of the index, or 1 and more where the index does not know it."""

    partition: int
    conversation_id: str
    version: int
    position: int
    score: float


class Finder:
    """Finds in one history store over connections that it is given."""

    def __init__(
        self, dialect: Dialect, index: Index, reader: Reader, *, partitions: int, upcasters: Upcasters
    ) -> None:
        self._index = index
        self._reader = reader
        self._partitions = partitions
        self._stretches = Stretches(dialect, upcasters)
        self._at = whole(
            sa.select(messages).where(
                dialect.among(messages.c.partition, "partitions"),
                dialect.among(messages.c.conversation_id, "conversations"),
                dialect.among(messages.c.version, "versions"),
                messages.c.left_at.is_(None),
            )
        )

    async def place(self, connection: AsyncConnection, conversation: str | None) -> str:
        """Return the ``next`` of a page that showed nothing: where a search made now begins."""
        there = self._of_interest(await standings(connection), conversation)
        return pack(Place(bounds={one.partition: one.head for one in there}, shown={}).to_json())

    async def find(
        self,
        connection: AsyncConnection,
        query: Query,
        *,
        owner: str | None,
        conversation: str | None,
        limit: int,
        after: Place | None,
    ) -> Page[Hit]:
        """Return a page of hits; see :meth:`letopis.store.history.ConversationStore.search`."""
        # How far the index had got is read first: what it reads after that is found in both, and shown once.
        there = self._of_interest(await standings(connection), conversation)
        place = after or Place(bounds={one.partition: one.head for one in there}, shown={})
        where = Where(
            owner=owner,
            conversation=conversation,
            bounds={one.partition: min(one.head, place.bounds.get(one.partition, 0)) for one in there},
        )
        unread, complete = await self._unread(connection, query, there, where)
        room = min(limit, HITS_MAX - place.count)
        rows = await self._best(connection, query, where, place.count + room + len(unread) + 1)
        known = {(one.partition, one.position) for one in unread}
        candidates = unread + [
            _Candidate(
                partition=row.partition,
                conversation_id=row.conversation_id,
                version=row.version,
                position=row.position,
                score=_between_0_and_1(row.score),
            )
            for row in rows
            if (row.partition, row.position) not in known
        ]
        left = [one for one in candidates if one.position not in place.shown.get(one.partition, ())]
        shown = left[:room]
        known_now = await self._messages(connection, shown)
        hits = [
            hit
            for one in shown
            if (message := known_now.get((one.conversation_id, one.version))) is not None
            and (hit := hit_of(message, query, one.score)) is not None
        ]
        going_on = place.with_shown((one.partition, one.position) for one in shown)
        more = len(left) > room and going_on.count < HITS_MAX
        return Page(tuple(hits), next=pack(going_on.to_json()) if more else None, complete=complete)

    def _of_interest(self, there: list[Standing], conversation: str | None) -> list[Standing]:
        if conversation is None:
            return there
        partition = partition_of(conversation, self._partitions)
        return [one for one in there if one.partition == partition]

    async def _unread(
        self, connection: AsyncConnection, query: Query, there: Sequence[Standing], where: Where
    ) -> tuple[list[_Candidate], bool]:
        """Return hits among the messages that the index does not know, or not as they are now; and whether all."""
        found = list[tuple[Document, Match]]()
        left, complete = UNREAD_MAX, True
        for one in there:
            bound = where.bounds[one.partition]
            if one.behind and left:
                stretch = await self._stretches.read(
                    connection, partition=one.partition, after=one.indexed, upto=one.head, limit=left
                )
                left -= stretch.events
                complete = complete and stretch.last == one.head
                found += [
                    (document, fits)
                    for document in stretch.documents
                    if document.position <= bound
                    and (where.conversation is None or document.conversation_id == where.conversation)
                    and (where.owner is None or document.owner_id == where.owner)
                    and (fits := match(query, document.text)) is not None
                ]
            elif one.behind:
                complete = False
        found.sort(key=lambda pair: (pair[0].occurred_at, pair[0].position), reverse=True)
        return [
            _Candidate(
                partition=document.partition,
                conversation_id=document.conversation_id,
                version=document.version,
                position=document.position,
                score=1.0 + fits.score,
            )
            for document, fits in found
        ], complete

    async def _best(self, connection: AsyncConnection, query: Query, where: Where, wanted: int) -> list[Any]:
        """Return the best hits of the index, ``wanted`` of them where there are so many."""
        limit = wanted
        while True:
            rows = (await connection.execute(self._index.select(query, where, limit=limit))).all()
            there = [row for row in rows if row.there]
            if len(there) >= wanted or len(rows) < limit:
                return there[:wanted]
            limit *= 4

    async def _messages(
        self, connection: AsyncConnection, wanted: Sequence[_Candidate]
    ) -> dict[tuple[str, int], RecordedMessage]:
        """Return candidates as they are at this moment, by conversation and version."""
        found = dict[tuple[str, int], RecordedMessage]()
        for part in lookups(wanted):
            rows = await connection.execute(
                self._at,
                {
                    "partitions": sorted({one.partition for one in part}),
                    "conversations": sorted({one.conversation_id for one in part}),
                    "versions": sorted({one.version for one in part}),
                },
            )
            for row in rows:
                name = row.m_conversation_id
                found[name, row.m_version] = self._reader.message(row, name)
        return found


def hit_of(message: RecordedMessage, query: Query, score: float | None = None) -> Hit | None:
    """Return a message as a hit; ``None`` where it is not to be found by this query.

    :param score: of the index; by default how well it fits, above 1.
    """
    if message.redacted or not message.on_path:
        return None
    fits = match(query, message.text)
    if fits is None:
        return None
    piece = snippet(message.text, fits)
    return Hit(
        message=message,
        conversation_id=message.conversation_id,
        snippet=piece.text,
        marks=piece.marks,
        score=1.0 + fits.score if score is None else score,
    )


def _between_0_and_1(score: Any) -> float:
    """Return a score of whatever scale, in the same order."""
    worth = max(0.0, float(score))
    return worth / (1.0 + worth)
