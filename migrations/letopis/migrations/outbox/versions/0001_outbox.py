"""Create the tables of the outbox file.

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
        position INTEGER NOT NULL,
        event_id BLOB NOT NULL,
        lane INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        type TEXT NOT NULL,
        schema_version INTEGER NOT NULL,
        data TEXT NOT NULL,
        metadata TEXT,
        digest BLOB NOT NULL,
        salt BLOB,
        occurred_at INTEGER NOT NULL,
        appended_at INTEGER NOT NULL,
        redacted INTEGER DEFAULT '0' NOT NULL,
        PRIMARY KEY (position)
    )
    """,
    "CREATE UNIQUE INDEX uq_letopis_outbox_events_sequence ON letopis_outbox_events (lane, sequence)",
    """
    CREATE TABLE letopis_outbox_event_ids (
        event_id BLOB NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (event_id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE letopis_outbox_pause (
        only INTEGER NOT NULL CONSTRAINT ck_letopis_outbox_pause_only CHECK (only = 1),
        since INTEGER NOT NULL,
        reason TEXT,
        paused_by TEXT,
        PRIMARY KEY (only)
    )
    """,
    """
    CREATE TABLE letopis_outbox_incidents (
        incident_id BLOB NOT NULL,
        kind TEXT NOT NULL,
        conversation_id TEXT,
        state TEXT NOT NULL,
        reason TEXT,
        escalations INTEGER NOT NULL,
        mark INTEGER NOT NULL,
        outcome TEXT,
        opened_at INTEGER NOT NULL,
        resolved_at INTEGER,
        revision INTEGER NOT NULL,
        PRIMARY KEY (incident_id),
        CONSTRAINT ck_letopis_outbox_incidents_state CHECK (state IN ('pending', 'firing', 'resolved'))
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
        lane INTEGER NOT NULL,
        conversation_id TEXT NOT NULL,
        owner_id TEXT,
        head INTEGER NOT NULL,
        delivered INTEGER NOT NULL,
        pruned INTEGER NOT NULL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        due_at INTEGER NOT NULL,
        pending_since INTEGER,
        fault_class TEXT,
        fault TEXT,
        deleted_at INTEGER DEFAULT '0' NOT NULL,
        reset_at INTEGER DEFAULT '0' NOT NULL,
        trim_before INTEGER DEFAULT '0' NOT NULL,
        erased_before INTEGER DEFAULT '0' NOT NULL,
        PRIMARY KEY (lane),
        CONSTRAINT uq_letopis_outbox_lanes_conversation_id UNIQUE (conversation_id),
        CONSTRAINT ck_letopis_outbox_lanes_order CHECK (delivered <= head AND pruned <= delivered),
        CONSTRAINT ck_letopis_outbox_lanes_pending CHECK (delivered = head OR pending_since IS NOT NULL),
        CONSTRAINT ck_letopis_outbox_lanes_state CHECK (state IN ('ready', 'retrying', 'blocked', 'paused'))
    )
    """,
    (
        "CREATE INDEX ix_letopis_outbox_lanes_pending ON letopis_outbox_lanes (pending_since)"
        " WHERE pending_since IS NOT NULL"
    ),
    "CREATE INDEX ix_letopis_outbox_lanes_blocked ON letopis_outbox_lanes (conversation_id) WHERE state = 'blocked'",
    """
    CREATE INDEX ix_letopis_outbox_lanes_unerased ON letopis_outbox_lanes (erased_before)
        WHERE erased_before < max(deleted_at, reset_at, trim_before)
    """,
    """
    CREATE TABLE letopis_outbox_notifications (
        incident_id BLOB NOT NULL,
        recipient TEXT NOT NULL,
        conversation_id TEXT,
        kind TEXT NOT NULL,
        escalations INTEGER NOT NULL,
        number INTEGER NOT NULL,
        state TEXT NOT NULL,
        told_at INTEGER,
        attempts INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        PRIMARY KEY (incident_id, recipient),
        CONSTRAINT ck_letopis_outbox_notifications_kind CHECK (kind IN ('stuck', 'recovered')),
        CONSTRAINT ck_letopis_outbox_notifications_state
        CHECK (state IN ('sending', 'retrying', 'sent', 'failed'))
    )
    """,
    """
    CREATE INDEX ix_letopis_outbox_notifications_active
    ON letopis_outbox_notifications (recipient)
    WHERE kind = 'stuck' OR state = 'retrying'
    """,
    """
    CREATE TABLE letopis_outbox_origin (
        only INTEGER NOT NULL CONSTRAINT ck_letopis_outbox_origin_only CHECK (only = 1),
        origin_id BLOB NOT NULL,
        epoch INTEGER NOT NULL,
        device TEXT NOT NULL,
        inode TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        store_id BLOB,
        destination TEXT,
        indexed INTEGER DEFAULT '0' NOT NULL,
        uncounted INTEGER DEFAULT '0' NOT NULL,
        erasures INTEGER DEFAULT '0' NOT NULL,
        erasure_id BLOB,
        acknowledged INTEGER DEFAULT '1' NOT NULL,
        PRIMARY KEY (only)
    )
    """,
    """
    CREATE TABLE letopis_outbox_erasures (
        erasure_id BLOB NOT NULL,
        number INTEGER NOT NULL,
        state TEXT NOT NULL,
        upto INTEGER NOT NULL,
        erasure TEXT,
        PRIMARY KEY (erasure_id)
    ) WITHOUT ROWID
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
        breaker_detail TEXT,
        next_attempt_at INTEGER,
        store_tasks INTEGER DEFAULT '0' NOT NULL,
        store_rows INTEGER DEFAULT '0' NOT NULL,
        erasures TEXT,
        trimmed INTEGER DEFAULT '0' NOT NULL,
        checkpoints INTEGER DEFAULT '0' NOT NULL,
        retained_at INTEGER,
        retention_due INTEGER DEFAULT '0' NOT NULL,
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
        salt BLOB,
        occurred_at INTEGER NOT NULL,
        reason TEXT NOT NULL,
        repaired_by TEXT,
        repaired_at INTEGER NOT NULL,
        CONSTRAINT ck_letopis_outbox_repairs_verb CHECK (verb IN ('fix', 'skip', 'restore'))
    )
    """,
    "CREATE INDEX ix_letopis_outbox_repairs_event_id ON letopis_outbox_repairs (event_id)",
    """
    CREATE TABLE letopis_outbox_audit (
        entry_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        occurred_at INTEGER NOT NULL,
        action TEXT NOT NULL,
        outcome TEXT NOT NULL,
        conversation_id TEXT,
        event_id BLOB,
        conversations INTEGER NOT NULL,
        reason TEXT,
        actor TEXT,
        via TEXT NOT NULL
    )
    """,
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
    CREATE VIEW letopis_outbox_log AS
    SELECT e.position, e.event_id, e.lane, l.conversation_id, e.sequence, e.type, e.schema_version, e.data, e.metadata,
        e.digest, e.salt, e.occurred_at, e.appended_at, e.redacted
    FROM letopis_outbox_lanes AS l JOIN letopis_outbox_events AS e ON e.lane = l.lane
    """,
    """
    CREATE VIEW letopis_outbox_known_ids AS
    SELECT event_id, position FROM letopis_outbox_event_ids
    UNION ALL
    SELECT event_id, position FROM letopis_outbox_events
    WHERE position > (SELECT indexed FROM letopis_outbox_origin)
    """,
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

RECORDS = (
    """
    CREATE TABLE letopis_outbox_records (
        lane INTEGER NOT NULL,
        namespace BLOB NOT NULL,
        record_key BLOB NOT NULL,
        sequence INTEGER NOT NULL,
        position INTEGER NOT NULL,
        event_id BLOB NOT NULL,
        present INTEGER NOT NULL,
        conditional INTEGER NOT NULL,
        media TEXT NOT NULL,
        size INTEGER NOT NULL,
        tags TEXT,
        occurred_at INTEGER NOT NULL,
        PRIMARY KEY (lane, namespace, record_key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX ix_letopis_outbox_records_sequence ON letopis_outbox_records (lane, sequence)",
    """
    CREATE TABLE letopis_outbox_record_bodies (
        position INTEGER NOT NULL,
        size INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (position)
    )
    """,
    """
    CREATE TABLE letopis_outbox_contents (
        lane INTEGER NOT NULL,
        name TEXT NOT NULL,
        first_position INTEGER NOT NULL,
        position INTEGER NOT NULL,
        size INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (lane, name)
    )
    """,
    """
    CREATE TABLE letopis_outbox_record_clears (
        position INTEGER NOT NULL,
        lane INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        prefix BLOB NOT NULL,
        PRIMARY KEY (position)
    )
    """,
    "CREATE INDEX ix_letopis_outbox_record_clears_lane ON letopis_outbox_record_clears (lane, sequence)",
    # Whatever prunes, skips or renumbers events need not know of records. Messages pay nothing: no trigger is for
    # inserts, and the condition is false for their types.
    """
    CREATE TRIGGER letopis_outbox_record_pruned AFTER DELETE ON letopis_outbox_events
    WHEN OLD.type LIKE 'record.%' OR OLD.type = 'event.skipped'
    BEGIN
        DELETE FROM letopis_outbox_record_bodies WHERE position = OLD.position;
        DELETE FROM letopis_outbox_record_clears WHERE position = OLD.position;
        DELETE FROM letopis_outbox_records WHERE lane = OLD.lane AND sequence = OLD.sequence;
    END
    """,
    """
    CREATE TRIGGER letopis_outbox_record_skipped AFTER UPDATE OF type ON letopis_outbox_events
    WHEN OLD.type LIKE 'record.%' AND NEW.type NOT LIKE 'record.%'
    BEGIN
        DELETE FROM letopis_outbox_record_clears WHERE position = OLD.position;
        DELETE FROM letopis_outbox_records WHERE lane = OLD.lane AND sequence = OLD.sequence;
    END
    """,
    """
    CREATE TRIGGER letopis_outbox_record_renumbered AFTER UPDATE OF sequence ON letopis_outbox_events
    WHEN OLD.type LIKE 'record.%' AND NEW.sequence <> OLD.sequence
    BEGIN
        UPDATE letopis_outbox_record_clears SET sequence = NEW.sequence WHERE position = OLD.position;
        UPDATE letopis_outbox_records SET sequence = NEW.sequence WHERE lane = OLD.lane AND sequence = OLD.sequence;
    END
    """,
    # What the history store has put aside is not what this outbox may tell of the record.
    """
    CREATE TRIGGER letopis_outbox_record_superseded AFTER INSERT ON letopis_outbox_superseded
    WHEN NEW.conversation_id < char(2)
    BEGIN
        DELETE FROM letopis_outbox_records WHERE sequence = NEW.sequence
            AND lane = (SELECT lane FROM letopis_outbox_lanes WHERE conversation_id = NEW.conversation_id);
    END
    """,
)


def upgrade() -> None:
    """Create the tables."""
    for statement in (*TABLES, *RECORDS):
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables, with everything in them."""
    op.execute("DROP VIEW letopis_outbox_known_ids")
    op.execute("DROP VIEW letopis_outbox_log")
    tables = (
        "record_clears contents record_bodies records audit"
        " unconfirmed superseded owners drafts repairs relay origin notifications lanes incidents pause event_ids"
        " events"
    )
    for table in tables.split():
        op.drop_table(f"letopis_outbox_{table}")
