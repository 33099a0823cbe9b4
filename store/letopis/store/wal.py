"""WAL: whether SQLite would read all of a write-ahead log, or stops in the middle and says nothing; pure.

SQLite reads a -wal file up to the first frame whose checksum is wrong and takes what follows as never written. That is
how it survives a power cut in the middle of a commit, and how one flipped bit drops every commit after it in silence.
A frame behind that place which is right by itself tells one from the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

_HEADER: Final = 32
_FRAME: Final = 24
_MAGIC: Final = 0x377F0682
_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Frame:
    """One page as a commit wrote it.

    :ivar page: its number, from 1.
    :ivar size: pages of the database after the commit that this frame ends; 0 for one that ends none.
    :ivar at: where its page begins in the WAL.
    """

    page: int
    size: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a WAL holds, and what SQLite would make of it.

    :ivar page_size: 0 where the header does not say.
    :ivar read: the frames that SQLite reads, up to the last commit.
    :ivar dropped: the frames of this generation that it does not, as far as they can be made out.
    :ivar problem: what is wrong, for people; empty where nothing is.
    :ivar certain: whether commits are dropped that were written as a whole; else it may be the trace of a power cut or
        a kill in the middle of a commit, of which nobody was told that it had taken place.
    """

    page_size: int
    read: tuple[Frame, ...] = ()
    dropped: tuple[Frame, ...] = ()
    problem: str = ""
    certain: bool = False


def scan(wal: bytes) -> Scan:
    """Look through a WAL that nobody is writing to."""
    if not wal.strip(b"\0"):
        return Scan(page_size=0)
    if len(wal) < _HEADER:
        return Scan(page_size=0, problem=f"the WAL ends within its header, after {len(wal)} bytes")
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = struct.unpack_from(">8I", wal)
    order = ">" if magic & 1 else "<"
    if magic & ~1 != _MAGIC or _checksum(wal[:24], (0, 0), order) != (sum1, sum2):
        return _headless(wal, order, page_size)
    before = (sum1, sum2)
    frames: list[Frame] = []
    for at in _places(len(wal), page_size):
        found = _frame(wal, at, page_size, before, order)
        if found is None or found[1] != (salt1, salt2):
            return _stopped(wal, at, page_size, order, (salt1, salt2), before, frames)
        frames.append(found[0])
        before = found[2]
    rest = wal[_HEADER + len(frames) * (_FRAME + page_size) :]
    # A WAL that was cut back keeps a piece of an older generation at its end.
    older = len(rest) >= 16 and struct.unpack_from(">2I", rest, 8) != (salt1, salt2)
    problem = f"the WAL ends within a frame, after {len(rest)} bytes of it" if rest and not older else ""
    return _ended(page_size, frames, (), problem)


def _headless(wal: bytes, order: str, page_size: int) -> Scan:
    """Of a WAL whose header is damaged SQLite reads nothing."""
    said = "the header of the WAL is damaged: SQLite reads nothing of it"
    for order_, size in ((order, page_size), *((one, 1 << bits) for bits in range(9, 17) for one in "<>")):
        # The salts of its first frame will do, where the second follows from it.
        if size < 512 or size > 65536 or size & (size - 1) or len(wal) < _HEADER + _FRAME + size:
            continue
        salts = struct.unpack_from(">2I", wal, _HEADER + 8)
        seed = struct.unpack_from(">2I", wal, 24)
        frames = _behind(wal, _HEADER, size, order_, salts)
        first = _frame(wal, _HEADER, size, (seed[0], seed[1]), order_)
        if frames or first is not None:
            number, commits = struct.unpack_from(">2I", wal, _HEADER)
            these = (Frame(number, commits, _HEADER + _FRAME), *frames)
            return Scan(page_size=size, dropped=these, problem=said, certain=True)
    return Scan(page_size=0, problem=said, certain=True)


def _stopped(
    wal: bytes,
    at: int,
    page_size: int,
    order: str,
    salts: tuple[int, int],
    before: tuple[int, int],
    frames: list[Frame],
) -> Scan:
    """Tell damage from the rest of an older generation, where SQLite stops reading."""
    number, size, salt1, salt2 = struct.unpack_from(">4I", wal, at)
    this = Frame(number, size, at + _FRAME)
    behind = _behind(wal, at, page_size, order, salts)
    follows = _frame(wal, at, page_size, before, order) is not None
    ours = (salt1, salt2) == salts
    if not (ours or follows or behind):
        return _ended(page_size, frames, (), "")
    certain = any(one.size for one in behind)
    if certain:
        said = f"frame {len(frames) + 1} of the WAL is damaged: SQLite drops what was committed after it"
    else:
        said = (
            f"the last transaction of the WAL, from frame {len(frames) + 1} on, is not whole: either it was cut off"
            " before it was acknowledged, or it was damaged since"
        )
    return replace(_ended(page_size, frames, (this, *behind), said), certain=certain)


def _ended(page_size: int, frames: list[Frame], dropped: tuple[Frame, ...], problem: str) -> Scan:
    """Leave aside what no commit follows."""
    committed = max((place for place, one in enumerate(frames, 1) if one.size), default=0)
    open_ones = tuple(frames[committed:])
    if open_ones and not problem:
        problem = (
            f"the last transaction of the WAL, from frame {committed + 1} on, has no end: either it was cut off"
            " before it was acknowledged, or its end was lost since"
        )
    return Scan(page_size=page_size, read=tuple(frames[:committed]), dropped=(*open_ones, *dropped), problem=problem)


def _behind(wal: bytes, at: int, page_size: int, order: str, salts: tuple[int, int]) -> tuple[Frame, ...]:
    """Return the frames after the one at ``at`` that are of this generation.

    Each is right by itself, going by the checksum that the frame before it says it has; or follows one that is.
    """
    found: list[Frame] = []
    places = [place for place in _places(len(wal), page_size) if place > at]
    right = 0
    for place in places:
        number, size, salt1, salt2 = struct.unpack_from(">4I", wal, place)
        seed = struct.unpack_from(">2I", wal, place - page_size - 8)
        if _frame(wal, place, page_size, (seed[0], seed[1]), order) is not None and (salt1, salt2) == salts:
            found.append(Frame(number, size, place + _FRAME))
            right = len(found)
        elif (salt1, salt2) == salts:
            found.append(Frame(number, size, place + _FRAME))  # the damage may reach into it: kept if one follows
        else:
            break
    return tuple(found[:right])


def _frame(
    wal: bytes, at: int, page_size: int, before: tuple[int, int], order: str
) -> tuple[Frame, tuple[int, int], tuple[int, int]] | None:
    """Return a frame, its salts and its checksum, if that follows from the one before."""
    number, size, salt1, salt2, sum1, sum2 = struct.unpack_from(">6I", wal, at)
    page = at + _FRAME
    sums = _checksum(wal[page : page + page_size], _checksum(wal[at : at + 8], before, order), order)
    if sums != (sum1, sum2) or not number:
        return None
    return Frame(number, size, page), (salt1, salt2), sums


def _places(length: int, page_size: int) -> Iterator[int]:
    """Yield where whole frames begin."""
    if 512 <= page_size <= 65536:
        yield from range(_HEADER, length - _FRAME - page_size + 1, _FRAME + page_size)


def _checksum(data: bytes, seed: tuple[int, int], order: str) -> tuple[int, int]:
    one, two = seed
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & _MASK
        two = (two + odd + one) & _MASK
    return one, two
