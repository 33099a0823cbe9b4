"""Count the messages of a period and what they cost, page by page from the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, events, messages, of_conversation, same_conversation
from letopis.store.model.codec import decode
from letopis.store.model.event_types import MessageAppended
from letopis.store.model.events import Upcasters
from letopis.store.model.identifiers import partition_of
from letopis.store.model.messages import EMPTY
from letopis.store.read.reader import Reader
from letopis.store.read.task_marks import erased, message_columns
from letopis.store.rules.redaction import stripped
from letopis.store.rules.statistics import Erasures, PartialStatistics, Period, StatisticsBuilder

MAX_EVENTS_PER_PAGE: Final = 500
"""Events that are held in memory at a time."""


class StatisticsReader:
    """Counts in one history store, over one snapshot of it."""

    def __init__(self, dialect: Dialect, *, partitions: int, upcasters: Upcasters, reader: Reader) -> None:
        self._dialect = dialect
        self._partitions = partitions
        self._upcasters = upcasters
        self._reader = reader
        self._statements = dialect.shared(_Statements)

    async def count(
        self,
        connection: AsyncConnection,
        period: Period,
        *,
        origin_id: UUID | None = None,
        lanes: Mapping[str, Collection[UUID]] = EMPTY,
        erasures: Erasures | None = None,
    ) -> PartialStatistics:
        """Count a period, and return how far lanes of an outbox are counted."""
        await self._dialect.begin_snapshot(connection)
        counting = StatisticsBuilder(period.by, erasures=erasures)
        named = frozenset(lanes)
        heads = {} if origin_id is None else await self._reader.lane_heads(connection, origin_id, [*lanes])
        owned = frozenset(lanes if period.owner is None else await self._reader.owned(connection, period.owner, lanes))
        there, stored, deleted = set[str](), set[UUID](), set[str]()
        for name, event_ids in lanes.items():
            conversation = await self._reader.conversation(connection, name) if event_ids else None
            if conversation is not None:
                deleted.update({name} if conversation.state == "deleted" else ())
                stored.update(await self._reader.digests(connection, name, event_ids))
        if period.since is None and period.until is None and period.by is None and self._reader.reads_as_stored:
            counted = self._add_all(connection, period, counting)
        else:
            counted = self._add_each(connection, period, counting)
        async for name in counted:
            there.update(named & {name})
        return PartialStatistics(
            counting=counting,
            heads=heads,
            there=frozenset(there),
            owned=owned,
            stored=frozenset(stored),
            deleted=frozenset(deleted),
        )

    async def _add_each(
        self, connection: AsyncConnection, period: Period, counting: StatisticsBuilder
    ) -> AsyncIterator[str]:
        """Count the messages of a period from the log; yield the conversations that have any."""
        last = ""
        async for rows in self._pages(connection, period):
            for row in rows:
                stored = decode(row.data)
                if row.erased is not None:
                    stored = stripped(MessageAppended.type, stored)
                _, data = self._upcasters.upcast(MessageAppended.type, row.schema_version, stored)
                if counting.erasures.of(row.conversation_id, data.get("message_id")):
                    data = stripped(MessageAppended.type, data)
                counting.take(data, superseded=row.left_at == row.version)
                if row.conversation_id != last:
                    last = row.conversation_id
                    counting.conversations += 1
                    yield last

    async def _add_all(
        self, connection: AsyncConnection, period: Period, counting: StatisticsBuilder
    ) -> AsyncIterator[str]:
        """Count all messages from their rows alone, without the log; yield the conversations that have any."""
        # The tokens are summed up in the row of each conversation.
        async for rows in self._conversation_pages(connection, period):
            tokens = {row.conversation_id: row.tokens for row in rows}
            key = {"partitions": self._partitions_of(tokens), "conversations": list(tokens)}
            for row in (await connection.execute(self._statements.sums, key)).all():
                counting.conversations += 1
                counting.add(
                    questions=int(row.questions),
                    answers=int(row.answers),
                    messages=int(row.messages),
                    tokens=tokens[row.conversation_id],
                )
                yield row.conversation_id

    async def _pages(self, connection: AsyncConnection, period: Period) -> AsyncIterator[Sequence[sa.Row[Any]]]:
        """Yield the messages of the period, one conversation after the other."""
        narrowed = {
            name: value for name, value in (("since", period.since), ("until", period.until)) if value is not None
        }
        statement = self._statements.messages(period, whole=True)
        part = self._statements.messages(period, whole=False)
        async for few in _in_groups(self._conversation_pages(connection, period)):
            if len(few) > 1 or few[0].version <= MAX_EVENTS_PER_PAGE:
                names = [row.conversation_id for row in few]
                key = {"partitions": self._partitions_of(names), "conversations": names}
                messages = (await connection.execute(statement, {**key, **narrowed})).all()
                yield sorted(messages, key=lambda row: (row.conversation_id, row.version))
                continue
            for after in range(0, few[0].version, MAX_EVENTS_PER_PAGE):
                window = {"partition": few[0].partition, "conversation": few[0].conversation_id}
                window.update(after=after, upto=after + MAX_EVENTS_PER_PAGE)
                yield (await connection.execute(part, {**window, **narrowed})).all()

    async def _conversation_pages(
        self, connection: AsyncConnection, period: Period
    ) -> AsyncIterator[Sequence[sa.Row[Any]]]:
        statement = self._statements.conversations(period)
        # One owner has few, in any partition; those of all owners are read along the primary key.
        for partition in (0,) if period.owner is not None else range(self._partitions):
            key: dict[str, Any] = {"after": "", "limit": MAX_EVENTS_PER_PAGE, "partition": partition}
            if period.owner is not None:
                del key["partition"]
                key["owner"] = period.owner
            if period.since is not None:
                key["since"] = period.since
            while rows := (await connection.execute(statement, key)).all():
                yield rows
                key["after"] = rows[-1].conversation_id

    def _partitions_of(self, names: Iterable[str]) -> list[int]:
        return sorted({partition_of(name, self._partitions) for name in names})


async def _in_groups(pages: AsyncIterator[Iterable[sa.Row[Any]]]) -> AsyncIterator[list[sa.Row[Any]]]:
    """Yield conversations that may have messages in the period: several that make a page, or a large one."""
    few: list[sa.Row[Any]] = []
    size = 0
    async for rows in pages:
        for row in rows:
            if few and size + row.version > MAX_EVENTS_PER_PAGE:
                yield few
                few, size = [], 0
            few.append(row)
            size += row.version
    if few:
        yield few


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


class _Statements:
    """The selects of a count, built once."""

    def __init__(self, dialect: Dialect) -> None:
        self._of_conversations = dialect.of_conversations(messages)
        stood = sa.or_(messages.c.left_at.is_(None), messages.c.left_at != messages.c.version)
        self.sums = (
            sa.select(
                messages.c.conversation_id,
                _count(sa.and_(stood, messages.c.role == "user")).label("questions"),
                _count(sa.and_(stood, messages.c.role == "assistant")).label("answers"),
                _count(stood).label("messages"),
            )
            .where(*self._of_conversations)
            .group_by(messages.c.conversation_id)
        )

    def conversations(self, period: Period) -> sa.Executable:
        """Return the select of some conversations, by id."""
        statement = sa.select(
            conversations.c.partition, conversations.c.conversation_id, conversations.c.version, conversations.c.tokens
        ).where(conversations.c.conversation_id > sa.bindparam("after"))
        if period.owner is None:
            statement = statement.where(conversations.c.partition == sa.bindparam("partition"))
        else:
            statement = statement.where(conversations.c.owner_id == sa.bindparam("owner"))
        if period.since is not None:
            # A conversation is never updated before its messages occurred.
            statement = statement.where(conversations.c.updated_at >= sa.bindparam("since"))
        return statement.order_by(conversations.c.conversation_id).limit(sa.bindparam("limit"))

    def messages(self, period: Period, *, whole: bool) -> sa.Executable:
        """Return the select of the messages of whole conversations, or of a range of versions of one."""
        redacted = next(column for column in message_columns(messages) if column.name == "redacted_at")
        # Forks may retain the content of an event that is erased in its own conversation.
        gone = sa.or_(erased(events).is_not(None), redacted.is_not(None))
        statement = sa.select(
            *(messages.c[name] for name in ("conversation_id", "version", "left_at")),
            *(events.c.schema_version, events.c.data),
            sa.case((gone, 1)).label("erased"),
        ).select_from(messages.join(events, same_conversation(events, messages, "version")))
        if whole:
            statement = statement.where(*self._of_conversations)
        else:
            statement = statement.where(
                *of_conversation(messages),
                messages.c.version > sa.bindparam("after"),
                messages.c.version <= sa.bindparam("upto"),
            )
        if period.since is not None:
            statement = statement.where(events.c.occurred_at >= sa.bindparam("since"))
        if period.until is not None:
            statement = statement.where(events.c.occurred_at < sa.bindparam("until"))
        return statement
