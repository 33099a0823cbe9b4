"""Tell whether SQLite would read all of a write-ahead log, or silently stop in the middle; pure."""

# SQLite reads a -wal file up to the first frame with a wrong checksum and ignores the rest. This is how it survives a
# power cut in the middle of a commit, and how one flipped bit silently drops every later commit. A valid frame behind
# that place tells the two apart.

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
class WalFrame:
    """One page that a commit wrote."""

    page: int
    size: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WalScan:
    """The frames of a WAL, and which of them SQLite would read."""

    page_size: int  # 0 if the header is damaged
    read: tuple[WalFrame, ...] = ()  # what SQLite reads, up to the last commit
    dropped: tuple[WalFrame, ...] = ()  # of this generation and not read, as far as they can be found
    problem: str = ""  # what is wrong, or empty
    certain: bool = False  # complete commits are dropped; otherwise one may have been cut off, unacknowledged


def scan_wal(wal: bytes) -> WalScan:
    """Scan a WAL that no process is writing to."""
    if not wal.strip(b"\0"):
        return WalScan(page_size=0)
    if len(wal) < _HEADER:
        return WalScan(page_size=0, problem=f"the WAL ends within its header, after {len(wal)} bytes")
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = struct.unpack_from(">8I", wal)
    order = ">" if magic & 1 else "<"
    if magic & ~1 != _MAGIC or _checksum(wal[:24], (0, 0), order) != (sum1, sum2):
        return _headless(wal, order, page_size)
    before = (sum1, sum2)
    frames: list[WalFrame] = []
    for at in _places(len(wal), page_size):
        frame = _frame(wal, at, page_size, before, order)
        if frame is None or frame[1] != (salt1, salt2):
            return _stopped(wal, at, page_size, order, (salt1, salt2), before, frames)
        frames.append(frame[0])
        before = frame[2]
    rest = wal[_HEADER + len(frames) * (_FRAME + page_size) :]
    # A WAL that was truncated keeps a piece of an older generation at its end.
    older = len(rest) >= 16 and struct.unpack_from(">2I", rest, 8) != (salt1, salt2)
    problem = f"the WAL ends within a frame, after {len(rest)} bytes of it" if rest and not older else ""
    return _ended(page_size, frames, (), problem)


def _headless(wal: bytes, order: str, page_size: int) -> WalScan:
    """Scan a WAL whose header is damaged: SQLite reads nothing of it."""
    problem = "the header of the WAL is damaged: SQLite reads nothing of it"
    for order_, size in (
        (order, page_size),
        *((order_sign, 1 << bits) for bits in range(9, 17) for order_sign in "<>"),
    ):
        # The salts of the first frame serve if the second frame follows from it.
        if size < 512 or size > 65536 or size & (size - 1) or len(wal) < _HEADER + _FRAME + size:
            continue
        salts = struct.unpack_from(">2I", wal, _HEADER + 8)
        seed = struct.unpack_from(">2I", wal, 24)
        frames = _behind(wal, _HEADER, size, order_, salts)
        first = _frame(wal, _HEADER, size, (seed[0], seed[1]), order_)
        if frames or first is not None:
            number, commits = struct.unpack_from(">2I", wal, _HEADER)
            dropped = (WalFrame(number, commits, _HEADER + _FRAME), *frames)
            return WalScan(page_size=size, dropped=dropped, problem=problem, certain=True)
    return WalScan(page_size=0, problem=problem, certain=True)


def _stopped(
    wal: bytes,
    at: int,
    page_size: int,
    order: str,
    salts: tuple[int, int],
    before: tuple[int, int],
    frames: list[WalFrame],
) -> WalScan:
    """Tell damage from the remains of an older generation, where SQLite stops reading."""
    number, size, salt1, salt2 = struct.unpack_from(">4I", wal, at)
    this = WalFrame(number, size, at + _FRAME)
    behind = _behind(wal, at, page_size, order, salts)
    follows = _frame(wal, at, page_size, before, order) is not None
    ours = (salt1, salt2) == salts
    if not (ours or follows or behind):
        return _ended(page_size, frames, (), "")
    certain = any(frame.size for frame in behind)
    if certain:
        problem = f"frame {len(frames) + 1} of the WAL is damaged: SQLite drops what was committed after it"
    else:
        problem = (
            f"the last transaction of the WAL, from frame {len(frames) + 1} on, is incomplete: it was either"
            " interrupted before it was acknowledged, or damaged since"
        )
    return replace(_ended(page_size, frames, (this, *behind), problem), certain=certain)


def _ended(page_size: int, frames: list[WalFrame], dropped: tuple[WalFrame, ...], problem: str) -> WalScan:
    """Return the scan without frames that no commit follows."""
    committed = max((index for index, frame in enumerate(frames, 1) if frame.size), default=0)
    open_ones = tuple(frames[committed:])
    if open_ones and not problem:
        problem = (
            f"the last transaction of the WAL, from frame {committed + 1} on, has no end: it was either interrupted"
            " before it was acknowledged, or its end was lost since"
        )
    return WalScan(page_size=page_size, read=tuple(frames[:committed]), dropped=(*open_ones, *dropped), problem=problem)


def _behind(wal: bytes, at: int, page_size: int, order: str, salts: tuple[int, int]) -> tuple[WalFrame, ...]:
    """Return the frames of this generation after the one at ``at``."""
    frames_behind: list[WalFrame] = []
    places = [offset for offset in _places(len(wal), page_size) if offset > at]
    valid = 0
    for offset in places:
        number, size, salt1, salt2 = struct.unpack_from(">4I", wal, offset)
        seed = struct.unpack_from(">2I", wal, offset - page_size - 8)
        if _frame(wal, offset, page_size, (seed[0], seed[1]), order) is not None and (salt1, salt2) == salts:
            frames_behind.append(WalFrame(number, size, offset + _FRAME))
            valid = len(frames_behind)
        elif (salt1, salt2) == salts:
            # The damage may reach into it: kept if a valid one follows.
            frames_behind.append(WalFrame(number, size, offset + _FRAME))
        else:
            break
    return tuple(frames_behind[:valid])


def _frame(
    wal: bytes, at: int, page_size: int, before: tuple[int, int], order: str
) -> tuple[WalFrame, tuple[int, int], tuple[int, int]] | None:
    """Return a frame, its salts and its checksum, if it follows from the previous one."""
    number, size, salt1, salt2, sum1, sum2 = struct.unpack_from(">6I", wal, at)
    page = at + _FRAME
    sums = _checksum(wal[page : page + page_size], _checksum(wal[at : at + 8], before, order), order)
    if sums != (sum1, sum2) or not number:
        return None
    return WalFrame(number, size, page), (salt1, salt2), sums


def _places(length: int, page_size: int) -> Iterator[int]:
    """Yield the offsets of complete frames."""
    if 512 <= page_size <= 65536:
        yield from range(_HEADER, length - _FRAME - page_size + 1, _FRAME + page_size)


def _checksum(data: bytes, seed: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = seed
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
