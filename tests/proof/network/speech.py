"""Find where a message of a database's protocol ends, and which message is a COMMIT or the answer to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_READY: Final = 0x5A  # Z
_COMPLETE: Final = 0x43  # C
_EMPTY: Final = 0x49  # I
_QUERY: Final = 0x51  # Q
_COM_QUERY: Final = 0x03
_HEADER: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """How the two sides of a connection talk, without TLS.

    :ivar first: the size of the first message of a client, given at least 4 bytes of it.
    :ivar size: the size of any other message, given at least 5 bytes of it, or fewer where it is shorter.
    :ivar least: bytes that ``size`` has to see.
    :ivar writes: whether a client's message may be of an apply: a driver may say COMMIT for reasons of its own.
    :ivar commits: whether a client's message is a COMMIT.
    :ivar ends: whether a server's message is the last one of the answer to it.
    :ivar garbage: makes nonsense of random bytes that a server might say.
    :ivar committed: whether a server's message says that the commit has taken effect.
    """

    driver: str
    first: Callable[[bytes], int]
    size: Callable[[bytes], int]
    least: int
    writes: Callable[[bytes], bool]
    commits: Callable[[bytes], bool]
    ends: Callable[[bytes], bool]
    committed: Callable[[bytes], bool]
    garbage: Callable[[bytes], bytes]


class Cutter:
    def __init__(self, speech: Speech, *, asks: bool) -> None:
        self._speech = speech
        self._asks = asks
        self._begun = not asks
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that are complete by now; the rest waits for more."""
        self._rest += data
        while len(self._rest) >= (self._speech.least if self._begun else _HEADER):
            size = (self._speech.size if self._begun else self._speech.first)(self._rest)
            if len(self._rest) < size:
                return
            message, self._rest = self._rest[:size], self._rest[size:]
            self._begun = True
            yield message


def _typed(data: bytes) -> int:
    return 1 + int.from_bytes(data[1:5], "big")


def _numbered(data: bytes) -> int:
    return _HEADER + int.from_bytes(data[:3], "little")


def _of_a_length(data: bytes) -> bytes:
    """Give random bytes a length that is not negative: at such a one asyncpg reads beyond its memory, and dies.

    They never say that an answer is complete, which is no garbage: no client can tell that from a true answer.
    """
    if data[0] in (_READY, _COMPLETE, _EMPTY):
        data = b"\0" + data[1:]
    length = int.from_bytes(data[1:5], "big") & 0x7FFFFFFF
    if length % 2:  # as long as it says: so that the body is looked at, and not waited for
        length = max(4, len(data) - 1)
    return data[:1] + max(4, length).to_bytes(4, "big") + data[5:]


POSTGRESQL: Final = Speech(
    driver="asyncpg",
    first=lambda data: int.from_bytes(data[:4], "big"),
    size=_typed,
    least=5,
    # A prepared statement comes by its number; but there is no other COMMIT.
    writes=lambda message: True,
    commits=lambda message: message[0] == _QUERY and message[5:].startswith(b"COMMIT"),
    ends=lambda message: message[0] == _READY,
    # A transaction that had failed already is answered with ROLLBACK.
    committed=lambda message: message[0] == _COMPLETE and message[5:] == b"COMMIT\0",
    garbage=_of_a_length,
)
MARIADB: Final = Speech(
    driver="asyncmy",
    first=_numbered,
    size=_numbered,
    least=_HEADER,
    writes=lambda message: b"INSERT INTO letopis_" in message[:100],
    commits=lambda message: message[4:] == bytes((_COM_QUERY,)) + b"COMMIT",
    ends=lambda message: True,
    committed=lambda message: message[4:5] == b"\0",
    garbage=bytes,
)
