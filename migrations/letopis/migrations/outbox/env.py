"""Configure Alembic for the outbox file, which is migrated when it is opened."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from letopis.outbox.event_log.schema import metadata

config = context.config


def main() -> None:
    """Migrate over the given connection, or print the SQL."""
    options = {
        "target_metadata": metadata,
        "version_table": config.attributes.get("version_table", "letopis_outbox_version"),
        # The bot's own tables are in the same file.
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
