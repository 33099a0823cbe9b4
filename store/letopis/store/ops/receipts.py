"""Write receipts of erasures, and compare a history store with one."""

# A receipt holds digests of blocks of the log. They are over salted digests, which an erasure leaves, and over what no
# erasure changes: so they are the same before and after, and without the salts nobody can try texts.

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.dialects import in_batches, reading, rows_by_key
from letopis.store.database.schema import (
    conversations,
    erasures,
    events,
    messages,
    of_conversation,
    origins,
    records,
    same_conversation,
)
from letopis.store.database.store_identity import read_heads, read_identity
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import decode
from letopis.store.model.event_types import ConversationDeleted, MessageAppended
from letopis.store.model.events import from_microseconds, to_microseconds
from letopis.store.model.identifiers import partition_of
from letopis.store.model.records import Scope
from letopis.store.ops.anchors import BLOCK_EVENTS, block_of, read_document
from letopis.store.ops.verify import MAX_NAMED_PROBLEMS
from letopis.store.rules.redaction import MESSAGE_CONTENT_TYPES, is_stripped

FORMAT: Final = 1
"""The version of the document and of what is hashed."""
_PAGE_EVENTS: Final = 500
_LATER_TYPES: Final = tuple(name for name in MESSAGE_CONTENT_TYPES if name != MessageAppended.type)
_KEYS: Final = frozenset(
    (
        *("letopis_receipt", "store_id", "erasure", "made_at", "conversations", "messages", "records", "events"),
        *("retained", "block_events", "before", "after", "outboxes", "digest"),
    )
)
Leaf = list[Any]
"""A block of the log: its partition and number, and its digests of what the events are and of their content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureScope:
    """What an erasure is about: what the log held when it was recorded. The same whenever it is read.

    :ivar conversations: those that are erased whole.
    :ivar messages: by conversation, ids of a person's messages in those of others.
    :ivar records: the versions of the records of the conversations and the owner, as their revisions.
    :ivar heads: the last position of each partition.
    :ivar leaves: the blocks of the log that hold their events.
    """

    conversations: Sequence[str]
    messages: Mapping[str, Sequence[str]]
    heads: Sequence[int]
    records: Sequence[str] = ()
    events: int = 0
    leaves: Sequence[Leaf] = ()

    @classmethod
    async def read(cls, connection: AsyncConnection, number: int) -> ErasureScope:
        """Return the scope of an erasure that is recorded, and of which nothing need be erased yet."""
        recorded = sa.select(erasures.c.kind, erasures.c.subject, erasures.c.positions)
        kind, subject, positions = (await connection.execute(recorded.where(erasures.c.number == number))).one()
        heads: list[int] = orjson.loads(positions)
        column = conversations.c.conversation_id if kind == "conversation" else conversations.c.owner_id
        whose = column == subject
        names = sa.select(conversations.c.conversation_id).where(whose).order_by(conversations.c.conversation_id)
        owned = [name for name in (await connection.execute(names)).scalars() if await _began(connection, name, heads)]
        written: dict[str, list[str]] = {}
        if kind == "person":
            others = sa.or_(conversations.c.owner_id.is_(None), sa.not_(whose))
            same_event = sa.and_(same_conversation(messages, events), messages.c.version == events.c.version)
            authored = (
                sa.select(messages.c.conversation_id, messages.c.message_id, events.c.partition, events.c.position)
                .join(conversations, same_conversation(messages, conversations))
                .join(events, same_event)
            )
            rows = await connection.execute(authored.where(messages.c.author == subject, others))
            for name, message_id in sorted({(row[0], row[1]) for row in rows if row.position <= heads[row.partition]}):
                written.setdefault(name, []).append(message_id)
        scope = cls(conversations=owned, messages=written, heads=heads)
        places = await _places(connection, scope)
        leaves = [await _leaf(connection, *block, heads) for block in _blocks_of(places)]
        kept = await _revisions(connection, kind, subject, scope)
        return replace(scope, records=kept, events=len(places), leaves=leaves)


async def make_receipt(connection: AsyncConnection, number: int, scope: ErasureScope, *, now: datetime) -> bytes:
    """Return the document of the erasure of a number, which is carried out in the history store.

    :raises InvalidInput: the store still holds content that is not kept for forks.
    """
    check = ReceiptCheck({})
    retained = await check.count_retained(connection, scope)
    if check.with_content:
        raise InvalidInput("receipt", f"cannot be made: {check.with_content[0]}")
    erasure = await _recorded(connection, erasures.c.number == number)
    if erasure is None:
        raise InvalidInput("receipt", f"cannot be made: the store does not know erasure {number}")
    if left := await _records_left(connection, erasure, scope, scope.records):
        raise InvalidInput("receipt", f"cannot be made: the store holds {left} of the records")
    document = {
        "letopis_receipt": FORMAT,
        "store_id": str((await read_identity(connection)).store_id),
        "erasure": erasure,
        "made_at": _text(now),
        "conversations": scope.conversations,
        "messages": scope.messages,
        "records": scope.records,
        "events": scope.events,
        "retained": retained,
        "block_events": BLOCK_EVENTS,
        "before": {"heads": scope.heads, "blocks": scope.leaves},
        "after": {
            "heads": [*(await read_heads(connection)).values()],
            "blocks": [await _leaf(connection, leaf[0], leaf[1], scope.heads) for leaf in scope.leaves],
        },
        "outboxes": [
            {
                "name": row.name,
                "origin_id": str(row.origin_id),
                "carried_out": row.erasures,
                "acknowledged": row.erasures >= number,
            }
            for row in await connection.execute(sa.select(origins).order_by(origins.c.name, origins.c.origin_id))
        ],
    }
    document["digest"] = _digest(document)
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load(content: bytes) -> ReceiptCheck:
    """Return the check of a receipt.

    :raises InvalidInput: it is none, or it was altered.
    """
    wanted = {"letopis_receipt": FORMAT, "block_events": BLOCK_EVENTS}
    document = read_document(content, "receipt", "a receipt of `letopis history erase`", wanted)
    if document.keys() != _KEYS or document["digest"] != _digest(document):
        raise InvalidInput("receipt", "was altered: its digest is not that of the rest")
    return ReceiptCheck(document)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptOutbox:
    """An outbox of a receipt, and whether it had acknowledged the erasure by then, has since, or has not."""

    name: str
    origin_id: UUID
    state: str


UNPROVEN: Final = (
    "when the receipt was made, and where the log ended then",
    "how many events were kept for forks",
    "which records there were",
    "the names of the outboxes",
)
"""What a receipt says, and the store cannot confirm: its digest is made by who wrote it."""


class ReceiptCheck:
    """The comparison of a history store with a receipt."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.with_content: list[str] = []
        """Events that hold content, and should not."""
        self.outboxes: list[ReceiptOutbox] = []
        """Those of the receipt."""

    async def problems(self, engine: AsyncEngine) -> AsyncIterator[str]:
        """Yield in what a store differs from the receipt. Content is never quoted."""
        async with reading(engine) as connection:
            try:
                async for problem in self._problems(connection):
                    yield problem
            except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                yield "the receipt is incomplete or was altered"

    async def _problems(self, connection: AsyncConnection) -> AsyncIterator[str]:
        document, store_id = self.document, str((await read_identity(connection)).store_id)
        if store_id != document["store_id"]:
            yield f"the receipt is of history store {document['store_id']}, and this is {store_id}"
            return
        told = document["erasure"]
        known = await _recorded(connection, erasures.c.erasure_id == UUID(told["erasure_id"]))
        if known is None:
            yield f"the store does not know erasure {told['number']}: it is older than the receipt, as a backup is"
            return
        if known != told:
            names = ", ".join(name for name in known if known[name] != told.get(name)) or "more than it has"
            yield f"the receipt tells other things of erasure {told['number']} than the store: {names}"
        before, after, heads = document["before"], document["after"], [*(await read_heads(connection)).values()]
        if len(heads) != len(before["heads"]) or len(heads) != len(after["heads"]):
            yield "the log has other partitions than the receipt"
            return
        for partition, (head, first, last) in enumerate(zip(heads, before["heads"], after["heads"], strict=True)):
            if not first <= last <= head:
                yield f"partition {partition} of the log ends at {head}, and the receipt knows it up to {last}"
        scope = await ErasureScope.read(connection, known["number"])
        for name in ("conversations", "messages", "events"):
            if document[name] != getattr(scope, name):
                yield f"the receipt tells other {name} of erasure {told['number']} than the store"
        if before["heads"] != scope.heads:
            yield f"the receipt begins at other positions than erasure {told['number']}"
        if [leaf[:2] for leaf in before["blocks"]] != [leaf[:2] for leaf in scope.leaves]:
            yield "the receipt names other events than those of its conversations and messages"
        retained = await self.count_retained(connection, scope)
        if retained > document["retained"]:
            yield f"{retained} events are kept for forks, and the receipt counts {document['retained']}"
        for problem in self.with_content[:MAX_NAMED_PROBLEMS]:
            yield problem
        if (more := len(self.with_content) - MAX_NAMED_PROBLEMS) > 0:
            yield f"{more} more events hold content"
        if left := await _records_left(connection, known, scope, document["records"]):
            yield f"the store holds {left} records that were put before the erasure"
        for leaf, later in zip(before["blocks"], after["blocks"], strict=True):
            if not leaf == later == await _leaf(connection, leaf[0], leaf[1], scope.heads):
                first = leaf[1] * BLOCK_EVENTS + 1
                yield f"partition {leaf[0]} of the log: events from {first} on are not those of the receipt"
        async for problem in self._outbox_problems(connection, known):
            yield problem

    async def _outbox_problems(self, connection: AsyncConnection, erasure: Mapping[str, Any]) -> AsyncIterator[str]:
        number, known = erasure["number"], {row.origin_id: row for row in await connection.execute(sa.select(origins))}
        for outbox in self.document["outboxes"]:
            origin_id = UUID(outbox["origin_id"])
            row, acknowledged = known.pop(origin_id, None), outbox["carried_out"] >= number
            if row is None or row.erasures < outbox["carried_out"] or acknowledged is not outbox["acknowledged"]:
                yield f"outbox {outbox['name']!r} is not known to have carried out erasure {outbox['carried_out']}"
                continue
            since = "has acknowledged since" if row.erasures >= number else "has not acknowledged yet"
            self.outboxes.append(
                ReceiptOutbox(
                    name=outbox["name"], origin_id=origin_id, state="had acknowledged" if acknowledged else since
                )
            )
        recorded_at = to_microseconds(datetime.fromisoformat(erasure["recorded_at"]))
        for row in known.values():
            if row.first_seen_at < recorded_at:
                yield f"the receipt lacks outbox {row.name!r} ({row.origin_id.hex[:8]})"

    async def count_retained(self, connection: AsyncConnection, scope: ErasureScope) -> int:
        """Note the events that hold content, but for those kept for forks, and return how many these are."""
        statement = sa.select(conversations.c.conversation_id, conversations.c.retained)
        retaining = await connection.execute(statement.where(conversations.c.retained > 0))
        kept = {row.conversation_id: row.retained for row in retaining}
        retained = 0
        async for row in _events(connection, scope):
            if row.type == ConversationDeleted.type or _is_erased(row):
                continue
            if row.version <= kept.get(row.conversation_id, 0):
                retained += 1
            else:
                where = f"event {row.position} of partition {row.partition}"
                self.with_content.append(f"{where} holds content, in conversation {row.conversation_id!r}")
        return retained


