"""Measure records beside the bare driver on the same tables, what they cost an append, and the bytes of many puts."""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from benchmarks.figures import Figure, percentile
from benchmarks.parts import Bench
from benchmarks.subjects import TEXT
from letopis.outbox import History
from letopis.outbox.history.records import RecordPut
from letopis.outbox.relay.relay import Relay
from letopis.store import ConversationStore, Message
from letopis.store.model.records import Scope, encode_namespace, range_end
from letopis.store.rules.record_plan import record_id
from tests.support.servers import ServerUnavailable

KINDS: Final = ("sqlite", "postgresql", "mariadb")
CHECKPOINTS, MEMORY, DOOMED = ("checkpoints",), ("memory",), ("doomed",)
HELD: Final = 1_000
PAGE: Final = 100
VALUE: Final = {"state": "x" * 1_000}
BODY: Final = orjson.dumps(VALUE)
SPACE: Final = "bench"
_TABLES: Final = ("records", "record_parts", "record_tags", "record_ledger")

Once = Callable[[], Awaitable[object]]

_PUT: Final = (
    'INSERT INTO letopis_records ("partition", record_id, scope, namespace, record_key, revision, media, size, parts,'
    ' body, tags, digest, salt, updated_at) VALUES ({0}) ON CONFLICT ("partition", record_id) DO UPDATE SET'
    " revision = excluded.revision, size = excluded.size, body = excluded.body, updated_at = excluded.updated_at"
)
_PUT_MARIADB: Final = (
    "INSERT INTO letopis_records (`partition`, record_id, scope, namespace, record_key, revision, media, size, parts,"
    " body, tags, digest, salt, updated_at) VALUES ({0}) ON DUPLICATE KEY UPDATE revision = VALUES(revision),"
    " size = VALUES(size), body = VALUES(body), updated_at = VALUES(updated_at)"
)
_GET: Final = 'SELECT body FROM letopis_records WHERE "partition" = {0} AND record_id = {1}'
_NEWEST: Final = (
    'SELECT body FROM letopis_records WHERE "partition" = {0} AND scope = {1} AND namespace = {2}'
    " ORDER BY record_key {4} LIMIT {3}"
)
_CLEAR: Final = (
    'DELETE FROM letopis_records WHERE "partition" = {0} AND scope = {1} AND namespace >= {2} AND namespace < {3}'
)


