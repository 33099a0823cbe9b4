"""Paths, forks, reactions, redactions and deletions, and the checkpoints of projections.

Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql, postgresql

revision = "0002"
down_revision = "0001"
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

COLUMNS = (
    ("letopis_conversations", "metadata", json, None),
    ("letopis_conversations", "forked_from_event", uuid16, None),
    ("letopis_conversations", "inherits", sa.SmallInteger(), "0"),
    ("letopis_conversations", "inherited_to", identifier, None),
    ("letopis_conversations", "retained", sa.BigInteger(), "0"),
    ("letopis_conversations", "rules", sa.SmallInteger(), "1"),
    ("letopis_messages", "left_at", sa.BigInteger(), None),
    ("letopis_messages", "redacted_at", sa.BigInteger(), None),
    ("letopis_messages", "reactions", json, None),
    ("letopis_owners", "activated_by", uuid16, None),
    ("letopis_owners", "activated_order", sa.BigInteger(), None),
)
FORKED = "ix_letopis_conversations_forked"


def upgrade() -> None:
    """Add the columns and the table; each unless an upgrade that was cut off has done it (MariaDB commits each)."""
    for table, column, kind, default in COLUMNS:
        if column not in columns_of(table):
            op.add_column(table, sa.Column(column, kind, nullable=default is None, server_default=default))
    op.create_index(FORKED, "letopis_conversations", ["forked_from_id"], if_not_exists=True)
    op.create_table(
        "letopis_checkpoints",
        sa.Column("name", name, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("replay_to", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "partition", name="pk_letopis_checkpoints"),
        comment="How far each version of each catch-up projection has read each partition of the log.",
        if_not_exists=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
    )


def columns_of(table: str) -> set[str]:
    """Return the columns that a table has already; none where there is no database to look at."""
    if context.is_offline_mode():
        return set()
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}


def downgrade() -> None:
    """Drop what was added; the log keeps the events, a later upgrade and rebuild bring the rest back."""
    op.drop_table("letopis_checkpoints")
    op.drop_index(FORKED, "letopis_conversations")
    for table, column, _, _ in reversed(COLUMNS):
        op.drop_column(table, column)
