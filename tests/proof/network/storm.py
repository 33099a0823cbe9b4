"""Lead to a real server over connections that each meet a fate, drawn by chance from a seed."""

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

from tests.support.peers import Accepted

_READY: Final = 0x5A  # Z
_COMPLETE: Final = 0x43  # C
_EMPTY: Final = 0x49  # I
_QUERY: Final = 0x51  # Q
_COM_QUERY: Final = 0x03
_HEADER: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """How the two sides of a connection talk, without TLS.

    :ivar port: of a server, where its URL names none.
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
    port: int
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

    Nor have they the type 0: at a complete message of it asyncpg loops for ever, and no thread of the process runs.
    They never say that an answer is complete, which is no garbage: no client can tell that from a true answer.
    """
    if data[0] in (0, _READY, _COMPLETE, _EMPTY):
        data = b"\1" + data[1:]
    length = int.from_bytes(data[1:5], "big") & 0x7FFFFFFF
    if length % 2:  # as long as it says: so that the body is looked at, and not waited for
        length = max(4, len(data) - 1)
    return data[:1] + max(4, length).to_bytes(4, "big") + data[5:]


POSTGRESQL: Final = Speech(
    driver="asyncpg",
    port=5432,
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
    port=3306,
    first=_numbered,
    size=_numbered,
    least=_HEADER,
    writes=lambda message: b"INSERT INTO letopis_" in message[:100],
    commits=lambda message: message[4:] == bytes((_COM_QUERY,)) + b"COMMIT",
    ends=lambda message: True,
    committed=lambda message: message[4:5] == b"\0",
    garbage=bytes,
)


Moment = Literal["connecting", "amid", "before COMMIT", "after COMMIT"]
REFUSED: Final = "refused"
_ACTS: Final[Mapping[Moment, Sequence[str]]] = {
    "connecting": ("hung up", "accepted, then silence"),
    "amid": ("reset", "torn", "black hole", "garbage", "garbage for the server", "trickle"),
    "before COMMIT": ("reset", "reset", "torn", "black hole", "garbage"),
    "after COMMIT": ("reset", "reset", "torn", "black hole", "garbage", "trickle"),
}
FATES: Final[Sequence[tuple[Moment, str]]] = [(moment, act) for moment, acts in _ACTS.items() for act in acts]
"""What can happen to a connection, the most instructive twice as often."""
SPARED: Final = 0.1
RESPITE: Final = 20
"""Times later than others that a connection meets its fate which is spared at first; with none that are spared for
good, a pool does not end up with nothing but those."""
LAST_MESSAGE: Final = 30
LAST_COMMIT: Final = 2
PACE: Final = (0.005, 0.05)  # seconds between two bytes of an answer that trickles: some come in time
HALF_DEAD: Final = 0.5
"""Seconds, at most, that a server still holds the session of a client that is gone from a black hole."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to a connection, at which of its messages or COMMITs."""

    moment: Moment
    act: str
    at: int

    def __str__(self) -> str:
        return f"{self.act} {self.moment}"


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Over(Exception):
    """This connection has met its fate."""


def draw(chance: random.Random) -> Fate:
    """Draw a fate; now and then it comes late."""
    late = RESPITE if chance.random() < SPARED else 1
    moment, act = chance.choice(FATES)
    return Fate(moment, act, late * chance.randint(1, LAST_COMMIT if moment.endswith("COMMIT") else LAST_MESSAGE))


