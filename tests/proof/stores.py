"""Give a fresh, empty database of each kind that is dropped afterwards, or the reason why there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.servers import MariaDBServer, PostgresServer, Server, ServerUnavailable

KINDS: Final = ("sqlite", "postgresql", "mariadb")


@dataclass(frozen=True, slots=True)
class Fresh:
    """An empty database; ``missing`` says why there is none."""

    kind: str
    url: str = ""
    missing: str = ""


@contextmanager
def fresh(kind: str, folder: Path, name: str) -> Iterator[Fresh]:
    """Give a database of a kind for the time of a block. The server is shared: nothing else on it is touched."""
    if kind == "sqlite":
        yield Fresh(kind, f"sqlite:///{(folder / f'{name}.db').as_posix()}")
        return
    found: Server
    try:
        found = PostgresServer.find() if kind == "postgresql" else MariaDBServer.find()
    except ServerUnavailable as why:
        yield Fresh(kind, missing=str(why))
        return
    with found as server:
        url = server.create_database("letopis_proof")
        try:
            yield Fresh(kind, url)
        finally:
            server.drop_database(url)
