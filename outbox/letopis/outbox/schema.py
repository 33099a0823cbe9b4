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
    # 1: its content was taken away by a redaction or a deletion, after it was appended.
    sa.Column("redacted", sa.Integer, nullable=False, server_default="0"),
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
    # The sequence of the event that deleted the conversation, 0 while it lives: nothing is appended after it.
    sa.Column("deleted", sa.Integer, nullable=False, server_default="0"),
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
    sa.Column("conversations", sa.Integer, nullable=False),
    # Microseconds that processes have watched it in its present state: no clock jump adds to it, no restart resets it.
    sa.Column("ran", sa.Integer, nullable=False),
    # Which alert operators are due: 1 once it fires, one more for each repeat and escalation; and why the last one.
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("repeats", sa.Integer, nullable=False),
    sa.Column("why", sa.Text),
    # A conversation: the sequence whose delivery ends it. Others: the position up to which what is owed is part of it.
    sa.Column("mark", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("opened_at", sa.Integer, nullable=False),
    sa.Column("changed_at", sa.Integer, nullable=False),
    sa.Column("notified_at", sa.Integer),
    sa.Column("resolved_at", sa.Integer),
    # One more with each change: an UPDATE names the revision it was decided on, so two processes never both win.
    sa.Column("revision", sa.Integer, nullable=False),
    sa.CheckConstraint(
        "state IN ('pending', 'firing', 'notified', 'resolved')", name="ck_letopis_outbox_incidents_state"
    ),
    # At most one open incident a key, whichever process raises it.
    sa.Index(
        "uq_letopis_outbox_incidents_open",
        "kind",
        sa.text("coalesce(conversation_id, '')"),
        unique=True,
        sqlite_where=sa.text("resolved_at IS NULL"),
    ),
    sa.Index("ix_letopis_outbox_incidents_resolved", "resolved_at", sqlite_where=sa.text("resolved_at IS NOT NULL")),
)

notices: Final = sa.Table(
    "letopis_outbox_notices",
    metadata,
    # Who was told what: one row an incident and recipient, so that a restart or a second process tells nobody twice.
    sa.Column("incident_id", Id16, primary_key=True),
    sa.Column("recipient", sa.Text, primary_key=True),
    sa.Column("conversation_id", sa.Text),
    sa.Column("owner_id", sa.Text),
    sa.Column("word", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # 0 no, 1 perhaps (the process died or the call timed out while telling), 2 yes: only who heard hears the end.
    sa.Column("reached", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.Integer, nullable=False),
    sa.Column("changed_at", sa.Integer, nullable=False),
    # Set once nothing is left to say to this recipient.
    sa.Column("closed_at", sa.Integer),
    sa.CheckConstraint("word IN ('stuck', 'recovered')", name="ck_letopis_outbox_notices_word"),
    sa.CheckConstraint("state IN ('telling', 'waiting', 'told', 'failed')", name="ck_letopis_outbox_notices_state"),
    sa.Index("ix_letopis_outbox_notices_open", "recipient", sqlite_where=sa.text("closed_at IS NULL")),
)

repairs: Final = sa.Table(
    "letopis_outbox_repairs",
    metadata,
    # What a person did to a stuck event, and the event as it was: fixing and skipping destroy nothing.
    sa.Column("repair_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("verb", sa.Text, nullable=False),
    sa.Column("conversation_id", sa.Text, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("event_id", Id16, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("metadata", sa.Text),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("occurred_at", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("repaired_by", sa.Text),
    sa.Column("repaired_at", sa.Integer, nullable=False),
    sa.CheckConstraint("verb IN ('fix', 'skip', 'restore')", name="ck_letopis_outbox_repairs_verb"),
    sa.Index("ix_letopis_outbox_repairs_event_id", "event_id"),
    sqlite_autoincrement=True,
)

hold: Final = sa.Table(
    "letopis_outbox_hold",
    metadata,
    # One row while a person holds the whole relay back, none otherwise.
    sa.Column("only", sa.Integer, sa.CheckConstraint("only = 1", name="ck_letopis_outbox_hold_only"), primary_key=True),
    sa.Column("since", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("held_by", sa.Text),
)

owners: Final = sa.Table(
    "letopis_outbox_owners",
    metadata,
    # The conversation that this outbox made active last, by owner: it outlives the event that did.
    sa.Column("owner_id", sa.Text, primary_key=True),
    sa.Column("active_conversation_id", sa.Text, nullable=False),
    # The order that the activation carries; see `letopis.order` in the metadata of events.
    sa.Column("activated_order", sa.Integer, nullable=False),
)

drafts: Final = sa.Table(
    "letopis_outbox_drafts",
    metadata,
    # Replies that are being written, outside the log: one becomes a message at its end, or after a crash.
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("message_id", sa.Text, primary_key=True),
    sa.Column("event_id", Id16, nullable=False),
    sa.Column("owner_id", sa.Text),
    # The data of the message as JSON, with the text so far.
    sa.Column("data", sa.Text, nullable=False),
    # Who writes it: while that one lives, the draft is nobody else's affair.
    sa.Column("writer", sa.Text, nullable=False),
    sa.Column("started_at", sa.Integer, nullable=False),
    sa.Column("updated_at", sa.Integer, nullable=False),
)

unconfirmed: Final = sa.Table(
    "letopis_outbox_unconfirmed",
    metadata,
    # Replies that were appended to be sent, and of which nobody has said yet that they were or were not.
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("message_id", sa.Text, primary_key=True),
    sa.Column("event_id", Id16, nullable=False),
    sa.Column("owner_id", sa.Text),
    sa.Column("writer", sa.Text, nullable=False),
    sa.Column("appended_at", sa.Integer, nullable=False),
)

superseded: Final = sa.Table(
    "letopis_outbox_superseded",
    metadata,
    # Events that the history store has put aside, because another writer's turn came first; kept as long as the lane.
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("event_id", Id16, nullable=False),
    # The version that the writer had seen, and that of the event that came in between.
    sa.Column("expected", sa.Integer, nullable=False),
    sa.Column("actual", sa.Integer, nullable=False),
    sa.Index("ix_letopis_outbox_superseded_event_id", "event_id"),
)