def _is_erased(row: sa.Row[Any]) -> bool:
    try:
        return row.salt is None and is_stripped(row.type, row.data, row.metadata)
    except ValueError:
        return False


async def _events(connection: AsyncConnection, scope: ErasureScope) -> AsyncIterator[sa.Row[Any]]:
    """Yield the events of conversations, and of messages in others, up to the heads of the log."""
    heads = scope.heads
    for name in scope.conversations:
        async for row in _pages(connection, name, heads):
            yield row
    for name, ids in scope.messages.items():
        key = {"partition": partition_of(name, len(heads)), "conversation": name}
        versions: list[int] = []
        for part in in_batches(sorted(set(ids))):
            place = sa.select(messages.c.version).where(*of_conversation(messages), messages.c.message_id.in_(part))
            versions += (await connection.execute(place, key)).scalars()
        for part in in_batches(sorted(versions)):
            async for row in _pages(connection, name, heads, events.c.version.in_(part)):
                yield row
        async for row in _pages(connection, name, heads, events.c.type.in_(_LATER_TYPES)):
            if decode(row.data).get("message_id") in ids:
                yield row


async def _pages(
    connection: AsyncConnection, name: str, heads: Sequence[int], *where: sa.ColumnElement[bool]
) -> AsyncIterator[sa.Row[Any]]:
    partition = partition_of(name, len(heads))
    own = (events.c.partition == partition, events.c.conversation_id == name)
    async for rows in rows_by_key(
        connection, sa.select(events).where(*own, *where), events.c.version, size=_PAGE_EVENTS
    ):
        # A long transaction would keep the database from clearing up behind its writers.
        await connection.rollback()
        for row in rows:
            if row.position <= heads[partition]:
                yield row


