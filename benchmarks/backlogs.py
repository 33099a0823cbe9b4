"""Append events to an outbox without a relay, and measure what drains it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.figures import Durability
from benchmarks.subjects import TEXT
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.limits import Bounds
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.store import ConversationStore, Message


class Backlog:
    """One outbox and one store; ``owe`` appends, ``drain`` delivers."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self.outbox = outbox
        self.store = store

    @classmethod
    async def open(cls, path: Path, url: str) -> Backlog:
        """Open the file, and create the tables of the store."""
        store = ConversationStore(url, migrate=True)
        await store.prepare()
        return cls(await OutboxFile.open(path, bounds=Bounds(max_events=None, max_bytes=None)), store)

    async def owe(self, *, conversations: int, each: int, text: str = TEXT) -> int:
        """Append ``each`` messages to each conversation, and return how many events are pending now."""
        for number in range(conversations):
            for _ in range(each // 100):
                await self._say(number, 100, text)
            if each % 100:
                await self._say(number, each % 100, text)
        return await self.pending()

    async def _say(self, number: int, count: int, text: str) -> None:
        await self.outbox.append(prepare(f"chat-{number}", [Message.user(text) for _ in range(count)]))

    async def pending(self) -> int:
        """Return how many events wait."""
        statement = sa.text("SELECT coalesce(sum(head - delivered), 0) FROM letopis_outbox_lanes")
        return await self.outbox.read(lambda connection: int(connection.execute(statement).scalar_one()))

    async def drain(self) -> tuple[int, float]:
        """Deliver everything pending; return the number of events, and the seconds it took.

        :raises RuntimeError: something is left.
        """
        relay = Relay(self.outbox, self.store, holder="benchmark")
        begun = time.perf_counter()
        delivered = await relay.drain()
        seconds = time.perf_counter() - begun
        if left := await self.pending():
            raise RuntimeError(f"the drain left {left} events behind")
        return delivered, seconds

    async def position(self) -> int:
        """Return the last position of the log."""
        return await self.store.head()

    async def durability(self) -> Durability:
        """Return what the store's own connection says, in a transaction as an apply begins one."""
        return await durability_of(self.store)

    async def close(self) -> None:
        """Close both."""
        await self.outbox.close()
        await self.store.close()


async def durability_of(store: ConversationStore) -> Durability:
    """Return the durability of what a store applies, read in such a transaction."""
    async with store.runtime.callers_engine.connect() as connection:
        await store.runtime.dialect.begin_apply(connection)

        async def ask(statement: str) -> Any:
            return (await connection.exec_driver_sql(statement)).scalar_one()

        match store.url.get_backend_name():
            case "postgresql":
                return Durability.of_postgresql(
                    fsync=await ask("SHOW fsync"), synchronous_commit=await ask("SHOW synchronous_commit")
                )
            case "sqlite":
                return Durability.of_sqlite(await ask("PRAGMA journal_mode"), int(await ask("PRAGMA synchronous")))
            case _:
                return Durability.of_mariadb(
                    flush_log_at_trx_commit=int(await ask("SELECT @@innodb_flush_log_at_trx_commit"))
                )
