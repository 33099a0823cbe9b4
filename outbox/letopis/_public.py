"""Name what a bot imports from ``letopis``, and load it when it is asked for."""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from letopis.outbox import (
        BlockingChat,
        BlockingHistory,
        BlockingReceipt,
        BlockingRecordReceipt,
        BlockingRecords,
        BlockingReply,
        BlockingTransaction,
        Chat,
        History,
        Incident,
        Receipt,
        RecordPut,
        RecordReceipt,
        Records,
        Reply,
        Status,
        Transaction,
        Unconfirmed,
        UnsentReply,
    )
    from letopis.store import (
        ABSENT,
        ANY,
        NULL,
        Closed,
        ConfigurationError,
        Conversation,
        ConversationGone,
        ConversationStore,
        Data,
        Event,
        EventIdReused,
        File,
        Hit,
        InvalidInput,
        LetopisError,
        Message,
        OutboxFull,
        OutboxUnavailable,
        Page,
        ReadTimeout,
        Reasoning,
        Record,
        RecordConflict,
        RecordedMessage,
        Role,
        Saved,
        SendRefused,
        StoreUnavailable,
        Text,
        ToolCall,
        ToolResult,
        VersionConflict,
    )

__all__ = (
    "ABSENT",
    "ANY",
    "NULL",
    "BlockingChat",
    "BlockingHistory",
    "BlockingReceipt",
    "BlockingRecordReceipt",
    "BlockingRecords",
    "BlockingReply",
    "BlockingTransaction",
    "Chat",
    "Closed",
    "ConfigurationError",
    "Conversation",
    "ConversationGone",
    "ConversationStore",
    "Data",
    "Event",
    "EventIdReused",
    "File",
    "History",
    "Hit",
    "Incident",
    "InvalidInput",
    "LetopisError",
    "Message",
    "OutboxFull",
    "OutboxUnavailable",
    "Page",
    "ReadTimeout",
    "Reasoning",
    "Receipt",
    "Record",
    "RecordConflict",
    "RecordPut",
    "RecordReceipt",
    "RecordedMessage",
    "Records",
    "Reply",
    "Role",
    "Saved",
    "SendRefused",
    "Status",
    "StoreUnavailable",
    "Text",
    "ToolCall",
    "ToolResult",
    "Transaction",
    "Unconfirmed",
    "UnsentReply",
    "VersionConflict",
)


def load(name: str) -> object:
    """Return a public name, or the version.

    :raises AttributeError: there is no such name.
    """
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'letopis' has no attribute {name!r}")
    outbox = importlib.import_module("letopis.outbox")
    return getattr(outbox if name in outbox.__all__ else importlib.import_module("letopis.store"), name)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("letopis")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
