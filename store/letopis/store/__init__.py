"""The history store of Letopis: events and messages, and the databases that keep them."""

from __future__ import annotations

import logging

from letopis.store.codec import Limits
from letopis.store.conversation import Conversation, Delivery, Page, RecordedMessage, Saved
from letopis.store.engines import Timeouts
from letopis.store.errors import (
    BatchRefused,
    Closed,
    ConfigurationError,
    EventIdReused,
    HistoryDiverged,
    InvalidInput,
    LetopisError,
    OriginSuperseded,
    OutboxFull,
    OutboxUnavailable,
    SequenceGap,
)
from letopis.store.events import Event, RecordedEvent
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.history import ConversationStore
from letopis.store.messages import Data, File, Message, Reasoning, Text, ToolCall, ToolResult, UnknownPart
from letopis.store.upcasters import Upcasters
from letopis.store.vocabulary import (
    Body,
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRestored,
    ConversationRewound,
    ConversationStarted,
    CustomEvent,
    EventSkipped,
    MessageAppended,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    UnknownEvent,
)

__all__ = (
    "BatchRefused",
    "Body",
    "Closed",
    "ConfigurationError",
    "Conversation",
    "ConversationActivated",
    "ConversationAnnotated",
    "ConversationArchived",
    "ConversationDeleted",
    "ConversationRenamed",
    "ConversationRestored",
    "ConversationRewound",
    "ConversationStarted",
    "ConversationStore",
    "CustomEvent",
    "Data",
    "Delivery",
    "Event",
    "EventIdReused",
    "EventSkipped",
    "FaultClass",
    "File",
    "HistoryDiverged",
    "InvalidInput",
    "LetopisError",
    "Limits",
    "Message",
    "MessageAppended",
    "MessageEdited",
    "MessageFailed",
    "MessageRedacted",
    "MessageSent",
    "OriginSuperseded",
    "OutboxFull",
    "OutboxUnavailable",
    "Page",
    "ReactionAdded",
    "ReactionRemoved",
    "Reasoning",
    "RecordedEvent",
    "RecordedMessage",
    "Saved",
    "SequenceGap",
    "StoreFault",
    "Text",
    "Timeouts",
    "ToolCall",
    "ToolResult",
    "UnknownEvent",
    "UnknownPart",
    "Upcasters",
)

# What the library logs is for the program to show; without this, Python would print warnings on its own.
logging.getLogger("letopis").addHandler(logging.NullHandler())
