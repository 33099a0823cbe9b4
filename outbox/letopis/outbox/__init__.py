"""Embed a durable conversation history in a bot, and deliver it to the history store."""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from letopis.outbox.alerting.channels import Alert as Alert
    from letopis.outbox.alerting.channels import Channel as Channel
    from letopis.outbox.alerting.channels import open_channels as open_channels
    from letopis.outbox.alerting.incidents import Rules as Rules
    from letopis.outbox.alerting.notifications import Incident as Incident
    from letopis.outbox.event_log.retention import Retention as Retention
    from letopis.outbox.file.limits import Bounds as Bounds
    from letopis.outbox.file.outbox_file import OutboxFile as OutboxFile
    from letopis.outbox.history.chat import Chat as Chat
    from letopis.outbox.history.history import History as History
    from letopis.outbox.history.options import Unconfirmed as Unconfirmed
    from letopis.outbox.history.options import UnsentReply as UnsentReply
    from letopis.outbox.history.receipts import Receipt as Receipt
    from letopis.outbox.history.records import AllRecords as AllRecords
    from letopis.outbox.history.records import RecordPut as RecordPut
    from letopis.outbox.history.records import RecordReceipt as RecordReceipt
    from letopis.outbox.history.records import Records as Records
    from letopis.outbox.history.reply import Reply as Reply
    from letopis.outbox.history.transaction import Transaction as Transaction
    from letopis.outbox.operations.admin import OutboxAdmin as OutboxAdmin
    from letopis.outbox.operations.pending_events import Selection as Selection
    from letopis.outbox.operations.repair import NotRepairable as NotRepairable
    from letopis.outbox.operations.status import Status as Status
    from letopis.outbox.relay.relay import Relay as Relay
    from letopis.outbox.retry.policy import RetryPolicy as RetryPolicy
    from letopis.outbox.sync.blocking import BlockingAllRecords as BlockingAllRecords
    from letopis.outbox.sync.blocking import BlockingChat as BlockingChat
    from letopis.outbox.sync.blocking import BlockingHistory as BlockingHistory
    from letopis.outbox.sync.blocking import BlockingReceipt as BlockingReceipt
    from letopis.outbox.sync.blocking import BlockingRecordReceipt as BlockingRecordReceipt
    from letopis.outbox.sync.blocking import BlockingRecords as BlockingRecords
    from letopis.outbox.sync.blocking import BlockingReply as BlockingReply
    from letopis.outbox.sync.blocking import BlockingTransaction as BlockingTransaction
    from letopis.outbox.sync.portal import InEventLoop as InEventLoop
    from letopis.outbox.telemetry.logging import RepeatFilter as RepeatFilter

_NAMES = {
    "alerting.channels": "Alert Channel open_channels",
    "alerting.incidents": "Rules",
    "alerting.notifications": "Incident",
    "event_log.retention": "Retention",
    "file.limits": "Bounds",
    "file.outbox_file": "OutboxFile",
    "history.chat": "Chat",
    "history.history": "History",
    "history.options": "Unconfirmed UnsentReply",
    "history.receipts": "Receipt",
    "history.records": "AllRecords RecordPut RecordReceipt Records",
    "history.reply": "Reply",
    "history.transaction": "Transaction",
    "operations.admin": "OutboxAdmin",
    "operations.pending_events": "Selection",
    "operations.repair": "NotRepairable",
    "operations.status": "Status",
    "relay.relay": "Relay",
    "retry.policy": "RetryPolicy",
    "sync.blocking": (
        "BlockingAllRecords BlockingChat BlockingHistory BlockingReceipt "
        "BlockingRecordReceipt BlockingRecords BlockingReply BlockingTransaction"
    ),
    "sync.portal": "InEventLoop",
    "telemetry.logging": "RepeatFilter",
}
"""The public names of each module, imported when they are first used."""

ROOMS = {name: room for room, names in _NAMES.items() for name in names.split()}
if not typing.TYPE_CHECKING:  # which would take it for an empty list
    __all__ = tuple(sorted(ROOMS))


def __getattr__(name: str) -> object:
    # The command lives in this package: `letopis --help` must not wait for SQLAlchemy.
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{ROOMS[name]}"), name)
    # Representations, pickles and the documentation name the place that it is imported from.
    value.__module__ = __name__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS})
