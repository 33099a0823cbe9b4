"""Configure Alembic for the history store: where the database is, and which tables are Letopis's."""

from __future__ import annotations

import asyncio
import os
from logging.config import fileConfig
from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.database.engines import create_store_engine
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import StoreFault
from letopis.store.database.migrations import exclude_other_migrations
from letopis.store.database.schema import metadata
from letopis.store.database.timeouts import Timeouts
from letopis.store.database.urls import normalise_url
from letopis.store.errors import ConfigurationError

config = context.config


def database_url() -> sa.URL:
    """Return the URL from ``-x url=``, ``LETOPIS_STORE`` or ``sqlalchemy.url`` in the ini file, in this order."""
    given = context.get_x_argument(as_dictionary=True).get("url")
    given_url = given or os.environ.get("LETOPIS_STORE") or config.get_main_option("sqlalchemy.url")
    if not given_url:
        raise SystemExit("no database: give `-x url=...`, set LETOPIS_STORE, or sqlalchemy.url in alembic.ini")
    try:
        return normalise_url(given_url)
    except ConfigurationError as error:
        raise SystemExit(str(error)) from None


def include_name(name: str | None, kind: str, _parents: Any) -> bool:
    """Exclude the bot's own tables and those of the outbox."""
    return kind != "table" or name in metadata.tables


def include_object(item: Any, _name: str | None, _kind: str, _reflected: bool, _other: Any) -> bool:
    """Exclude an index that this kind of database has in another form."""
    return bool(item.info.get("not_on") != context.get_context().dialect.name)


def configure(**options: Any) -> None:
    """Configure the run, wherever the connection comes from."""
    partitions = context.get_x_argument(as_dictionary=True).get("partitions")
    if partitions is not None:
        config.attributes["partitions"] = int(partitions)
    context.configure(
        target_metadata=metadata,
        version_table=config.attributes.get("version_table", "letopis_version"),
        include_name=include_name,
        include_object=include_object,
        **options,
    )


def migrate(connection: sa.Connection) -> None:
    """Migrate over an open connection, inside its transaction."""
    configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


def migrate_alone(connection: sa.Connection) -> None:
    """Migrate while other processes wait."""
    with exclude_other_migrations(connection):
        migrate(connection)


async def check_reachable(engine: AsyncEngine) -> None:
    """Exit with one line if the database cannot be reached, instead of the driver's traceback."""
    try:
        with translated():
            async with engine.connect():
                pass  # it stays in the pool for the migration
    except StoreFault as fault:
        raise SystemExit(str(fault)) from None


async def migrate_by_url() -> None:
    """Migrate the database that the URL names, in one transaction if the database supports that."""
    # A statement may have to rebuild a table of any size.
    engine = create_store_engine(database_url(), timeouts=Timeouts(statement=24 * 3600.0, lock=60.0), pool_size=1)
    try:
        await check_reachable(engine)
        async with engine.begin() as connection:
            await connection.run_sync(migrate_alone)
    finally:
        await engine.dispose()


def main() -> None:
    """Migrate, or print the SQL."""
    # A minimal ini file does not configure logging.
    if config.config_file_name is not None and config.file_config.has_section("formatters"):
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    if context.is_offline_mode():
        configure(url=database_url(), literal_binds=True, dialect_opts={"paramstyle": "named"})
        with context.begin_transaction():
            context.run_migrations()
    elif (connection := config.attributes.get("connection")) is not None:
        migrate(connection)
    else:
        asyncio.run(migrate_by_url())


main()
