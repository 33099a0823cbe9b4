"""Hand out databases that hold a migrated, empty store, and use each again once a test has left it.

To create, migrate and drop a database takes a busy server a second; to delete a test's rows takes some milliseconds.
A database whose schema or settings a test has changed is dropped, not used again.
"""

import re
import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import asyncpg
import pymysql
from sqlalchemy.engine import make_url

from letopis.store import ConversationStore
from tests.support.servers.base import Server
from tests.support.servers.mariadb import connect
from tests.support.servers.postgresql import in_own_loop, over

Rows = Mapping[str, Sequence[Sequence[Any]]]

# Without the parts of divided tables, whose rows those have.
_POSTGRESQL_TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
    " AND relnamespace = 'public'::regnamespace"
)
# All that a test could change about a database and leave behind, a line each.
_POSTGRESQL_SCHEMA: Final = """
WITH public AS (SELECT oid FROM pg_namespace WHERE nspname = 'public'),
lines AS (
  SELECT 'relation ' || relname || relkind::text || relowner || relrowsecurity || coalesce(relacl::text, '')
         || coalesce(reloptions::text, '') || coalesce(obj_description(pg_class.oid), '') AS line
    FROM pg_class, public WHERE relnamespace = public.oid
  UNION ALL
  SELECT 'column ' || attrelid::regclass || attnum || attname || format_type(atttypid, atttypmod) || attnotnull
         || attcollation || coalesce(pg_get_expr(adbin, adrelid), '')
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum,
         public
   WHERE c.relnamespace = public.oid AND attnum > 0 AND NOT attisdropped
  UNION ALL
  SELECT 'index ' || pg_get_indexdef(indexrelid) || indisvalid
    FROM pg_index JOIN pg_class c ON c.oid = indrelid, public WHERE c.relnamespace = public.oid
  UNION ALL
  SELECT 'constraint ' || conname || pg_get_constraintdef(k.oid) FROM pg_constraint k, public
   WHERE connamespace = public.oid
  UNION ALL
  SELECT 'trigger ' || pg_get_triggerdef(oid) || tgenabled::text FROM pg_trigger WHERE NOT tgisinternal
  UNION ALL
  SELECT 'function ' || proname FROM pg_proc, public WHERE pronamespace = public.oid
  UNION ALL
  SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
  UNION ALL
  SELECT 'setting ' || setrole || setconfig::text FROM pg_db_role_setting
   WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
  UNION ALL
  SELECT 'database ' || datdba || datconnlimit || datallowconn || coalesce(datacl::text, '')
    FROM pg_database WHERE datname = current_database()
)
SELECT string_agg(line, E'\\n' ORDER BY line COLLATE "C") FROM lines
"""


class StorePool(ABC):
    """Databases of one server that hold a migrated, empty store."""

    def __init__(self, server: Server, make: Callable[[str], Awaitable[None]] | None = None) -> None:
        self._server = server
        self._make = make or migrate
        self._free: list[str] = []
        self._schema = ""
        self._rows: Rows = {}

    def take(self) -> str:
        """Return the URL of a database with a store that holds nothing and has an identity of its own."""
        if self._free:
            return self._free.pop()
        url = self._server.create_database()
        in_own_loop(self._make(url))
        if not self._rows:
            self._schema, self._rows = self._describe(url)
        return url

    def give_back(self, url: str) -> None:
        """Delete what a test has written; drop the database if the test has changed more than rows."""
        self._server.terminate_connections(url)
        if self._reset(url, self._schema, self._rows):
            self._free.append(url)
        else:
            self._server.drop_database(url)

    def close(self) -> None:
        while self._free:
            self._server.drop_database(self._free.pop())

    @abstractmethod
    def _describe(self, url: str) -> tuple[str, Rows]:
        """Return the schema as text, and the rows of a store that is new."""

    @abstractmethod
    def _reset(self, url: str, schema: str, rows: Rows) -> bool:
        """Give the tables the rows of a new store; return False if the schema is another one, or the database gone."""


