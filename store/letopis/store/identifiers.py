"""Identifiers: what may be one, and how event ids are made."""

from __future__ import annotations

import os
import time
import unicodedata
import zlib
from threading import Lock
from typing import Final
from uuid import UUID, SafeUUID, uuid5

from letopis.store.errors import InvalidInput

MAX_ID_LENGTH: Final = 255
"""Characters in a conversation, owner or message id; the widest key that all three stores index."""

MESSAGE_NAMESPACE: Final = UUID("b1f5d0f2-5a3f-5a52-9c1c-6a0c6f1d8e77")
"""Namespace of event ids derived from a message id of the caller's; part of the data format, never to change."""

_SAFE: Final = SafeUUID.unknown  # looked up in the enumeration it costs as much as all the rest

_lock = Lock()
_last = 0


def uuid7() -> UUID:
    """Return a new UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then a counter and chance.

    Ids of one process rise strictly, also within a millisecond and when the clock steps back; between processes they
    are only unique. Nothing in Letopis takes an order from them: they are keys that keep an index compact.
    """
    global _last  # one counter a process is the point
    # 12 bits of sub-millisecond fraction (RFC 9562, section 6.2, method 3), raised past the last one given out.
    nanoseconds = time.time_ns()
    stamp = (nanoseconds // 1_000_000 << 12) | (nanoseconds % 1_000_000 * 4096 // 1_000_000)
    with _lock:
        stamp = _last = max(stamp, _last + 1)
    high = (stamp >> 12 << 16) | 0x7000 | (stamp & 0xFFF)
    low = 0x8000_0000_0000_0000 | (int.from_bytes(os.urandom(8)) >> 2)
    return _uuid(high << 64 | low)


def uuid_of(raw: bytes) -> UUID:
    """Return the UUID of 16 bytes."""
    return _uuid(int.from_bytes(raw))


def _uuid(number: int) -> UUID:
    """Return the UUID of a number of 128 bits.

    What the constructor does after it has looked at six ways to make one, which takes three times as long.
    """
    made = object.__new__(UUID)
    object.__setattr__(made, "int", number)
    object.__setattr__(made, "is_safe", _SAFE)
    return made


def derived_event_id(conversation_id: str, message_id: str) -> UUID:
    """Return the event id of a message whose id the caller chose: the same two always give the same id.

    That is what makes appending such a message, and importing it again, idempotent for ever.
    """
    # Neither id can hold a control character, so the newline keeps ("a", "bc") and ("ab", "c") apart.
    return uuid5(MESSAGE_NAMESPACE, f"{conversation_id}\n{message_id}")


def partition_of(conversation_id: str, partitions: int) -> int:
    """Return the log partition of a conversation: a stable hash, the same on every machine and for ever."""
    return 0 if partitions == 1 else zlib.crc32(conversation_id.encode()) % partitions


def check_identifier(value: object, field: str) -> str:
    """Return ``value`` if it may be an identifier, byte-exact and case-sensitive in every store.

    :raises InvalidInput: not a string, empty, longer than 255 characters, or with a control character or a lone
        surrogate in it.
    """
    if not isinstance(value, str):
        raise InvalidInput(field, f"must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidInput(field, "must not be empty")
    if len(value) > MAX_ID_LENGTH:
        raise InvalidInput(field, f"has {len(value)} characters, the limit is {MAX_ID_LENGTH}")
    # isprintable() is one C call and true for nearly every real id; only the rest is looked at in detail.
    if not value.isprintable():
        for index, character in enumerate(value):
            category = unicodedata.category(character)
            if category == "Cc":
                raise InvalidInput(field, f"has a control character (U+{ord(character):04X}) at {index}: remove it")
            if category == "Cs":
                raise InvalidInput(field, f"has a lone surrogate (U+{ord(character):04X}) at {index}: it is not text")
    return value
