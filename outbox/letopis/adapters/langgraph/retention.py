# pyright: reportMissingImports=false
"""Delete the checkpoints that the rules of retention keep no longer, for the relay and the command line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

import sqlalchemy as sa
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.adapters.langgraph.checkpoints import CheckpointIncomplete, CheckpointRecords
from letopis.adapters.langgraph.keys import KIND_TAG, Target
from letopis.adapters.langgraph.known import forget_everywhere
from letopis.adapters.langgraph.pruning import prune_namespace
from letopis.outbox import AllRecords, Records
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.receipts import Deliveries
from letopis.outbox.pending_reads.record_reads import RecordReads
from letopis.outbox.pending_reads.store_gateway import StoreGateway
from letopis.outbox.relay.content_retention import Pruned
from letopis.store import ContentRetention, ConversationStore, RetentionRule
from letopis.store.database.dialects import Dialect
from letopis.store.database.row_mapping import tags_of
from letopis.store.database.schema import conversations, holds, record_tags, records
from letopis.store.holds import held
from letopis.store.model.events import from_microseconds
from letopis.store.model.records import Namespace, Scope, decode_namespace, encode_tag

T = TypeVar("T")

logger = logging.getLogger("letopis.adapters.langgraph")
PAGE_RECORDS: Final = 500
_READ_SECONDS: Final = 30.0
_MICROSECONDS: Final = 1_000_000
_BEGINNING: Final = UUID(int=0)
_SERDE: Final = JsonPlusSerializer()  # for the metadata of older checkpoints alone


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
                tag.name == KIND_TAG.encode(),
                tag.value == encode_tag("checkpoint"),
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


async def find_due(store: ConversationStore, retention: ContentRetention) -> AsyncIterator[DueCheckpoints]:
    """Yield the namespaces with more checkpoints, or older ones, than the rules keep; change nothing."""
    # No place is kept: what was deleted is not found again.
    runtime = store.runtime
    partitions = (await runtime.prepared()).partitions
    statements = runtime.dialect.shared(_Statements)
    for partition in range(partitions):
        after, count = _BEGINNING, PAGE_RECORDS
        while count == PAGE_RECORDS:
            values = {"at_partition": partition, "after": after}
            read = partial(_due, statements, retention=retention, values=values, now=runtime.now())
            due, after, count = await runtime.connected(read)
            for namespace in due:
                yield namespace


async def _due(
    statements: _Statements,
    connection: AsyncConnection,
    *,
    retention: ContentRetention,
    values: dict[str, Any],
    now: int,
) -> tuple[list[DueCheckpoints], UUID, int]:
    """Look at the next checkpoints; return the namespaces of due ones, the last record, and how many there were."""
    page: Sequence[Any] = (await connection.execute(statements.page, values)).all()
    # Each namespace is looked at once in a round, at its oldest checkpoint.
    oldest = [row for row in page if row.newer]
    names = {name for row in oldest if (name := Scope(row.scope).conversation_id) is not None}
    keys = {"partitions": [values["at_partition"]], "conversations": list(names)}
    known: dict[str, Any] = {}
    exempt = set[str]()
    if names:
        known = {row.conversation_id: row for row in await connection.execute(statements.conversations, keys)}
        exempt = set((await connection.execute(statements.held, {"conversations": list(names)})).scalars())
    exempt |= {name for name, row in known.items() if row.held or row.state == "deleted"}
    due = []
    for row in oldest:
        name = Scope(row.scope).conversation_id
        if name is None or name in exempt:
            continue
        conversation = known.get(name)
        owner = None if conversation is None else conversation.owner_id
        rule = retention.rule_for(owner, () if conversation is None else tags_of(conversation._mapping))
        if rule is None:
            continue
        last, age = rule.checkpoints_last, rule.checkpoints_max_age
        cutoff = None if age is None else now - age * _MICROSECONDS
        if (last is not None and row.newer >= last) or (cutoff is not None and row.updated_at <= cutoff):
            due.append(
                DueCheckpoints(
                    conversation_id=name,
                    namespace=decode_namespace(bytes(row.namespace)),
                    rule=rule,
                    put_after=None if cutoff is None else from_microseconds(cutoff),
                )
            )
    return due, page[-1].record_id if page else values["after"], len(page)


class _OwnLoop:
    """A home for the records of an outbox that is open in the running event loop, without a history."""

    def __init__(self, outbox: OutboxFile, gateway: StoreGateway) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.outbox = outbox
        self.record_reads = RecordReads(outbox, gateway)
        self.deliveries = Deliveries(outbox, gateway)

    @property
    def parts(self) -> _OwnLoop:
        return self

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()


class _Checkpoints(CheckpointRecords):
    """The checkpoints in the records of a relay's outbox, which is no history."""

    def __init__(self, records: AllRecords) -> None:
        self._records = records

    def records(self, target: Target) -> Records:
        return self._records(conversation=target.conversation)

    def forget(self, target: Target) -> None:
        forget_everywhere(target.conversation)


async def prune_due(
    outbox: OutboxFile, store: ConversationStore, retention: ContentRetention, *, dry_run: bool = False
) -> AsyncIterator[Pruned]:
    """Delete the due checkpoints of a store, a namespace at a time.

    :raises StoreUnavailable: the history store does not answer.
    """
    async for due in find_due(store, retention):
        deleted = await prune_by_rule(outbox, store, due, dry_run=dry_run)
        yield Pruned(due.conversation_id, due.namespace, due.rule.name, deleted)


async def prune_by_rule(
    outbox: OutboxFile, store: ConversationStore, due: DueCheckpoints, *, dry_run: bool = False
) -> int:
    """Do as :func:`prune_namespace` by a rule. Checkpoints that cannot be read here stay, which is logged."""
    gateway = StoreGateway(store, breaker=lambda: None, bound_to=outbox.probe.store_id, deadline=_READ_SECONDS)
    home: Any = _OwnLoop(outbox, gateway)  # has all that records ask of a history
    checkpoints = _Checkpoints(AllRecords(home))
    where = (checkpoints, due.conversation_id, due.namespace, _SERDE)
    try:
        return await prune_namespace(
            *where, keep_last=due.rule.checkpoints_last, put_after=due.put_after, dry_run=dry_run
        )
    except (CheckpointIncomplete, NotImplementedError, ValueError) as error:  # the other threads are pruned
        logger.warning("checkpoints in %r stay, they cannot be read: %s", due.conversation_id, type(error).__name__)
        return 0
    finally:
        await gateway.close()