class PostgresPool(StorePool):
    def _describe(self, url: str) -> tuple[str, Rows]:
        async def work(connection: Any) -> tuple[str, Rows]:
            rows = {}
            for (name,) in await connection.fetch(_POSTGRESQL_TABLES):
                rows[name] = [tuple(row) for row in await connection.fetch(f'SELECT * FROM "{name}"')]
            return await connection.fetchval(_POSTGRESQL_SCHEMA), rows

        return over(url, work)

    def _reset(self, url: str, schema: str, rows: Rows) -> bool:
        async def work(connection: Any) -> bool:
            if await connection.fetchval(_POSTGRESQL_SCHEMA) != schema:
                return False
            async with connection.transaction():
                await connection.execute(";".join(f'DELETE FROM "{name}"' for name in rows))
                await insert_rows(connection, rows)
            return True

        try:
            return over(url, work)
        except asyncpg.InvalidCatalogNameError:
            return False


class MariaDBPool(StorePool):
    def _describe(self, url: str) -> tuple[str, Rows]:
        with closing(connect(make_url(url))) as connection, connection.cursor() as cursor:
            rows = {}
            for name in _mariadb_tables(cursor):
                cursor.execute(f"SELECT * FROM `{name}`")
                rows[name] = list(cursor.fetchall())
            return _mariadb_schema(cursor), rows

    def _reset(self, url: str, schema: str, rows: Rows) -> bool:
        try:
            connection = connect(make_url(url))
        except pymysql.err.OperationalError as exc:
            if exc.args[0] == pymysql.constants.ER.BAD_DB_ERROR:
                return False
            raise
        with closing(connection), connection.cursor() as cursor:
            if _mariadb_schema(cursor) != schema:
                return False
            for name in rows:
                cursor.execute(f"DELETE FROM `{name}`")
            for name, row in _inserts(rows):
                cursor.execute(f"INSERT INTO `{name}` VALUES ({', '.join(['%s'] * len(row))})", row)
            connection.commit()
        return True


async def insert_rows(connection: Any, rows: Rows) -> None:
    for name, row in _inserts(rows):
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await connection.execute(f'INSERT INTO "{name}" VALUES ({places})', *row)


async def migrate(url: str) -> None:
    async with ConversationStore.open(url, migrate=True):
        pass


def copy_sqlite_store(model: Path, path: Path) -> str:
    """Copy the file of an empty store, give the copy an identity of its own, and return its URL."""
    with closing(sqlite3.connect(model)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE letopis_store SET store_id = ?", (uuid.uuid4().bytes,))
    return f"sqlite:///{path.as_posix()}"


def _inserts(rows: Rows) -> Iterator[tuple[str, list[Any]]]:
    for table, found in rows.items():
        for row in found:
            values = list(row)
            if table == "letopis_store":
                new = uuid.uuid4()
                values[1] = new if isinstance(values[1], uuid.UUID) else new.bytes
            yield table, values


def _mariadb_tables(cursor: pymysql.cursors.Cursor) -> list[str]:
    cursor.execute("SHOW FULL TABLES")
    return sorted(f"{name}" for name, _ in cursor.fetchall())


def _mariadb_schema(cursor: pymysql.cursors.Cursor) -> str:
    """All that a test could change about a database and leave behind."""
    lines = []
    for name in _mariadb_tables(cursor):
        cursor.execute(f"SHOW CREATE TABLE `{name}`")
        lines.append(re.sub(r" AUTO_INCREMENT=\d+", "", cursor.fetchall()[0][1]))
    for statement in (
        "SHOW TRIGGERS",
        "SELECT routine_name FROM information_schema.routines WHERE routine_schema = DATABASE()",
        "SELECT @@character_set_database, @@collation_database",
    ):
        cursor.execute(statement)
        lines += sorted(map(repr, cursor.fetchall()))
    return "\n".join(lines)