async def _began(connection: AsyncConnection, name: str, heads: Sequence[int]) -> bool:
    """Return True if a conversation has an event up to some heads of the log."""
    partition = partition_of(name, len(heads))
    own = (events.c.partition == partition, events.c.conversation_id == name, events.c.position <= heads[partition])
    return (await connection.execute(sa.select(sa.literal(1)).where(*own).limit(1))).first() is not None


async def _revisions(
    connection: AsyncConnection, kind: str, subject: str, scope: ErasureScope, *where: sa.ColumnElement[bool]
) -> list[str]:
    """Return the revisions of the records of the conversations, and of the owner that an erasure is about."""
    holders = [Scope.conversation(name) for name in scope.conversations]
    if kind != "conversation":
        holders.append(Scope.owner(subject))
    revisions: list[str] = []
    for holder in holders:
        place = (records.c.partition == holder.partition(len(scope.heads)), records.c.scope == holder.name, *where)
        revisions += map(str, (await connection.execute(sa.select(records.c.revision).where(*place))).scalars())
    return sorted(revisions)


async def _records_left(
    connection: AsyncConnection, erasure: Mapping[str, Any], scope: ErasureScope, named: Sequence[str]
) -> int:
    # What was put since, under the same keys too, has other revisions, and is newer.
    before = records.c.updated_at <= to_microseconds(datetime.fromisoformat(erasure["recorded_at"]))
    mine = (connection, erasure["kind"], erasure["subject"], scope)
    return len(set(await _revisions(*mine, before)) | set(await _revisions(*mine)).intersection(named))