class Storm:
    """Stands between clients and a server on 127.0.0.1."""

    def __init__(self, port: int, speech: Speech, seed: str) -> None:
        self._server_port = port
        self.speech = speech
        self.chance = random.Random(seed)
        self._accepted = Accepted(self._serve)
        self.raging = True
        self.fired: Counter[str] = Counter()
        self.ambiguous = 0
        self.errors: list[str] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Listen, and yield the port; every connection is cut at the end."""
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        gate = asyncio.create_task(self._close_now_and_then(server, port))
        try:
            yield port
        finally:
            gate.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gate
            await self._accepted.cut()

    def calm(self) -> None:
        """Let every connection be from now on, also those that are open."""
        self.raging = False

    async def _close_now_and_then(self, server: asyncio.Server, port: int) -> None:
        """Stop listening for a moment, so that connections are refused."""
        try:
            while True:
                await asyncio.sleep(self.chance.uniform(0.5, 1.5))
                if self.raging:
                    await self._accepted.close(server)
                    await asyncio.sleep(self.chance.uniform(0.02, 0.12))
                    server = await self._listen_again(port)
        finally:
            await self._accepted.close(server)

    async def _listen_again(self, port: int) -> asyncio.Server:
        for _ in range(500):
            with contextlib.suppress(OSError):  # another connection uses this very port as its source
                return await asyncio.start_server(self._accepted, "127.0.0.1", port)
            await asyncio.sleep(0.02)
        raise RuntimeError(f"port {port} was taken for good")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fate = draw(self.chance) if self.raging else None
        try:
            with contextlib.suppress(OSError, _Over):
                if fate is not None and fate.moment == "connecting":
                    self.fired[str(fate)] += 1
                    if fate.act != "hung up":
                        await _until_gone(reader)
                    return
                await self._lead(reader, writer, fate)
        finally:
            _reset(writer)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: Fate | None) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._server_port)
        line = _Line(self, fate, (reader, writer), there)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(line.asks())
                both.create_task(line.answers())
        except* (OSError, _Over):
            pass
        except* Exception as failed:
            self.errors += [f"the proxy itself failed: {error!r}" for error in failed.exceptions]
        finally:
            _reset(there[1])


class _Line:
    def __init__(self, storm: Storm, fate: Fate | None, here: Streams, there: Streams) -> None:
        self._storm = storm
        self._fate = fate
        self._reader, self._writer = here
        self._there_reader, self._there_writer = there
        self._messages = 0
        self._commits = 0
        self._wrote = False
        self._void = False  # nothing goes through any more, either way
        self._committing = False
        self._pace: float | None = None

    async def asks(self) -> None:
        cutter = Cutter(self._storm.speech, asks=True)
        while data := await self._reader.read(65536):
            for message in cutter.feed(data):
                if not self._void:
                    await self._ask(message)
        if self._void:  # the server does not hear of the end either, and holds the session for a while
            await asyncio.sleep(self._storm.chance.uniform(0, HALF_DEAD))
        raise _Over

    async def answers(self) -> None:
        cutter = Cutter(self._storm.speech, asks=False)
        said: list[bytes] = []
        while data := await self._there_reader.read(65536):
            messages = list(cutter.feed(data))  # also to know where the next one begins
            if self._committing:
                for message in messages:
                    said.append(message)
                    if self._storm.speech.ends(message):
                        await self._answer_commit(said)
            elif not self._void:
                await self._pass_on(data)
        if self._void:
            await asyncio.Event().wait()
        raise _Over

    async def _ask(self, message: bytes) -> None:
        commits = self._wrote and self._storm.speech.commits(message)
        self._wrote = not commits and (self._wrote or self._storm.speech.writes(message))
        self._messages += 1
        self._commits += commits
        fate = self._fate if self._storm.raging else None
        at = None if fate is None else self._messages if fate.moment == "amid" else commits and self._commits
        if fate is None or at != fate.at:
            await self._hand_over(message)
        elif fate.moment == "after COMMIT":
            self._committing = True
            await self._hand_over(message)
        else:
            await self._befall(fate, message, self._hand_over)

    async def _hand_over(self, message: bytes) -> None:
        self._there_writer.write(message)
        await self._there_writer.drain()

    async def _pass_on(self, data: bytes) -> None:
        if self._pace is None:
            self._writer.write(data)
            await self._writer.drain()
            return
        for byte in data:
            self._writer.write(bytes((byte,)))
            await self._writer.drain()
            await asyncio.sleep(self._pace)

    async def _befall(self, fate: Fate, whole: bytes, carry: Callable[[bytes], Awaitable[None]]) -> None:
        """Have what would have been carried meet its fate."""
        chance = self._storm.chance
        self._storm.fired[str(fate)] += 1
        match fate.act:
            case "reset":
                raise _Over
            case "torn":
                await carry(whole[: chance.randrange(1, max(2, len(whole)))])
                raise _Over
            case "black hole":
                self._void = True
            case "garbage":
                self._void = True
                self._writer.write(self._storm.speech.garbage(chance.randbytes(chance.randint(6, 200))))
                await self._writer.drain()
            case "garbage for the server":
                await carry(chance.randbytes(chance.randint(5, 200)))
            case _:
                self._pace = chance.uniform(*PACE)
                await carry(whole)

    async def _answer_commit(self, said: list[bytes]) -> None:
        """Have the answer to a COMMIT meet the fate that is due; the server has already committed."""
        fate, committed = self._fate, any(map(self._storm.speech.committed, said))
        assert fate is not None
        self._storm.ambiguous += committed
        self._committing = fate.act != "trickle"
        await self._befall(fate, b"".join(said), self._pass_on)
        if not self._committing:  # it came through after all: a client that gives up hangs up, which ends this
            self._storm.ambiguous -= committed


async def _until_gone(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a RST and not with a farewell."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
