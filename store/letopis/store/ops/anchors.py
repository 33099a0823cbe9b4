"""Make anchors of a log, digests to keep where the database cannot change them, and compare a log with one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from letopis.store.database.dialects import reading
from letopis.store.database.schema import events
from letopis.store.database.store_identity import read_heads, read_identity
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import decode
from letopis.store.ops.verify import MAX_NAMED_PROBLEMS, Checked, unheard
from letopis.store.rules.redaction import internal_metadata, stripped

PAGE_EVENTS: Final = 1_000
"""Events of a page, rounded to whole blocks."""
BLOCK_EVENTS: Final = 100
"""Positions of a block: a redaction leaves the content of its block incomparable, so blocks are small."""


@dataclass(slots=True, kw_only=True)
class PartitionComparison:
    """How one partition of a log compares with an anchor."""

    partition: int
    position: int
    head: int | None
    redacted: int = 0
    unchanged: bool = True


async def make_anchor(
    engine: AsyncEngine, *, now: datetime, block_events: int = BLOCK_EVENTS, checked: Checked = unheard
) -> Anchor:
    """Return the anchor of a store at this release's revision, up to the heads that its log has when this begins."""
    async with reading(engine) as connection:
        store_id, heads = (await read_identity(connection)).store_id, await read_heads(connection)
        progress = _Progress(checked, sum(heads.values()))
        partitions = []
        for partition, head in heads.items():
            blocks = [block async for block in _blocks(connection, partition, head, block_events, report=progress.add)]
            partitions.append(PartitionAnchor(position=head, blocks=tuple(blocks)))
    return Anchor(store_id=store_id, made_at=now, block_events=block_events, partitions=tuple(partitions))


class AnchorCheck:
    """The comparison of a log with an anchor; it finds nothing in events that are newer than the anchor."""

    # Contents are compared by their digests; that they match these, find_problems() checks.
    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor
        self.partitions: list[PartitionComparison] = []
        """The partitions that were compared."""

    async def problems(self, engine: AsyncEngine, *, checked: Checked = unheard) -> AsyncIterator[str]:
        """Yield in what a store's log differs from the anchor. Content is never quoted."""
        anchor = self.anchor
        async with reading(engine) as connection:
            store_id, heads = (await read_identity(connection)).store_id, await read_heads(connection)
            if store_id != anchor.store_id:
                yield f"the anchor is of history store {anchor.store_id}, and this is {store_id}"
                return
            if unknown := sorted(heads.keys() - set(range(len(anchor.partitions)))):
                yield f"the anchor does not have partition {unknown[0]} of the log"
            progress = _Progress(checked, sum(anchored.position for anchored in anchor.partitions))
            for partition, anchored in enumerate(anchor.partitions):
                head = heads.get(partition)
                compared = PartitionComparison(partition=partition, position=anchored.position, head=head)
                self.partitions.append(compared)
                async for problem in self._problems_of(connection, anchored, compared, report=progress.add):
                    compared.unchanged = False
                    yield problem

    async def _problems_of(
        self,
        connection: AsyncConnection,
        anchored: PartitionAnchor,
        compared: PartitionComparison,
        *,
        report: Callable[[int], None],
    ) -> AsyncIterator[str]:
        name, size, upto = f"partition {compared.partition} of the log", self.anchor.block_events, anchored.position
        if compared.head is None:
            yield f"{name} is gone"
            return
        if compared.head < upto:
            yield f"{name} ends at {compared.head}, and the anchor knows it up to {upto}"
            upto = compared.head // size * size  # the block that was cut off cannot be compared
        identities, contents = list[int](), list[int]()
        number = 0
        async for block in _blocks(connection, compared.partition, upto, size, report=report):
            wanted = anchored.blocks[number]
            if block.identity != wanted.identity:
                identities.append(number)
            elif block.content != wanted.content:
                contents.append(number)
            compared.redacted += max(0, block.redacted - wanted.redacted)
            number += 1
        for numbers, what in ((identities, "are not those of the anchor"), (contents, "have other content")):
            ranges = [f"{first * size + 1} to {min((last + 1) * size, upto)}" for first, last in _runs(numbers)]
            for span in ranges[:MAX_NAMED_PROBLEMS]:
                yield f"{name}: events {span} {what}"
            if (more := len(ranges) - MAX_NAMED_PROBLEMS) > 0:
                yield f"{name}: events in {more} more places {what}"


class _Progress:
    """Adds up what was read, for a report of all partitions."""

    def __init__(self, checked: Checked, total: int) -> None:
        self._checked, self._done, self._total = checked, 0, total

    def add(self, count: int) -> None:
        self._done += count
        self._checked(self._done, self._total)