async def _places(connection: AsyncConnection, scope: ErasureScope) -> list[tuple[int, int]]:
    return [(row.partition, row.position) async for row in _events(connection, scope)]


def _blocks_of(places: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted({(partition, (position - 1) // BLOCK_EVENTS) for partition, position in places})


async def _leaf(connection: AsyncConnection, partition: int, number: int, heads: Sequence[int]) -> Leaf:
    first, last = number * BLOCK_EVENTS + 1, min((number + 1) * BLOCK_EVENTS, heads[partition])
    span = (events.c.partition == partition, events.c.position >= first, events.c.position <= last)
    block = block_of(await connection.execute(sa.select(events).where(*span).order_by(events.c.position)))
    return [partition, number, block.identity, block.content]


async def _recorded(connection: AsyncConnection, which: sa.ColumnElement[bool]) -> dict[str, Any] | None:
    """Return what the store knows of an erasure, without the outbox through which it was asked for."""
    row = (await connection.execute(sa.select(erasures).where(which))).mappings().first()
    if row is None:
        return None
    names = ("number", "kind", "subject", "how", "reason", "requested_by")
    told = {name: row[name] for name in names} | {"erasure_id": str(row["erasure_id"])}
    return told | {"recorded_at": _text(from_microseconds(row["recorded_at"]))}


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _digest(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "digest"}
    return sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()
