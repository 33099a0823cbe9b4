"""Define an anchor: digests of a log up to a position, to keep where the database cannot change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.codec import decode
from letopis.store.rules.redaction import internal_metadata, stripped

FORMAT: Final = 1
"""The version of the document and of what is hashed."""
BLOCK_EVENTS: Final = 100
"""Positions of a block: a redaction leaves the content of its block incomparable, so blocks are small."""
MAX_BLOCK_EVENTS: Final = 10_000
MAX_PARTITIONS: Final = 1024
_DIGEST_HEX_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class AnchorBlock:
    """The digests of consecutive events of a partition.

    :ivar identity: SHA-256, in hexadecimal, of what never changes in an event; see :func:`block_of`.
    :ivar content: SHA-256, in hexadecimal, of the events' digests.
    :ivar redacted: events whose content was redacted by then.
    """

    identity: str
    content: str
    redacted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionAnchor:
    """One partition of the log.

    :ivar position: of its last event.
    :ivar blocks: of positions 1 to ``block_events`` and so on; the last one ends at ``position``.
    """

    position: int
    blocks: tuple[AnchorBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What a log was like at a moment.

    :ivar partitions: by their number.
    """

    store_id: UUID
    made_at: datetime
    block_events: int
    partitions: tuple[PartitionAnchor, ...]


def block_of(rows: Iterable[Any]) -> AnchorBlock:
    """Return the digests of rows of the log, in the order of their positions.

    The identity hashes a line per event: a JSON list of position, conversation id, version, event id, origin id,
    sequence, type, schema version, the two times in microseconds, and what an erasure leaves of data and metadata. The
    content hashes the events' digests, which an erasure leaves too.

    :param rows: each with the columns of the log.
    """
    identity, content, redacted = sha256(), sha256(), 0
    for row in rows:
        identity.update(
            orjson.dumps(
                [
                    row.position,
                    row.conversation_id,
                    row.version,
                    row.event_id.hex,
                    row.origin_id.hex,
                    row.sequence,
                    row.type,
                    row.schema_version,
                    row.occurred_at,
                    row.recorded_at,
                    *_lasting(row),
                ],
                default=repr,  # of another type than was written: it differs, whatever it is
                option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS,
            )
        )
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
                "position": one.position,
                "blocks": [[block.identity, block.content, block.redacted] for block in one.blocks],
            }
            for number, one in enumerate(anchor.partitions)
        ],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load(document: bytes) -> Anchor:
    """Return the anchor in a document.

    :raises InvalidInput: it is not an anchor, or one of a newer release.
    """
    try:
        found = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise InvalidInput("anchor", "is not JSON") from None
    if not isinstance(found, dict) or "letopis_anchor" not in found:
        raise InvalidInput("anchor", "is JSON, but not an anchor of `letopis db anchor`")
    if found["letopis_anchor"] != FORMAT:
        raise InvalidInput("anchor", f"has a format other than {FORMAT}: check it with the release that made it")
    try:
        return _anchor_in(found)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InvalidInput("anchor", "is incomplete or was changed by hand") from None


def _anchor_in(found: Mapping[str, Any]) -> Anchor:
    block_events = _whole(found["block_events"], 1, MAX_BLOCK_EVENTS)
    if not 1 <= len(found["partitions"]) <= MAX_PARTITIONS:
        raise ValueError("partitions")
    partitions = []
    for number, one in enumerate(found["partitions"]):
        _whole(one["partition"], number, number)
        position = _whole(one["position"], 0)
        blocks = tuple(
            AnchorBlock(_hex(identity), _hex(content), _whole(redacted, 0))
            for identity, content, redacted in one["blocks"]
        )
        if len(blocks) != -(-position // block_events):
            raise ValueError("blocks")
        partitions.append(PartitionAnchor(position=position, blocks=blocks))
    made_at = datetime.fromisoformat(found["made_at"])
    if made_at.tzinfo is None:
        raise ValueError("made_at")
    return Anchor(
        store_id=UUID(found["store_id"]), made_at=made_at, block_events=block_events, partitions=tuple(partitions)
    )


def _whole(value: Any, least: int, most: int | None = None) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        raise ValueError("number")
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or len(value) != _DIGEST_HEX_LENGTH or bytes.fromhex(value).hex() != value:
        raise ValueError("digest")
    return value
