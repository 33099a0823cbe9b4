"""Drafts, unconfirmed replies, active conversations, and what was put aside, redacted or deleted.

Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE letopis_outbox_events ADD COLUMN redacted INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE letopis_outbox_lanes ADD COLUMN deleted INTEGER DEFAULT '0' NOT NULL",
    """
    CREATE TABLE letopis_outbox_drafts (
        conversation_id TEXT NOT NULL,
        message_id TEXT NOT NULL,
        event_id BLOB NOT NULL,
        owner_id TEXT,
        data TEXT NOT NULL,
        writer TEXT NOT NULL,
        started_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (conversation_id, message_id)
    )
    """,
    """
    CREATE TABLE letopis_outbox_owners (
        owner_id TEXT NOT NULL,
        active_conversation_id TEXT NOT NULL,
        activated_order INTEGER NOT NULL,
        PRIMARY KEY (owner_id)
    )
    """,
    """
    CREATE TABLE letopis_outbox_superseded (
        conversation_id TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        event_id BLOB NOT NULL,
        expected INTEGER NOT NULL,
        actual INTEGER NOT NULL,
        PRIMARY KEY (conversation_id, sequence)
    )
    """,
    "CREATE INDEX ix_letopis_outbox_superseded_event_id ON letopis_outbox_superseded (event_id)",
    """
    CREATE TABLE letopis_outbox_unconfirmed (
        conversation_id TEXT NOT NULL,
        message_id TEXT NOT NULL,
        event_id BLOB NOT NULL,
        owner_id TEXT,
        writer TEXT NOT NULL,
        appended_at INTEGER NOT NULL,
        PRIMARY KEY (conversation_id, message_id)
    )
    """,
)


def upgrade() -> None:
    """Add the tables and columns."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drop them; replies that are being written are lost with their drafts."""
    for table in ("unconfirmed", "superseded", "owners", "drafts"):
        op.drop_table(f"letopis_outbox_{table}")
    op.execute("ALTER TABLE letopis_outbox_lanes DROP COLUMN deleted")
    op.execute("ALTER TABLE letopis_outbox_events DROP COLUMN redacted")
