"""The tables of the outbox file, all ``letopis_outbox_*`` beside the bot's own; times are UTC microseconds."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

Id16: Final = sa.LargeBinary(16)

origin: Final = sa.Table(
    "letopis_outbox_origin",
    metadata,
    # One row: the file's identity. A copy of the file has another inode and continues under the next epoch.
    sa.Column(
        "only", sa.Integer, sa.CheckConstraint("only = 1", name="ck_letopis_outbox_origin_only"), primary_key=True
    ),
    sa.Column("origin_id", Id16, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("inode", sa.Text, nullable=False),
    sa.Column("created_at", sa.Integer, nullable=False),
    # The identity of the history store that this outbox delivers to, set by its first delivery.
    sa.Column("store_id", Id16),
    # Where the bot that opened it wants it delivered: kind, host and database, without secrets.
    sa.Column("destination", sa.Text),
    # The position up to which the ids of events are in `event_ids`; raised to the last one before events are deleted.
    sa.Column("indexed", sa.Integer, nullable=False, server_default="0"),
    # Positions that no head of a lane counts: of tombstones of lost events, and of lanes that began again at 1.
    sa.Column("uncounted", sa.Integer, nullable=False, server_default="0"),
    # The last erasure of the store that this file was compared with, and carried out; 1 once the store knows that.
    sa.Column("erasures", sa.Integer, nullable=False, server_default="0"),
    sa.Column("erasure_id", Id16),
    sa.Column("acknowledged", sa.Integer, nullable=False, server_default="1"),
)

erasures: Final = sa.Table(
    "letopis_outbox_erasures",
    metadata,
    # The erasures of the store that this file knows, in one of the states of `known_erasures.ErasureState`.
    sa.Column("erasure_id", Id16, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # The position up to which it reaches. What was appended since is new words.
    sa.Column("upto", sa.Integer, nullable=False),
    # As the store records it, in JSON: to record it again in a store that was restored from before it.
    sa.Column("erasure", sa.Text),
    sqlite_with_rowid=False,
)

events: Final = sa.Table(
    "letopis_outbox_events",
    metadata,
    # Never used again: events after `origin.indexed` are not pruned, so the next position comes after both.
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("event_id", Id16, nullable=False),
    # The key of its lane. The view `letopis_outbox_log` has the conversation id beside it.
    sa.Column("lane", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("metadata", sa.Text),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    # Erased with the content, while the digest stays.
    sa.Column("salt", sa.LargeBinary(16)),
    sa.Column("occurred_at", sa.Integer, nullable=False),
    sa.Column("appended_at", sa.Integer, nullable=False),
    # 1: its content was erased by a redaction or a deletion, after it was appended.
    sa.Column("redacted", sa.Integer, nullable=False, server_default="0"),
    sa.Index("uq_letopis_outbox_events_sequence", "lane", "sequence", unique=True),
)

event_ids: Final = sa.Table(
    "letopis_outbox_event_ids",
    metadata,
    # The ids of the events up to `origin.indexed`, written many at a time. The view `letopis_outbox_known_ids` has
    # those of the few later events too.
    sa.Column("event_id", Id16, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

lanes: Final = sa.Table(
    "letopis_outbox_lanes",
    metadata,
    # What the lane is called in the events and their index: a few bytes instead of the conversation id.
    sa.Column("lane", sa.Integer, primary_key=True),
    sa.Column("conversation_id", sa.Text, nullable=False),
    sa.Column("owner_id", sa.Text),
    # Pending is what lies between: delivered < sequence <= head. Sequences start at 1 and are never used again.
    sa.Column("head", sa.Integer, nullable=False),
    sa.Column("delivered", sa.Integer, nullable=False),
    # Events up to here were pruned; the retained tail is what lies between pruned and delivered.
    sa.Column("pruned", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.Integer, nullable=False),
    # Since when something is pending. It is not written again by an append to a pending lane, which spares its index.
    sa.Column("pending_since", sa.Integer),
    sa.Column("fault_class", sa.Text),
    sa.Column("fault", sa.Text),
    # The sequence of the event that deleted the conversation, 0 while it lives: nothing is appended after it.
    sa.Column("deleted_at", sa.Integer, nullable=False, server_default="0"),
    # The sequence of the last reset. Everything before a deletion or a reset is erased once that is delivered.
    sa.Column("reset_at", sa.Integer, nullable=False, server_default="0"),
    # The sequence before which retention removes content and leaves what makes the state.
    sa.Column("trim_before", sa.Integer, nullable=False, server_default="0"),
    # The sequence before which that is done; long lanes take several steps.
    sa.Column("erased_before", sa.Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("conversation_id", name="uq_letopis_outbox_lanes_conversation_id"),
    sa.CheckConstraint("delivered <= head AND pruned <= delivered", name="ck_letopis_outbox_lanes_order"),
    sa.CheckConstraint("delivered = head OR pending_since IS NOT NULL", name="ck_letopis_outbox_lanes_pending"),
    sa.CheckConstraint("state IN ('ready', 'retrying', 'blocked', 'paused')", name="ck_letopis_outbox_lanes_state"),
    # Pending lanes, oldest first: the only ones that the relay reads. Its condition names no column that changes with
    # each append, so queries name it beside `delivered < head`.
    sa.Index("ix_letopis_outbox_lanes_pending", "pending_since", sqlite_where=sa.text("pending_since IS NOT NULL")),
    # Lanes that wait for an operator, including those that lost events and have none pending.
    sa.Index("ix_letopis_outbox_lanes_blocked", "conversation_id", sqlite_where=sa.text("state = 'blocked'")),
    # Lanes with content to erase.
    sa.Index(
        "ix_letopis_outbox_lanes_unerased",
        "erased_before",
        sqlite_where=sa.text("erased_before < max(deleted_at, reset_at, trim_before)"),
    ),
)

relay: Final = sa.Table(
    "letopis_outbox_relay",
    metadata,
    # One row, for operators and for fencing; the lease itself is a lock of the operating system.
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
    # While the breaker is not closed: the fault in a sentence, and the time of the next attempt.
    sa.Column("breaker_detail", sa.Text),
    sa.Column("next_attempt_at", sa.Integer),
    # Long rewinds and deletions that the history store has not finished, and the rows left to them.
    sa.Column("store_tasks", sa.Integer, nullable=False, server_default="0"),
    sa.Column("store_rows", sa.Integer, nullable=False, server_default="0"),
    # As JSON: which outboxes have erasures of the store to carry out, and what is held there.
    sa.Column("erasures", sa.Text),
    # Conversations that retention took content of, checkpoints that it deleted, when it last looked, and events that
    # were still to be looked at.
    sa.Column("trimmed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("checkpoints", sa.Integer, nullable=False, server_default="0"),
    sa.Column("retained_at", sa.Integer),
    sa.Column("retention_due", sa.Integer, nullable=False, server_default="0"),
)

incidents: Final = sa.Table(
    "letopis_outbox_incidents",
    metadata,
    sa.Column("incident_id", Id16, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("conversation_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    # Raised when the fault becomes another one that needs an operator: that is worth a further alert.
    sa.Column("escalations", sa.Integer, nullable=False),
    # For a conversation the sequence whose delivery ends it, otherwise the position up to which events are part of it.
    sa.Column("mark", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("opened_at", sa.Integer, nullable=False),
    sa.Column("resolved_at", sa.Integer),
    # Raised by each change: an UPDATE names the revision it was decided on, so two processes never both win.
    sa.Column("revision", sa.Integer, nullable=False),
    sa.CheckConstraint("state IN ('pending', 'firing', 'resolved')", name="ck_letopis_outbox_incidents_state"),
    # At most one open incident per key, whichever process raises it.
    sa.Index(
        "uq_letopis_outbox_incidents_open",
        "kind",
        sa.text("coalesce(conversation_id, '')"),
        unique=True,
        sqlite_where=sa.text("resolved_at IS NULL"),
    ),
    sa.Index("ix_letopis_outbox_incidents_resolved", "resolved_at", sqlite_where=sa.text("resolved_at IS NOT NULL")),
)

notifications: Final = sa.Table(
    "letopis_outbox_notifications",
    metadata,
    # One row per incident and recipient, so that a restart or a second process notifies no recipient twice.
    sa.Column("incident_id", Id16, primary_key=True),
    sa.Column("recipient", sa.Text, primary_key=True),
    sa.Column("conversation_id", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    # What it told: the incident's escalations, and which alert since the last of these.
    sa.Column("escalations", sa.Integer, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # When the recipient was first notified, or may have been (the process died or the call timed out): they, and no
    # others, are notified of the end.
    sa.Column("told_at", sa.Integer),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("changed_at", sa.Integer, nullable=False),
    # Raised by each claim and each outcome, as that of an incident.
    sa.Column("revision", sa.Integer, nullable=False),
    sa.CheckConstraint("kind IN ('stuck', 'recovered')", name="ck_letopis_outbox_notifications_kind"),
    sa.CheckConstraint(
        "state IN ('sending', 'retrying', 'sent', 'failed')", name="ck_letopis_outbox_notifications_state"
    ),
    # Of those who may get another notification.
    sa.Index(
        "ix_letopis_outbox_notifications_active",
        "recipient",
        sqlite_where=sa.text("kind = 'stuck' OR state = 'retrying'"),
    ),
)

repairs: Final = sa.Table(
    "letopis_outbox_repairs",
    metadata,
    # What an operator did to a stuck event, and the event as it was: fixing and skipping destroy nothing.
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
    sa.Column("salt", sa.LargeBinary(16)),
    sa.Column("occurred_at", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("repaired_by", sa.Text),
    sa.Column("repaired_at", sa.Integer, nullable=False),
    sa.CheckConstraint("verb IN ('fix', 'skip', 'restore')", name="ck_letopis_outbox_repairs_verb"),
    sa.Index("ix_letopis_outbox_repairs_event_id", "event_id"),
    sqlite_autoincrement=True,
)

audit: Final = sa.Table(
    "letopis_outbox_audit",
    metadata,
    # What operators did to the outbox, and what was refused them; the newest entries, up to a fixed number.
    sa.Column("entry_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("occurred_at", sa.Integer, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    # done, or why it was refused.
    sa.Column("outcome", sa.Text, nullable=False),
    # Of one conversation or one event, where it was about one.
    sa.Column("conversation_id", sa.Text),
    sa.Column("event_id", Id16),
    sa.Column("conversations", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),
    # Who, if known, and through what: the console, the command, a program.
    sa.Column("actor", sa.Text),
    sa.Column("via", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

pause: Final = sa.Table(
    "letopis_outbox_pause",
    metadata,
    # One row while an operator pauses the relay, otherwise none.
    sa.Column(
        "only", sa.Integer, sa.CheckConstraint("only = 1", name="ck_letopis_outbox_pause_only"), primary_key=True
    ),
    sa.Column("since", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("paused_by", sa.Text),
)

owners: Final = sa.Table(
    "letopis_outbox_owners",
    metadata,
    # The conversation that this outbox last made active, by owner: it outlives the event.
    sa.Column("owner_id", sa.Text, primary_key=True),
    sa.Column("active_conversation_id", sa.Text, nullable=False),
    # The order of the activation; see `letopis.order` in the metadata of events.
    sa.Column("activated_order", sa.Integer, nullable=False),
)

drafts: Final = sa.Table(
    "letopis_outbox_drafts",
    metadata,
    # Replies being written, outside the log: each becomes a message at its end, or after a crash.
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("message_id", sa.Text, primary_key=True),
    sa.Column("event_id", Id16, nullable=False),
    sa.Column("owner_id", sa.Text),
    # The data of the message as JSON, with the text so far; empty until something was saved. The row is there from the
    # beginning of a reply: an erasure that deletes it ends the reply.
    sa.Column("data", sa.Text, nullable=False),
    # The id of its writer: while that process lives, no other touches the draft.
    sa.Column("writer", sa.Text, nullable=False),
    sa.Column("started_at", sa.Integer, nullable=False),
    sa.Column("updated_at", sa.Integer, nullable=False),
)

unconfirmed: Final = sa.Table(
    "letopis_outbox_unconfirmed",
    metadata,
    # Replies that were appended to be sent, and are neither confirmed nor reported as failed.
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
    # Events that the history store superseded, because another writer came first; kept as long as the lane.
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("event_id", Id16, nullable=False),
    # The version that the writer had seen, and the version of the event that came in between.
    sa.Column("expected", sa.Integer, nullable=False),
    sa.Column("actual", sa.Integer, nullable=False),
    sa.Index("ix_letopis_outbox_superseded_event_id", "event_id"),
)

records: Final = sa.Table(
    "letopis_outbox_records",
    metadata,
    # The newest change of each record that the file holds, to answer reads and conditions. The bodies of puts and the
    # event itself are found by its position. Triggers keep this table in step when events are pruned or renumbered.
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("namespace", sa.LargeBinary, primary_key=True),
    sa.Column("record_key", sa.LargeBinary, primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    # The revision of a put; of a deletion the id of its event.
    sa.Column("event_id", Id16, nullable=False),
    # 1 a put, 0 a deletion.
    sa.Column("present", sa.Integer, nullable=False),
    # 1: it depends on what was there before, so its body stays.
    sa.Column("conditional", sa.Integer, nullable=False),
    sa.Column("media", sa.Text, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("tags", sa.Text),
    sa.Column("occurred_at", sa.Integer, nullable=False),
    sa.Index("ix_letopis_outbox_records_sequence", "lane", "sequence"),
    sqlite_with_rowid=False,
)

record_bodies: Final = sa.Table(
    "letopis_outbox_record_bodies",
    metadata,
    # The value of a put, apart from its event: events stay small, and a value that a later one replaced goes alone.
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

contents: Final = sa.Table(
    "letopis_outbox_contents",
    metadata,
    # The large strings of messages, each once a conversation; events refer to them by name.
    sa.Column("lane", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, primary_key=True),
    # Of the first and the last event that refers to it: positions stay when events get other sequences. It goes with
    # the last one.
    sa.Column("first_position", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

record_clears: Final = sa.Table(
    "letopis_outbox_record_clears",
    metadata,
    # Prefixes that were cleared, for records that the file does not know by name.
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("lane", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("prefix", sa.LargeBinary, nullable=False),
    sa.Index("ix_letopis_outbox_record_clears_lane", "lane", "sequence"),
)
