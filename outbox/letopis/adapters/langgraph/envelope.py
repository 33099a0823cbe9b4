"""Pack a JSON header and several bodies of bytes into the value of one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from letopis.store.errors import InvalidInput

_MAGIC: Final = b"LG1"
_LENGTH_BYTES: Final = 4
_START: Final = len(_MAGIC) + _LENGTH_BYTES


def pack(header: Mapping[str, Any], bodies: Sequence[bytes] = ()) -> bytes:
    """Return one value; the header need not name the sizes of the bodies.

    :raises InvalidInput: the header has invalid text, or values that are not JSON.
    """
    try:
        head = orjson.dumps({**header, "sizes": [len(body) for body in bodies]})
    except TypeError as error:
        raise InvalidInput("checkpoint", f"has a name that cannot be stored: {error}") from None
    return b"".join((_MAGIC, len(head).to_bytes(_LENGTH_BYTES, "big"), head, *bodies))


def unpack(value: object) -> tuple[dict[str, Any], list[bytes]]:
    """Return the header and the bodies of :func:`pack`.

    :raises ValueError: the value was not made by :func:`pack`.
    """
    if not isinstance(value, bytes) or not value.startswith(_MAGIC):
        raise ValueError("not written by this adapter")
    at = _START + int.from_bytes(value[len(_MAGIC) : _START], "big")
    header: dict[str, Any] = orjson.loads(value[_START:at])
    bodies = []
    for size in header.pop("sizes"):
        bodies.append(value[at : at + size])
        at += size
    if at != len(value):
        raise ValueError(f"is {len(value)} bytes long, its header says {at}")
    return header, bodies
