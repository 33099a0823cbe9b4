"""The tables of the history store.

Revises: nothing
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql, postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

identifier = (
    sa.String(255)
    .with_variant(sa.String(255, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
)
name = (
    sa.String(64)
    .with_variant(sa.String(64, collation="C"), "postgresql")
    .with_variant(mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
)
json = sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
uuid16 = (
    sa.LargeBinary(16)
    .with_variant(postgresql.UUID(as_uuid=True), "postgresql")
    .with_variant(mysql.BINARY(16), "mysql", "mariadb")
)
digest = sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def create(table: str, *columns: sa.Column[Any], key: tuple[str, ...], comment: str) -> None:
    """Create a table, unless an upgrade that was cut off has done it (MariaDB commits each table by itself)."""
    op.create_table(
        table,
        *columns,
        sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"),
        comment=comment,
        if_not_exists=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )


def key_column(column: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    """Return a column of a primary key, whose values the database must not make."""
    return sa.Column(column, kind, autoincrement=False, nullable=False)


def upgrade() -> None:
    """Create the tables, and the counters of the log's partitions."""
    create(
        "letopis_log_heads",
        key_column("partition", sa.Integer()),
        sa.Column("position", sa.BigInteger(), nullable=False),
        key=("partition",),
        comment="One row a partition, fixed when the store is created: the position given out last.",
    )
    create(
        "letopis_origins",
        key_column("origin_id", uuid16),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        key=("origin_id",),
        comment="The outbox files that deliver here.",
    )
    create(
        "letopis_lanes",
        key_column("partition", sa.Integer()),
        key_column("conversation_id", identifier),
        key_column("origin_id", uuid16),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        key=("partition", "conversation_id", "origin_id"),
        comment="How far each outbox has got in each conversation: what makes a delivery take effect once.",
    )
    create(
        "letopis_conversations",
        key_column("partition", sa.Integer()),
        key_column("conversation_id", identifier),
        sa.Column("owner_id", identifier),
        sa.Column("number", sa.BigInteger()),
        sa.Column("title", json),
        sa.Column("state", name, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("message_count", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("forked_from_id", identifier),
        sa.Column("forked_from_version", sa.BigInteger()),
        key=("partition", "conversation_id"),
        comment="One row a conversation, folded from its events.",
    )
    create(
        "letopis_events",
        key_column("partition", sa.Integer()),
        key_column("position", sa.BigInteger()),
        sa.Column("conversation_id", identifier, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("event_id", uuid16, nullable=False),
        sa.Column("origin_id", uuid16, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("type", name, nullable=False),
        sa.Column("schema_version", sa.SmallInteger(), nullable=False),
        sa.Column("data", json, nullable=False),
        sa.Column("metadata", json),
        sa.Column("digest", digest),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        key=("partition", "position"),
        comment="The log. Rows are never changed but by redaction.",
    )
    create(
        "letopis_messages",
        key_column("partition", sa.Integer()),
        key_column("conversation_id", identifier),
        key_column("version", sa.BigInteger()),
        sa.Column("message_id", identifier, nullable=False),
        sa.Column("content_version", sa.BigInteger(), nullable=False),
        sa.Column("delivery_version", sa.BigInteger()),
        sa.Column("role", name, nullable=False),
        sa.Column("state", name, nullable=False),
        key=("partition", "conversation_id", "version"),
        comment="An index over the log: which event holds a message, its current content and its delivery.",
    )
    create(
        "letopis_owners",
        key_column("owner_id", identifier),
        sa.Column("active_conversation_id", identifier),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        key=("owner_id",),
        comment="One row an owner: the active conversation, and the number that the next one gets.",
    )
    for index, table, columns, unique in (
        (
            "ix_letopis_conversations_owner",
            "letopis_conversations",
            ["owner_id", "updated_at", "conversation_id"],
            False,
        ),
        ("ix_letopis_conversations_updated", "letopis_conversations", ["updated_at", "conversation_id"], False),
        ("uq_letopis_events_version", "letopis_events", ["partition", "conversation_id", "version"], True),
        ("uq_letopis_events_event_id", "letopis_events", ["partition", "conversation_id", "event_id"], True),
        ("ix_letopis_messages_message_id", "letopis_messages", ["partition", "conversation_id", "message_id"], False),
    ):
        op.create_index(index, table, columns, unique=unique, if_not_exists=True)

    heads = sa.table("letopis_log_heads", sa.column("partition", sa.Integer), sa.column("position", sa.BigInteger))
    counters = [{"partition": number, "position": 0} for number in range(partitions())]
    if not context.is_offline_mode():
        there = set(op.get_bind().execute(sa.select(heads.c.partition)).scalars())
        counters = [counter for counter in counters if counter["partition"] not in there]
    if counters:
        op.bulk_insert(heads, counters)


def partitions() -> int:
    """Return how many partitions the log gets: fixed here, for the life of the store."""
    number = int(context.config.attributes.get("partitions", 1))
    if not 1 <= number <= 1024:
        raise ValueError("partitions must be between 1 and 1024")
    return number


def downgrade() -> None:
    """Drop the tables, and the history with them."""
    for table in ("owners", "messages", "events", "conversations", "lanes", "origins", "log_heads"):
        op.drop_table(f"letopis_{table}")
