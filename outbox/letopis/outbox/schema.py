"""The tables of the outbox file: the local event log, its lanes, and what the relay remembers.

The bot's own tables may live in the same file, so every name here starts with ``letopis_outbox_``. Times are UTC
microseconds since 1970.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

Id16: Final = sa.LargeBinary(16)

origin: Final = sa.Table(
    "letopis_outbox_origin",
    metadata,
    # One row: the file's identity. A copy of the file shows by its inode and goes on under the next epoch.
    sa.Column(
        "only", sa.Integer, sa.CheckConstraint("only = 1", name="ck_letopis_outbox_origin_only"), primary_key=True
    ),
    sa.Column("origin_id", Id16, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("inode", sa.Text, nullable=False),
    sa.Column("created_at", sa.Integer, nullable=False),
)

events: Final = sa.Table(
    "letopis_outbox_events",
    metadata,
    # AUTOINCREMENT: without it SQLite gives the position of a pruned event out again.
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("event_id", Id16, nullable=False),
    sa.Column("conversation_id", sa.Text, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("metadata", sa.Text),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("occurred_at", sa.Integer, nullable=False),
    sa.Column("appended_at", sa.Integer, nullable=False),
    sa.Index("uq_letopis_outbox_events_event_id", "event_id", unique=True),
    sa.Index("uq_letopis_outbox_events_sequence", "conversation_id", "sequence", unique=True),
    sqlite_autoincrement=True,
)

lanes: Final = sa.Table(
    "letopis_outbox_lanes",
    metadata,
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("owner_id", sa.Text),
    # Pending is what lies between: delivered < sequence <= head. Sequences start at 1 and are never used again.
    sa.Column("head", sa.Integer, nullable=False),
    sa.Column("delivered", sa.Integer, nullable=False),
    # Events up to here were pruned; the retained tail is what lies between pruned and delivered.
    sa.Column("pruned", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.Integer, nullable=False),
    sa.Column("owed_since", sa.Integer),
    sa.Column("fault_class", sa.Text),
    sa.Column("fault", sa.Text),
    sa.CheckConstraint("delivered <= head AND pruned <= delivered", name="ck_letopis_outbox_lanes_order"),
    sa.CheckConstraint("state IN ('ready', 'retrying', 'blocked', 'paused')", name="ck_letopis_outbox_lanes_state"),
    # What is owed, oldest first: the only lanes that the relay ever looks at.
    sa.Index("ix_letopis_outbox_lanes_owed", "owed_since", sqlite_where=sa.text("delivered < head")),
)

relay: Final = sa.Table(
    "letopis_outbox_relay",
    metadata,
    # One row, for people and for fencing; the lease itself is a lock of the operating system.
    sa.Column(
        "only", sa.Integer, sa.CheckConstraint("only = 1", name="ck_letopis_outbox_relay_only"), primary_key=True
    ),
    sa.Column("incarnation", sa.Integer, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("started_at", sa.Integer, nullable=False),
    sa.Column("heartbeat_at", sa.Integer, nullable=False),
    sa.Column("progress_at", sa.Integer, nullable=False),
    sa.Column("breaker", sa.Text, nullable=False),
    sa.Column("breaker_since", sa.Integer, nullable=False),
    sa.Column("breaker_reason", sa.Text),
    sa.Column("delivered_total", sa.Integer, nullable=False),
)

incidents: Final = sa.Table(
    "letopis_outbox_incidents",
    metadata,
    sa.Column("incident_id", Id16, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("conversation_id", sa.Text),
    sa.Column("owner_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("events", sa.Integer, nullable=False),
    sa.Column("opened_at", sa.Integer, nullable=False),
    sa.Column("changed_at", sa.Integer, nullable=False),
    sa.Column("notified_at", sa.Integer),
    sa.Column("notices", sa.Integer, nullable=False),
    sa.Column("resolved_at", sa.Integer),
    # At most one open incident a key, whichever process raises it.
    sa.Index(
        "uq_letopis_outbox_incidents_open",
        "kind",
        sa.text("coalesce(conversation_id, '')"),
        unique=True,
        sqlite_where=sa.text("resolved_at IS NULL"),
    ),
)
