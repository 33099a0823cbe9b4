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
        OutboxAdmin,
        OutboxFile,
        Receipt,
        RecordPut,
        RecordReceipt,
        Records,
        RepeatFilter,
        Reply,
        Retention,
        RetryPolicy,
        Selection,
        Status,
        Transaction,
        Unconfirmed,
        UnsentReply,
        erase_owner,
        erase_person,
    )
    from letopis.store import (
        ABSENT,
        ANY,
        NULL,
        Closed,
        ConfigurationError,
        ContentRetention,
        Context,
        Conversation,
        ConversationGone,
        ConversationStore,
        Data,
        Event,
        EventIdReused,
        File,
        Held,
        Hit,
        InvalidInput,
        LetopisError,
        Limits,
        Message,
        MessageAppended,
        OutboxFull,
        OutboxUnavailable,
        Page,
        Projection,
        ReadTimeout,
        Reasoning,
        Record,
        RecordConflict,
        RecordedEvent,
        RecordedMessage,
        RetentionRule,
        Role,
        Saved,
        Seen,
        SendRefused,
        StoreUnavailable,
        Text,
        ToolCall,
        ToolResult,
        VersionConflict,
        by_recorded_tokens,
        move,
        transcript,
        window,
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
    "ContentRetention",
    "Context",
    "Conversation",
    "ConversationGone",
    "ConversationStore",
    "Data",
    "Event",
    "EventIdReused",
    "File",
    "Held",
    "History",
    "Hit",
    "Incident",
    "InvalidInput",
    "LetopisError",
    "Limits",
    "Message",
    "MessageAppended",
    "OutboxAdmin",
    "OutboxFile",
    "OutboxFull",
    "OutboxUnavailable",
    "Page",
    "Projection",
    "ReadTimeout",
    "Reasoning",
    "Receipt",
    "Record",
    "RecordConflict",
    "RecordPut",
    "RecordReceipt",
    "RecordedEvent",
    "RecordedMessage",
    "Records",
    "RepeatFilter",
    "Reply",
    "Retention",
    "RetentionRule",
    "RetryPolicy",
    "Role",
    "Saved",
    "Seen",
    "Selection",
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
    "by_recorded_tokens",
    "erase_owner",
    "erase_person",
    "move",
    "transcript",
    "window",
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