async def _blocks(
    connection: AsyncConnection, partition: int, upto: int, size: int, *, report: Callable[[int], None]
) -> AsyncIterator[AnchorBlock]:
    """Yield the blocks of a partition up to a position, also those without an event."""
    page = max(1, PAGE_EVENTS // size) * size
    for after in range(0, upto, page):
        last = min(after + page, upto)
        statement = sa.select(events).where(
            events.c.partition == partition, events.c.position > after, events.c.position <= last
        )
        rows = (await connection.execute(statement.order_by(events.c.position))).all()
        # A long transaction would keep the database from clearing up behind its writers.
        await connection.rollback()
        by_block = {number: list(group) for number, group in groupby(rows, lambda row: (row.position - 1) // size)}
        for number in range(after // size, -(-last // size)):
            yield block_of(by_block.get(number, ()))
        report(last - after)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of consecutive numbers."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]


FORMAT: Final = 1
"""The version of the document and of what is hashed."""
MAX_BLOCK_EVENTS: Final = 10_000
MAX_PARTITIONS: Final = 1024
_DIGEST_HEX_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class AnchorBlock:
    """The digests of consecutive events of a partition."""

    identity: str
    content: str
    redacted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionAnchor:
    position: int
    blocks: tuple[AnchorBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What a log was like at a moment."""

    store_id: UUID
    made_at: datetime
    block_events: int
    partitions: tuple[PartitionAnchor, ...]


def block_of(rows: Iterable[Any]) -> AnchorBlock:
    """Return the digests of rows of the log, in the order of their positions."""
    # The identity hashes a line per event: a JSON list of what no erasure changes, in this order. The content hashes
    # the events' digests, which an erasure leaves too.
    identity, content, redacted = sha256(), sha256(), 0
    for row in rows:
        at = (row.position, row.conversation_id, row.version, row.event_id.hex, row.origin_id.hex, row.sequence)
        line = [*at, row.type, row.schema_version, row.occurred_at, row.recorded_at, *_lasting(row)]
        # By default its repr: what is of another type than was written differs, whatever it is.
        options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
        identity.update(orjson.dumps(line, default=repr, option=options))
        redacted += row.salt is None
        content.update(bytes(row.digest))
    return AnchorBlock(identity.hexdigest(), content.hexdigest(), redacted)


def _lasting(row: Any) -> tuple[Any, str | None]:
    try:
        return stripped(row.type, decode(row.data)), internal_metadata(row.metadata)
    except ValueError:
        return row.data, row.metadata  # damaged, so that it differs


def dump(anchor: Anchor) -> bytes:
    """Return the document of an anchor: JSON, the same bytes for the same anchor."""
    document = {
        "letopis_anchor": FORMAT,
        "store_id": str(anchor.store_id),
        "made_at": anchor.made_at.astimezone(UTC).isoformat(timespec="seconds"),
        "block_events": anchor.block_events,
        "partitions": [
            {
                "partition": number,
                "position": partition.position,
                "blocks": [[block.identity, block.content, block.redacted] for block in partition.blocks],
            }
            for number, partition in enumerate(anchor.partitions)
        ],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def read_document(content: bytes, kind: str, whose: str, wanted: Mapping[str, int]) -> dict[str, Any]:
    """Return an anchor or a receipt as JSON that has the ``wanted`` values, of which the first is its format."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise InvalidInput(kind, "is not JSON") from None
    name, known = next(iter(wanted.items()))
    if not isinstance(document, dict) or name not in document:
        raise InvalidInput(kind, f"is JSON, but not {whose}")
    if any(document.get(key) != value for key, value in wanted.items()):
        raise InvalidInput(kind, f"has a format other than {known}: check it with the release that made it")
    return document


def load(document: bytes) -> Anchor:
    content = read_document(document, "anchor", "an anchor of `letopis db anchor`", {"letopis_anchor": FORMAT})
    try:
        return _anchor_in(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InvalidInput("anchor", "is incomplete or was changed by hand") from None


def _anchor_in(document: Mapping[str, Any]) -> Anchor:
    block_events = _whole(document["block_events"], 1, MAX_BLOCK_EVENTS)
    if not 1 <= len(document["partitions"]) <= MAX_PARTITIONS:
        raise ValueError("partitions")
    partitions = []
    for number, partition in enumerate(document["partitions"]):
        _whole(partition["partition"], number, number)
        position = _whole(partition["position"], 0)
        blocks = tuple(
            AnchorBlock(_hex(identity), _hex(content), _whole(redacted, 0))
            for identity, content, redacted in partition["blocks"]
        )
        if len(blocks) != -(-position // block_events):
            raise ValueError("blocks")
        partitions.append(PartitionAnchor(position=position, blocks=blocks))
    made_at = datetime.fromisoformat(document["made_at"])
    if made_at.tzinfo is None:
        raise ValueError("made_at")
    return Anchor(
        store_id=UUID(document["store_id"]), made_at=made_at, block_events=block_events, partitions=tuple(partitions)
    )


def _whole(value: Any, least: int, most: int | None = None) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        raise ValueError("number")
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or len(value) != _DIGEST_HEX_LENGTH or bytes.fromhex(value).hex() != value:
        raise ValueError("digest")
    return value
