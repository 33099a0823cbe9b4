"""Damage one bit, one page or the end of a file, drawn by chance."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

PAGE: Final = 4096


def flipped(data: bytes, chance: Random) -> bytes:
    """Turn over one bit."""
    at = chance.randrange(len(data) * 8)
    damaged = bytearray(data)
    damaged[at // 8] ^= 1 << (at % 8)
    return bytes(damaged)


def cut(data: bytes, chance: Random) -> bytes:
    """Cut the end off, half of the times at the end of a page."""
    length = chance.randrange(1, len(data))
    return data[: length - length % PAGE if chance.random() < 0.5 and length > PAGE else length]


def zeroed(data: bytes, chance: Random) -> bytes:
    at = chance.randrange(len(data) // PAGE) * PAGE
    return data[:at] + bytes(PAGE) + data[at + PAGE :]


def swapped(data: bytes, chance: Random) -> bytes:
    one, two = (place * PAGE for place in sorted(chance.sample(range(len(data) // PAGE), 2)))
    return data[:one] + data[two : two + PAGE] + data[one + PAGE : two] + data[one : one + PAGE] + data[two + PAGE :]


DAMAGES: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
    "end cut off": cut,
    "page zeroed": zeroed,
    "two pages swapped": swapped,
}
