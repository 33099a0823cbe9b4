"""Check identifiers and other values that callers give, make event ids, and name the point of a fork."""

from __future__ import annotations

import os
import time
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Self
from uuid import UUID, SafeUUID, uuid5

from letopis.store.errors import InvalidInput

MAX_ID_LENGTH: Final = 255
"""Characters in a conversation, owner or message id; the widest key that all three stores index."""
_OWNER_BITS: Final = 255
"""Bits of a number that is an owner: 77 digits, more than any platform gives."""
MESSAGE_NAMESPACE: Final = UUID("b1f5d0f2-5a3f-5a52-9c1c-6a0c6f1d8e77")
"""Namespace of event ids derived from a caller's message ids; part of the data format, never to change."""

_lock = Lock()
_last_stamp = 0


def uuid7() -> UUID:
    """Return a new UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then a counter and random bits."""
    # Ids of one process rise strictly, also when the clock steps back. No order is taken from them: rising keys keep an
    # index compact.
    global _last_stamp  # one counter a process is the point
    # 12 bits of sub-millisecond fraction (RFC 9562, section 6.2, method 3), raised past the last one given out.
    nanoseconds = time.time_ns()
    stamp = (nanoseconds // 1_000_000 << 12) | (nanoseconds % 1_000_000 * 4096 // 1_000_000)
    with _lock:
        stamp = _last_stamp = max(stamp, _last_stamp + 1)
    high = (stamp >> 12 << 16) | 0x7000 | (stamp & 0xFFF)
    low = 0x8000_0000_0000_0000 | (int.from_bytes(os.urandom(8)) >> 2)
    return _uuid(high << 64 | low)


def uuid_of(raw: bytes) -> UUID:
    """Return the UUID of 16 bytes; faster than ``UUID(bytes=raw)``."""
    return _uuid(int.from_bytes(raw))


def _uuid(number: int) -> UUID:
    """Return ``UUID(int=number)`` without the checks of its constructor, which take longer than all else in it."""
    made = UUID.__new__(UUID)
    object.__setattr__(made, "int", number)  # refused by UUID itself, which is immutable
    object.__setattr__(made, "is_safe", SafeUUID.unknown)
    return made


def derived_event_id(conversation_id: str, message_id: str) -> UUID:
    """Return the event id of a message whose id the caller chose: the same two always give the same id."""
    # This makes appending and importing such a message idempotent for ever.
    # Neither id can hold a control character, so the newline keeps ("a", "bc") and ("ab", "c") apart.
    # Joined, because an f-string shows the name of an enum's member.
    return uuid5(MESSAGE_NAMESPACE, "\n".join((conversation_id, message_id)))


def partition_of(conversation_id: str, partitions: int) -> int:
    """Return the log partition of a conversation: a stable hash, the same on every machine and for ever."""
    return 0 if partitions == 1 else zlib.crc32(conversation_id.encode()) % partitions


def check_identifier(value: object, field: str) -> str:
    """Return ``value`` by value if it may be an identifier, byte-exact and case-sensitive in every store."""
    if not isinstance(value, str):
        raise InvalidInput(field, f"must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidInput(field, "must not be empty")
    if len(value) > MAX_ID_LENGTH:
        raise InvalidInput(field, f"has {len(value)} characters, the limit is {MAX_ID_LENGTH}")
    # isprintable() is one C call and true for nearly every real id; only the rest needs a closer look.
    if not value.isprintable():
        for index, character in enumerate(value):
            category = unicodedata.category(character)
            if category == "Cc":
                raise InvalidInput(field, f"has a control character (U+{ord(character):04X}) at {index}: remove it")
            if category == "Cs":
                raise InvalidInput(field, f"has a lone surrogate (U+{ord(character):04X}) at {index}: it is not text")
    return value if type(value) is str else str.__str__(value)


Owner = str | int
"""An owner as callers give it: the id of a user, stored as text."""


def owner_id(owner: Owner | None) -> str | None:
    """Return the stored form of an owner: text, even if a platform uses numbers."""
    if owner is None:
        return None
    if isinstance(owner, int) and not isinstance(owner, bool):
        if owner.bit_length() > _OWNER_BITS:  # Python refuses to write out what is much longer
            raise InvalidInput("owner", f"is a number of {owner.bit_length()} bits, the limit is {_OWNER_BITS}")
        return str(owner)
    return check_identifier(owner, "owner")


def check_whole(value: Any, field: str, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` if it is a whole number in a range, ends included."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < minimum or (maximum is not None and value > maximum):
        raise InvalidInput(
            field, f"must be a whole number from {minimum}" + ("" if maximum is None else f" to {maximum}")
        )
    number: int = value
    return number


def check_number(value: object, field: str, *, whole: bool = False) -> None:
    """Check that a value is a number and not NaN. The caller checks the range."""
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or value != value:  # NaN
        wanted = "a whole number" if whole else "a number"
        raise InvalidInput(field, f"must be {wanted}, not {type(value).__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPoint:
    """The point up to which a fork reads its parent.

    :ivar version: that of the last event that it reads; ``None`` if it was pending when the fork was made.
    :ivar event_id: the id of the same event.
    """

    conversation_id: str
    version: int | None = None
    event_id: UUID | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the fork point that ``conversation.started`` names.

        :raises InvalidInput: it names no conversation, or no place in it.
        """
        field_ = "data.forked_from"
        conversation_id = check_identifier(given.get("conversation_id"), f"{field_}.conversation_id")
        version, event_id = given.get("version"), given.get("event_id")
        if version is not None:
            check_whole(version, f"{field_}.version", 0)
        if event_id is not None:
            try:
                event_id = UUID(event_id)
            except (TypeError, ValueError, AttributeError) as error:
                raise InvalidInput(f"{field_}.event_id", "must be a UUID, as text") from error
        if version is None and event_id is None:
            raise InvalidInput(field_, "must name a version or an event_id")
        return cls(conversation_id=conversation_id, version=version, event_id=event_id)

    def to_data(self) -> dict[str, Any]:
        """Return it as ``conversation.started`` holds it."""
        data: dict[str, Any] = {"conversation_id": self.conversation_id}
        if self.version is not None:
            data["version"] = self.version
        if self.event_id is not None:
            data["event_id"] = str(self.event_id)
        return data
