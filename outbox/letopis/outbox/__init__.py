"""Embed a durable conversation history in a bot, and deliver it to the history store."""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from letopis.outbox.alerting.channels import Alert, Channel, open_channels
    from letopis.outbox.alerting.incidents import Rules
    from letopis.outbox.alerting.notifications import Incident
    from letopis.outbox.event_log.retention import Retention
    from letopis.outbox.file.limits import Bounds
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.chat import Chat
    from letopis.outbox.history.history import History
    from letopis.outbox.history.options import Unconfirmed, UnsentReply
    from letopis.outbox.history.receipts import Receipt
    from letopis.outbox.history.records import AllRecords, RecordPut, RecordReceipt, Records
    from letopis.outbox.history.reply import Reply
    from letopis.outbox.history.transaction import Transaction
    from letopis.outbox.operations.admin import OutboxAdmin
    from letopis.outbox.operations.pending_events import Selection
    from letopis.outbox.operations.repair import NotRepairable
    from letopis.outbox.operations.status import Status
    from letopis.outbox.relay.relay import Relay
    from letopis.outbox.retry.policy import RetryPolicy
    from letopis.outbox.sync.blocking import (
        BlockingAllRecords,
        BlockingChat,
        BlockingHistory,
        BlockingReceipt,
        BlockingRecordReceipt,
        BlockingRecords,
        BlockingReply,
        BlockingTransaction,
    )
    from letopis.outbox.sync.portal import InEventLoop
    from letopis.outbox.telemetry.logging import RepeatFilter

__all__ = (
    "Alert",
    "AllRecords",
    "BlockingAllRecords",
    "BlockingChat",
    "BlockingHistory",
    "BlockingReceipt",
    "BlockingRecordReceipt",
    "BlockingRecords",
    "BlockingReply",
    "BlockingTransaction",
    "Bounds",
    "Channel",
    "Chat",
    "History",
    "InEventLoop",
    "Incident",
    "NotRepairable",
    "OutboxAdmin",
    "OutboxFile",
    "Receipt",
    "RecordPut",
    "RecordReceipt",
    "Records",
    "Relay",
    "RepeatFilter",
    "Reply",
    "Retention",
    "RetryPolicy",
    "Rules",
    "Selection",
    "Status",
    "Transaction",
    "Unconfirmed",
    "UnsentReply",
    "open_channels",
)

ROOMS = {
    "Alert": "alerting.channels",
    "AllRecords": "history.records",
    "BlockingAllRecords": "sync.blocking",
    "BlockingChat": "sync.blocking",
    "BlockingHistory": "sync.blocking",
    "BlockingReceipt": "sync.blocking",
    "BlockingRecordReceipt": "sync.blocking",
    "BlockingRecords": "sync.blocking",
    "BlockingReply": "sync.blocking",
    "BlockingTransaction": "sync.blocking",
    "Bounds": "file.limits",
    "Channel": "alerting.channels",
    "Chat": "history.chat",
    "History": "history.history",
    "InEventLoop": "sync.portal",
    "Incident": "alerting.notifications",
    "NotRepairable": "operations.repair",
    "OutboxAdmin": "operations.admin",
    "OutboxFile": "file.outbox_file",
    "Receipt": "history.receipts",
    "RecordPut": "history.records",
    "RecordReceipt": "history.records",
    "Records": "history.records",
    "Relay": "relay.relay",
    "RepeatFilter": "telemetry.logging",
    "Reply": "history.reply",
    "Retention": "event_log.retention",
    "RetryPolicy": "retry.policy",
    "Rules": "alerting.incidents",
    "Selection": "operations.pending_events",
    "Status": "operations.status",
    "Transaction": "history.transaction",
    "Unconfirmed": "history.options",
    "UnsentReply": "history.options",
    "open_channels": "alerting.channels",
}


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
    return sorted({*globals(), *__all__})
