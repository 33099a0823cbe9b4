"""Read the newest messages with a driver alone: JSON decoded, and nothing made of it."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from typing import Any, Final

import orjson
from sqlalchemy.engine import URL, make_url

_SELECT: Final = (
    "SELECT e.data FROM (SELECT conversation_id, version FROM letopis_messages WHERE {q}partition{q} = 0"
    " AND conversation_id = {p} AND left_at IS NULL ORDER BY version DESC LIMIT 51) AS m"
    " JOIN letopis_events AS e ON e.{q}partition{q} = 0 AND e.conversation_id = m.conversation_id"
    " AND e.version = m.version"
)


class BareRead(ABC):
    """One connection that reads, over and over."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @abstractmethod
    async def last(self, name: str) -> list[Any]:
        """Return the data of the newest messages of a conversation."""

    @abstractmethod
    async def close(self) -> None:
        """Release it."""


class _Sqlite(BareRead):
    """In the thread that asks, for a hop would be more than bare."""

    async def open(self) -> None:
        self._connection = sqlite3.connect(self._url.database or "")
        self._statement = _SELECT.format(q='"', p="?")

    async def last(self, name: str) -> list[Any]:
        return [orjson.loads(row[0]) for row in self._connection.execute(self._statement, (name,)).fetchall()]

    async def close(self) -> None:
        self._connection.close()


class _Asyncpg(BareRead):
    async def open(self) -> None:
        import asyncpg

        address = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: Any = await asyncpg.connect(address)
        self._statement = _SELECT.format(q='"', p="$1")

    async def last(self, name: str) -> list[Any]:
        return [orjson.loads(row[0]) for row in await self._connection.fetch(self._statement, name)]

    async def close(self) -> None:
        await self._connection.close()


class _Asyncmy(BareRead):
    async def open(self) -> None:
        self._connection = await connect_asyncmy(self._url, autocommit=True)
        self._statement = _SELECT.format(q="`", p="%s")

    async def last(self, name: str) -> list[Any]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(self._statement, (name,))
            return [orjson.loads(row[0]) for row in await cursor.fetchall()]

    async def close(self) -> None:
        self._connection.close()


async def connect_asyncmy(url: URL, **options: Any) -> Any:
    """Connect to MariaDB with the driver alone."""
    import asyncmy

    return await asyncmy.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username or "root",
        password=str(url.password or ""),
        db=url.database,
        charset="utf8mb4",
        **options,
    )


def bare_read(kind: str, url: str) -> BareRead:
    """Return the bare read of a kind of store."""
    return {"sqlite": _Sqlite, "postgresql": _Asyncpg, "mariadb": _Asyncmy}[kind](url)
