"""Alembic's environment of the outbox file, which its program migrates itself when it opens it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from letopis.outbox.schema import metadata

config = context.config


def main() -> None:
    """Migrate over the connection that was given, or print the SQL of it."""
    options = {
        "target_metadata": metadata,
        "version_table": config.attributes.get("version_table", "letopis_outbox_version"),
        # The bot's own tables live in the same file.
        "include_name": lambda name, kind, _parents: kind != "table" or name in metadata.tables,
    }
    connection: sa.Connection | None = config.attributes.get("connection")
    if connection is not None:
        context.configure(connection=connection, **options)
    elif context.is_offline_mode():
        context.configure(url="sqlite://", literal_binds=True, **options)
    else:
        raise SystemExit("an outbox file migrates itself when it is opened: use `letopis init`, or `--sql` to read it")
    with context.begin_transaction():
        context.run_migrations()


main()
