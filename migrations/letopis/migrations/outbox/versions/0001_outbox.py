"""The tables of the outbox file.

Revises: nothing
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
    CREATE TABLE letopis_outbox_events (
        position INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        event_id BLOB NOT NULL,
        conversation_id TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        type TEXT NOT NULL,
        schema_version INTEGER NOT NULL,
        data TEXT NOT NULL,
        metadata TEXT,
        digest BLOB NOT NULL,
        occurred_at INTEGER NOT NULL,
        appended_at INTEGER NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX uq_letopis_outbox_events_event_id ON letopis_outbox_events (event_id)",
    "CREATE UNIQUE INDEX uq_letopis_outbox_events_sequence ON letopis_outbox_events (conversation_id, sequence)",
    """
    CREATE TABLE letopis_outbox_hold (
        only INTEGER NOT NULL CONSTRAINT ck_letopis_outbox_hold_only CHECK (only = 1),
        since INTEGER NOT NULL,
        reason TEXT,
        held_by TEXT,
        PRIMARY KEY (only)
    )
    """,
    """
    CREATE TABLE letopis_outbox_incidents (
        incident_id BLOB NOT NULL,
        kind TEXT NOT NULL,
        conversation_id TEXT,
        owner_id TEXT,
        state TEXT NOT NULL,
        reason TEXT,
        events INTEGER NOT NULL,
        conversations INTEGER NOT NULL,
        ran INTEGER NOT NULL,
        number INTEGER NOT NULL,
        repeats INTEGER NOT NULL,
        why TEXT,
        mark INTEGER NOT NULL,
        outcome TEXT,
        opened_at INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        notified_at INTEGER,
        resolved_at INTEGER,
        revision INTEGER NOT NULL,
        PRIMARY KEY (incident_id),
        CONSTRAINT ck_letopis_outbox_incidents_state CHECK (state IN ('pending', 'firing', 'notified', 'resolved'))
    )
    """,
    """
    CREATE INDEX ix_letopis_outbox_incidents_resolved
    ON letopis_outbox_incidents (resolved_at)
    WHERE resolved_at IS NOT NULL
    """,
    """
    CREATE UNIQUE INDEX uq_letopis_outbox_incidents_open
    ON letopis_outbox_incidents (kind, coalesce(conversation_id, ''))
    WHERE resolved_at IS NULL
    """,
    """
    CREATE TABLE letopis_outbox_lanes (
        conversation_id TEXT NOT NULL,
        owner_id TEXT,
        head INTEGER NOT NULL,
        delivered INTEGER NOT NULL,
        pruned INTEGER NOT NULL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        due_at INTEGER NOT NULL,
        owed_since INTEGER,
        fault_class TEXT,
        fault TEXT,
        PRIMARY KEY (conversation_id),
        CONSTRAINT ck_letopis_outbox_lanes_order CHECK (delivered <= head AND pruned <= delivered),
        CONSTRAINT ck_letopis_outbox_lanes_state CHECK (state IN ('ready', 'retrying', 'blocked', 'paused'))
    )
    """,
    "CREATE INDEX ix_letopis_outbox_lanes_owed ON letopis_outbox_lanes (owed_since) WHERE delivered < head",
    """
    CREATE TABLE letopis_outbox_notices (
        incident_id BLOB NOT NULL,
        recipient TEXT NOT NULL,
        conversation_id TEXT,
        owner_id TEXT,
        word TEXT NOT NULL,
        number INTEGER NOT NULL,
        state TEXT NOT NULL,
        reached INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        due_at INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        closed_at INTEGER,
        PRIMARY KEY (incident_id, recipient),
        CONSTRAINT ck_letopis_outbox_notices_word CHECK (word IN ('stuck', 'recovered')),
        CONSTRAINT ck_letopis_outbox_notices_state CHECK (state IN ('telling', 'waiting', 'told', 'failed'))
    )
    """,
    "CREATE INDEX ix_letopis_outbox_notices_open ON letopis_outbox_notices (recipient) WHERE closed_at IS NULL",
    """
    CREATE TABLE letopis_outbox_origin (
        only INTEGER NOT NULL CONSTRAINT ck_letopis_outbox_origin_only CHECK (only = 1),
        origin_id BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        device TEXT NOT NULL,
        inode TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (only)
    )
    """,
    """
    CREATE TABLE letopis_outbox_relay (
        only INTEGER NOT NULL CONSTRAINT ck_letopis_outbox_relay_only CHECK (only = 1),
        incarnation INTEGER NOT NULL,
        holder TEXT NOT NULL,
        pid INTEGER NOT NULL,
        host TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        started_at INTEGER NOT NULL,
        heartbeat_at INTEGER NOT NULL,
        progress_at INTEGER NOT NULL,
        breaker TEXT NOT NULL,
        breaker_since INTEGER NOT NULL,
        breaker_reason TEXT,
        delivered_total INTEGER NOT NULL,
        PRIMARY KEY (only)
    )
    """,
    """
    CREATE TABLE letopis_outbox_repairs (
        repair_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        verb TEXT NOT NULL,
        conversation_id TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        event_id BLOB NOT NULL,
        type TEXT NOT NULL,
        schema_version INTEGER NOT NULL,
        data TEXT NOT NULL,
        metadata TEXT,
        digest BLOB NOT NULL,
        occurred_at INTEGER NOT NULL,
        reason TEXT NOT NULL,
        repaired_by TEXT,
        repaired_at INTEGER NOT NULL,
        CONSTRAINT ck_letopis_outbox_repairs_verb CHECK (verb IN ('fix', 'skip', 'restore'))
    )
    """,
    "CREATE INDEX ix_letopis_outbox_repairs_event_id ON letopis_outbox_repairs (event_id)",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables, with everything in them."""
    for table in (
        "letopis_outbox_repairs",
        "letopis_outbox_relay",
        "letopis_outbox_origin",
        "letopis_outbox_notices",
        "letopis_outbox_lanes",
        "letopis_outbox_incidents",
        "letopis_outbox_hold",
        "letopis_outbox_events",
    ):
        op.drop_table(table)
