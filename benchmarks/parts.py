"""Give each part of the benchmark its scale, folder and databases, and take back what it measured."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Figure, Missing, Result
from tests.support.servers import MariaDBServer, PostgresServer, Server, ServerUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    :ivar rounds: alternating ones, at least five in a run whose figures are to be shown.
    :ivar factor: what all counts and times are multiplied by.
    :ivar files: outbox files of the part ``fleet``; ``None`` for its own number.
    :ivar minutes: for which the daemon of the part fleet is watched after its first deliveries.
    """

    rounds: int = 5
    factor: float = 1.0
    whole: bool = False
    files: int | None = None
    minutes: float = 0.0

    def count(self, number: int, *, least: int = 1) -> int:
        """Return this number, or a smaller one in a quick run."""
        return max(least, round(number * self.factor))

    def seconds(self, seconds: float, *, least: float = 0.1) -> float:
        """Return this duration, or a shorter one in a quick run."""
        return max(least, seconds * self.factor)


QUICK = Scale(rounds=2, factor=0.02)


@dataclass(slots=True)
class Bench:
    """One part while it runs: a folder, databases that are dropped at its end, and what it has measured."""

    part: str
    scale: Scale
    folder: Path
    chance: random.Random = field(default_factory=lambda: random.Random(5))
    figures: list[Figure] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    _servers: dict[str, Server] = field(default_factory=dict)
    _databases: list[tuple[Server, str]] = field(default_factory=list)
    _files: int = 0

    def add(self, figure: Figure) -> Figure:
        """Keep a figure."""
        self.figures.append(figure)
        return figure

    def miss(self, name: str, reason: str) -> None:
        """Keep that something could not be measured."""
        self.missing.append(Missing(name=name, reason=reason))

    def new_folder(self) -> Path:
        """Return a folder of its own for a subject."""
        self._files += 1
        folder = self.folder / f"{self._files}"
        folder.mkdir()
        return folder

    def new_store(self, kind: str) -> str:
        """Return the URL of a fresh, empty database.

        :raises tests.support.servers.ServerUnavailable: there is no such server, and none can be started.
        """
        if kind == "sqlite":
            return f"sqlite:///{(self.new_folder() / 'history.db').as_posix()}"
        server = self._servers.get(kind)
        if server is None:
            server = PostgresServer.find() if kind == "postgresql" else MariaDBServer.find()
            self._servers[kind] = server
        url = server.create_database("letopis_bench")
        self._databases.append((server, url))
        return url

    def close(self) -> None:
        """Drop the databases, and end the servers that were started."""
        for server, url in self._databases:
            server.drop_database(url)
        for server in self._servers.values():
            server.close()


Part = Callable[[Bench], Awaitable[None]]


@contextmanager
def _opened(part: str, scale: Scale) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix=f"letopis-bench-{part}-", ignore_cleanup_errors=True) as folder:
        bench = Bench(part=part, scale=scale, folder=Path(folder))
        try:
            yield bench
        finally:
            bench.close()


async def run_part(name: str, part: Part, scale: Scale) -> Result:
    """Run a part to its end and return what it measured; its files and databases are gone afterwards."""
    begun = time.monotonic()
    with _opened(name, scale) as bench:
        try:
            await part(bench)
        except ServerUnavailable as reason:
            bench.miss(name, str(reason))
        return Result(
            part=name,
            figures=tuple(bench.figures),
            missing=tuple(bench.missing),
            seconds=time.monotonic() - begun,
        )
