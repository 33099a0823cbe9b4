"""Find the threads that hold more checkpoints, or older ones, than the rules of retention keep; change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.row_mapping import tags_of
from letopis.store.database.schema import conversations, holds, record_tags, records
from letopis.store.maintenance.retention import held
from letopis.store.model.events import from_microseconds
from letopis.store.model.records import Namespace, Scope, decode_namespace, encode_tag
from letopis.store.rules.retention import ContentRetention, RetentionRule

CHECKPOINT_TAG: Final = ("langgraph", "checkpoint")
"""The tag that each record of a checkpoint has. The key of the record orders it within its namespace."""
PAGE_RECORDS: Final = 500
_MICROSECONDS: Final = 1_000_000

CheckpointPlace = tuple[int, UUID]
"""A partition, and the id of the record after which to go on."""
FIRST_PLACE: Final[CheckpointPlace] = (0, UUID(int=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class DueCheckpoints:
    """A namespace of a conversation's records in which checkpoints may be due.

    :ivar put_after: checkpoints put earlier are due; ``None`` if age does not matter.
    """

    conversation_id: str
    namespace: Namespace
    rule: RetentionRule
    put_after: datetime | None


class _Statements:
    def __init__(self, dialect: Dialect) -> None:
        own, tag = records.alias("own"), record_tags.c
        newer, older = records.alias("newer"), records.alias("older")

        def beside(other: Any) -> tuple[sa.ColumnElement[bool], ...]:
            return tuple(other.c[name] == own.c[name] for name in ("partition", "scope", "namespace"))

        has_older = sa.exists().where(*beside(older), older.c.record_key < own.c.record_key)
        count = sa.select(sa.func.count()).where(*beside(newer), newer.c.record_key > own.c.record_key)
        # By the index of tags, which holds the checkpoints alone, and not by that of all records.
        self.page = (
            sa.select(
                own.c.record_id,
                own.c.scope,
                own.c.namespace,
                own.c.updated_at,
                sa.case((has_older, 0), else_=count.scalar_subquery()).label("newer"),
            )
            .select_from(record_tags)
            .join(own, sa.and_(own.c.partition == tag.partition, own.c.record_id == tag.record_id))
            .where(
                tag.name == CHECKPOINT_TAG[0].encode(),
                tag.value == encode_tag(CHECKPOINT_TAG[1]),
                tag.partition == sa.bindparam("at_partition"),
                tag.record_id > sa.bindparam("after", type_=record_tags.c.record_id.type),
            )
            .order_by(tag.record_id)
            .limit(PAGE_RECORDS)
        )
        c = conversations.c
        self.conversations = sa.select(c.conversation_id, c.owner_id, c.tags, c.state, held().label("held")).where(
            *dialect.of_conversations(conversations)
        )
        # A thread needs no conversation, and may be held without one.
        self.held = sa.select(holds.c.subject).where(
            holds.c.kind == "conversation", dialect.among(holds.c.subject, "conversations")
        )


class CheckpointFinder:
    """Finds threads with due checkpoints in one history store, over connections that it is given."""

    def __init__(self, dialect: Dialect, *, partitions: int, now: Callable[[], int]) -> None:
        self._statements = dialect.shared(_Statements)
        self._partitions = partitions
        self._now = now

    async def step(
        self, connection: AsyncConnection, retention: ContentRetention, place: CheckpointPlace
    ) -> tuple[list[DueCheckpoints], CheckpointPlace | None]:
        """Look at the next checkpoints, and return the namespaces of due ones, and where to go on."""
        partition, after = place
        values = {"at_partition": partition, "after": after}
        page: Sequence[Any] = (await connection.execute(self._statements.page, values)).all()
        # Each namespace is looked at once in a round, at its oldest checkpoint.
        oldest = [row for row in page if row.newer]
        due = await self._due(connection, retention, partition, oldest) if oldest else []
        if len(page) == PAGE_RECORDS:
            return due, (partition, page[-1].record_id)
        return due, (partition + 1, FIRST_PLACE[1]) if partition + 1 < self._partitions else None

    async def _due(
        self, connection: AsyncConnection, retention: ContentRetention, partition: int, rows: Sequence[Any]
    ) -> list[DueCheckpoints]:
        names = {name for row in rows if (name := Scope(row.scope).conversation_id) is not None}
        values = {"partitions": [partition], "conversations": list(names)}
        known = {row.conversation_id: row for row in await connection.execute(self._statements.conversations, values)}
        kept = set((await connection.execute(self._statements.held, {"conversations": list(names)})).scalars())
        kept |= {name for name, row in known.items() if row.held or row.state == "deleted"}
        due = []
        for row in rows:
            name = Scope(row.scope).conversation_id
            if name is None or name in kept:
                continue
            conversation = known.get(name)
            owner = None if conversation is None else conversation.owner_id
            rule = retention.rule_for(owner, () if conversation is None else tags_of(conversation._mapping))
            if rule is None:
                continue
            last, age = rule.checkpoints_last, rule.checkpoints_max_age
            cutoff = None if age is None else self._now() - age * _MICROSECONDS
            if (last is not None and row.newer >= last) or (cutoff is not None and row.updated_at <= cutoff):
                due.append(
                    DueCheckpoints(
                        conversation_id=name,
                        namespace=decode_namespace(bytes(row.namespace)),
                        rule=rule,
                        put_after=None if cutoff is None else from_microseconds(cutoff),
                    )
                )
        return due