class BareRecords(ABC):
    """One connection of the driver alone, to the tables of a store."""

    def __init__(self, url: str, *, partition: int) -> None:
        self._url, self._partition = make_url(url), partition
        self._scope = Scope.space(SPACE)

    async def put(self, namespace: tuple[str, ...], key: str) -> None:
        """Write one record, and commit."""
        await self.run(_PUT, [self._row(namespace, key)])

    async def put_many(self, namespace: tuple[str, ...], keys: Sequence[str]) -> None:
        """Write records, and commit."""
        await self.run(_PUT, [self._row(namespace, key) for key in keys])

    async def get(self, namespace: tuple[str, ...], key: str) -> Any:
        """Read the value of one record."""
        place = (encode_namespace(namespace), key.encode())
        [row] = await self.ask(_GET, (self._partition, self.id(record_id(self._scope, place))))
        return orjson.loads(row[0])

    async def page(self, namespace: tuple[str, ...], count: int, order: str = "ASC") -> list[Any]:
        """Read the values of the first or last records of a namespace."""
        where = (self._partition, self._scope.name, encode_namespace(namespace), count)
        return [orjson.loads(row[0]) for row in await self.ask(_NEWEST, where, order)]

    async def delete_where(self, namespace: tuple[str, ...]) -> None:
        """Delete the records of a namespace and below it, and commit."""
        prefix = encode_namespace(namespace)
        await self.run(_CLEAR, [(self._partition, self._scope.name, prefix, range_end(prefix))])

    def _row(self, namespace: tuple[str, ...], key: str) -> tuple[Any, ...]:
        place = (encode_namespace(namespace), key.encode())
        found = self.id(record_id(self._scope, place))
        head = (self._partition, found, self._scope.name, *place, self.id(uuid4()))
        return (*head, "json", len(BODY), 0, BODY, None, bytes(32), bytes(16), 7)

    @abstractmethod
    def id(self, value: UUID) -> Any:
        """Return an id as the driver takes it."""

    @abstractmethod
    async def run(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement for some rows in one transaction."""

    @abstractmethod
    async def ask(self, statement: str, row: tuple[Any, ...], *words: str) -> Sequence[Any]:
        """Return what a statement reads."""

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @abstractmethod
    async def close(self) -> None:
        """Release the connection."""


class _Sqlite(BareRecords):
    """In the thread that asks, and flushed as an outbox is."""

    async def open(self) -> None:
        self._connection = sqlite3.connect(self._url.database or "", isolation_level=None, timeout=10)
        self._connection.execute("PRAGMA synchronous=FULL")

    def id(self, value: UUID) -> Any:
        return value.bytes

    async def run(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        marks = ["?"] * len(rows[0])
        text = statement.format(", ".join(marks)) if statement == _PUT else statement.format(*marks)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(text, rows)
        self._connection.execute("COMMIT")

    async def ask(self, statement: str, row: tuple[Any, ...], *words: str) -> Sequence[Any]:
        return self._connection.execute(statement.format(*["?"] * len(row), *words), row).fetchall()

    async def close(self) -> None:
        self._connection.close()


class _Asyncpg(BareRecords):
    async def open(self) -> None:
        import asyncpg

        address = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: Any = await asyncpg.connect(address)

    def id(self, value: UUID) -> Any:
        return value

    async def run(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        marks = [f"${place}" for place in range(1, len(rows[0]) + 1)]
        text = statement.format(", ".join(marks)) if statement == _PUT else statement.format(*marks)
        if len(rows) == 1:
            await self._connection.execute(text, *rows[0])
        else:
            await self._connection.executemany(text, rows)

    async def ask(self, statement: str, row: tuple[Any, ...], *words: str) -> Sequence[Any]:
        marks = [f"${place}" for place in range(1, len(row) + 1)]
        found: Sequence[Any] = await self._connection.fetch(statement.format(*marks, *words), *row)
        return found

    async def close(self) -> None:
        await self._connection.close()


class _Asyncmy(BareRecords):
    async def open(self) -> None:
        import asyncmy

        url = self._url
        self._connection: Any = await asyncmy.connect(
            host=url.host, port=url.port or 3306, user=url.username, password=url.password or "", db=url.database
        )

    def id(self, value: UUID) -> Any:
        return value.bytes

    async def run(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        async with self._connection.cursor() as cursor:
            marks = ["%s"] * len(rows[0])
            if statement == _PUT:
                text = _PUT_MARIADB.format(", ".join(marks))
            else:
                text = statement.format(*marks).replace('"', "`")
            await cursor.executemany(text, list(rows))
        await self._connection.commit()

    async def ask(self, statement: str, row: tuple[Any, ...], *words: str) -> Sequence[Any]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(statement.format(*["%s"] * len(row), *words).replace('"', "`"), row)
            found: Sequence[Any] = await cursor.fetchall()
        await self._connection.commit()  # otherwise its next read would be of the same snapshot
        return found

    async def close(self) -> None:
        await self._connection.ensure_closed()


_BARE: Final[Mapping[str, type[BareRecords]]] = {"sqlite": _Sqlite, "postgresql": _Asyncpg, "mariadb": _Asyncmy}


async def records(bench: Bench) -> None:
    """Measure each operation beside the bare driver, then an append with records in its file, then the bytes."""
    for kind in KINDS:
        try:
            await _operations(bench, kind, await _made(bench.new_store(kind)))
            await _bytes(bench, kind, await _made(bench.new_store(kind)))
        except ServerUnavailable as reason:
            bench.miss(f"records on {kind}", str(reason))
    await _append(bench)


async def _made(url: str) -> str:
    """Create the tables of a store, and return its URL."""
    async with ConversationStore.open(url, migrate=True):
        return url


async def _operations(bench: Bench, kind: str, url: str) -> None:
    async with AsyncExitStack() as stack:
        path = bench.new_folder() / "bot.outbox.db"
        history = await stack.enter_async_context(History(path, store=url, relay=False, watch=False))
        ours = history.records(space=SPACE)
        keys = [f"{number:04}" for number in range(bench.scale.count(HELD, least=PAGE))]
        for start in range(0, len(keys), PAGE):
            await ours.put_many([RecordPut(CHECKPOINTS, key, VALUE) for key in keys[start : start + PAGE]])
        await _drain(history)
        partition = Scope.space(SPACE).partition(await history.store.partitions())
        bare = _BARE[kind](url, partition=partition)
        await bare.open()
        stack.push_async_callback(bare.close)
        few = keys[:PAGE]

        async def refill(put_all: Callable[[], Awaitable[object]]) -> None:
            await put_all()
            await _drain(history)

        works: dict[str, tuple[int, Once, Once]] = {
            "put": (60, lambda: ours.put(MEMORY, "a", VALUE), lambda: bare.put(("raw",), "a")),
            "get": (200, lambda: ours.get(CHECKPOINTS, keys[7]), lambda: bare.get(CHECKPOINTS, keys[7])),
            "latest": (
                200,
                lambda: ours.list(CHECKPOINTS, reverse=True, limit=1),
                lambda: bare.page(CHECKPOINTS, 1, "DESC"),
            ),
            "list": (60, lambda: ours.list(CHECKPOINTS, limit=PAGE), lambda: bare.page(CHECKPOINTS, PAGE)),
            "delete": (5, lambda: ours.delete_where(DOOMED), lambda: bare.delete_where(("raw",))),
        }
        names = {
            "put": "put",
            "get": "get",
            "latest": f"latest of {len(keys):,}",
            "list": f"list({PAGE})",
            "delete": f"delete_where of {PAGE}",
        }
        for work, (times, mine, theirs) in works.items():
            samples: dict[str, list[float]] = {"letopis": [], "bare": []}
            delivered: list[float] = []
            for _ in range(bench.scale.rounds):
                found: dict[str, list[float]] = {"letopis": [], "bare": []}
                for number in range(bench.scale.count(times, least=2)):
                    if work == "delete":
                        await refill(lambda: ours.put_many([RecordPut(DOOMED, key, VALUE) for key in few]))
                        await bare.put_many(("raw",), few)
                    both = (("letopis", mine), ("bare", theirs))
                    for who, once in both if number % 2 else reversed(both):
                        begun = time.perf_counter()
                        await once()
                        found[who].append((time.perf_counter() - begun) * 1000)
                    if work == "delete":
                        begun = time.perf_counter()
                        await _drain(history)
                        delivered.append((time.perf_counter() - begun) * 1000)
                if work == "put":
                    await _drain(history)
                for who, waits in found.items():
                    samples[who].append(percentile(waits, 0.5))
            for who, title in (("letopis", "Letopis"), ("bare", "the driver alone")):
                bench.add(
                    Figure(
                        key=f"records.{work}.{kind}.{who}",
                        name=f"{names[work]}, {kind}, {title}",
                        unit="ms",
                        samples=tuple(samples[who]),
                        more_is_better=False,
                        details={"delivered after ms": percentile(delivered, 0.5)}
                        if delivered and who == "letopis"
                        else {},
                    )
                )


async def _append(bench: Bench) -> None:
    """Append to a file with records and to one without, one and one."""
    async with AsyncExitStack() as stack:
        files = {}
        for which in ("with", "without"):
            path = bench.new_folder() / "bot.outbox.db"
            files[which] = await stack.enter_async_context(History(path, relay=False, watch=False))
        keys = [f"{number:04}" for number in range(bench.scale.count(HELD, least=PAGE))]
        await files["with"].records(space=SPACE).put_many([RecordPut(CHECKPOINTS, key, VALUE) for key in keys])
        samples: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(bench.scale.rounds):
            found: dict[str, list[float]] = {"with": [], "without": []}
            for number in range(bench.scale.count(300, least=10)):
                for which in ("with", "without") if number % 2 else ("without", "with"):
                    begun = time.perf_counter()
                    await files[which].append(f"chat-{number % 64}", Message.user(TEXT))
                    found[which].append((time.perf_counter() - begun) * 1000)
            for which, waits in found.items():
                samples[which].append(percentile(waits, 0.5))
    for which in ("with", "without"):
        bench.add(
            Figure(
                key=f"records.append.{which}",
                name=f"append, {which}{f' {len(keys):,}' if which == 'with' else ''} records in the file",
                unit="ms",
                samples=tuple(samples[which]),
                more_is_better=False,
            )
        )


async def _bytes(bench: Bench, kind: str, url: str) -> None:
    """Put one key many times while nothing is delivered, then deliver."""
    path = bench.new_folder() / "bot.outbox.db"
    puts = bench.scale.count(10_000, least=200)
    async with History(path, store=url, relay=False, watch=False) as history:
        ours = history.records(space=SPACE)
        await ours.put(MEMORY, "other", VALUE)
        await _drain(history)
        before, empty = await _store_bytes(history.store), _file_bytes(path)
        for start in range(0, puts, PAGE):
            await ours.put_many([RecordPut(MEMORY, "a", VALUE) for _ in range(min(PAGE, puts - start))])
        pending = _file_bytes(path)
        await _drain(history)
        after = await _store_bytes(history.store)
    for key, name, value in (("outbox", "outbox", pending - empty), ("store", kind, after - before)):
        if key == "store" or kind == "sqlite":
            bench.add(
                Figure(
                    key=f"records.bytes.{kind if key == 'store' else key}",
                    name=f"{name}, after {puts:,} puts of one key",
                    unit="MB",
                    samples=(value / 1e6,),
                    more_is_better=False,
                    details={"value bytes": float(len(BODY)), "bytes a put": value / puts},
                )
            )


async def _drain(history: History) -> None:
    await Relay(history.outbox, history.store, holder="benchmark").drain()


def _file_bytes(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return path.stat().st_size


async def _store_bytes(store: ConversationStore) -> int:
    if store.url.get_backend_name() == "sqlite":
        return _file_bytes(Path(store.url.database or ""))
    names = [f"letopis_{name}" for name in _TABLES]
    async with store.runtime.callers_engine.connect() as connection:
        if store.url.get_backend_name() == "postgresql":
            sizes = "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(CAST(:names AS text[])) AS name"
            return int((await connection.execute(sa.text(sizes), {"names": names})).scalar_one())
        # The file of a table, which holds its indexes, too; the figures in information_schema.tables are estimates.
        files = sa.text(
            "SELECT sum(file_size) FROM information_schema.innodb_sys_tablespaces WHERE name IN :names"
        ).bindparams(sa.bindparam("names", expanding=True))
        found = await connection.execute(files, {"names": [f"{store.url.database}/{name}" for name in names]})
        return int(found.scalar_one())
