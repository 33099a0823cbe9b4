"""Give faults a database of a real server with one table, and what an operator would do to it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import StoreFault
from letopis.store.database.timeouts import Timeouts

SHORT_TIMEOUTS: Final = Timeouts(connect=1.0, statement=0.5, lock=1.0)


@dataclass(frozen=True, slots=True)
class Bench:
    """A database with the table ``probe``, and an engine on it."""

    kind: str
    url: str
    engine: AsyncEngine
    admin: Callable[[str], None]

    @property
    def postgresql(self) -> bool:
        return self.kind == "postgresql"

    @property
    def port(self) -> int:
        return int(make_url(self.url).port or 0)

    def either(self, postgresql: str, mariadb: str) -> str:
        return postgresql if self.postgresql else mariadb

    def changed(self, **fields: Any) -> str:
        return make_url(self.url).set(**fields).render_as_string(hide_password=False)

    async def make_table(self) -> None:
        await self.run(
            "DROP TABLE IF EXISTS probe",
            "CREATE TABLE probe (id INT PRIMARY KEY, body VARCHAR(10) NOT NULL, number INT, CHECK (number < 100))",
            "INSERT INTO probe VALUES (1, 'one', 1), (2, 'two', 2)",
        )

    async def run(self, *statements: str, engine: AsyncEngine | None = None) -> None:
        async with (engine or self.engine).begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)

    async def at(self, url: str, *statements: str) -> None:
        engine = create_store_engine(url, timeouts=SHORT_TIMEOUTS, pool_size=1)
        try:
            await self.run(*(statements or ("SELECT 1",)), engine=engine)
        finally:
            await engine.dispose()

    async def session(self, connection: Any) -> int:
        asks = self.either("SELECT pg_backend_pid()", "SELECT CONNECTION_ID()")
        return int((await connection.exec_driver_sql(asks)).scalar_one())

    async def kill(self, session: int) -> None:
        await asyncio.to_thread(
            self.admin, self.either(f"SELECT pg_terminate_backend({session})", f"KILL CONNECTION {session}")
        )
        await asyncio.sleep(0.1)


async def ask(url: str, statement: str = "SELECT 1", **options: Any) -> Any:
    engine = create_store_engine(url, pool_size=1, **options)
    try:
        with translated():
            async with engine.connect() as connection:
                return (await connection.exec_driver_sql(statement)).scalar_one()
    finally:
        await engine.dispose()


async def fault_at(url: str, statement: str = "SELECT 1", **options: Any) -> StoreFault:
    with pytest.raises(StoreFault) as caught:
        await ask(url, statement, **options)
    return caught.value
