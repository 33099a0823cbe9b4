"""The history store of Letopis: events and messages, and the databases that keep them."""

from __future__ import annotations

import logging

from letopis.store.catchup import Progress, Projector
from letopis.store.codec import Limits
from letopis.store.conversation import Conversation, Delivery, Page, Reaction, RecordedMessage, Saved, Seen
from letopis.store.engines import Timeouts
from letopis.store.errors import (
    BatchRefused,
    Closed,
    ConfigurationError,
    ConversationGone,
    EventIdReused,
    HistoryDiverged,
    InvalidInput,
    LetopisError,
    OriginSuperseded,
    OutboxFull,
    OutboxUnavailable,
    SequenceGap,
    VersionConflict,
)
from letopis.store.events import Event, RecordedEvent
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.history import ConversationStore
from letopis.store.messages import Data, File, Message, Reasoning, Text, ToolCall, ToolResult, UnknownPart
from letopis.store.projections import Projection
from letopis.store.rebuild import Rebuilt
from letopis.store.search.hits import Hit
from letopis.store.statistics import Figures, Statistics
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
    ForkPoint,
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
    "ConversationGone",
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
    "Figures",
    "File",
    "ForkPoint",
    "HistoryDiverged",
    "Hit",
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
    "Progress",
    "Projection",
    "Projector",
    "Reaction",
    "ReactionAdded",
    "ReactionRemoved",
    "Reasoning",
    "Rebuilt",
    "RecordedEvent",
    "RecordedMessage",
    "Saved",
    "Seen",
    "SequenceGap",
    "Statistics",
    "StoreFault",
    "Text",
    "Timeouts",
    "ToolCall",
    "ToolResult",
    "UnknownEvent",
    "UnknownPart",
    "Upcasters",
    "VersionConflict",
)

# What the library logs is for the program to show; without this, Python would print warnings on its own.
logging.getLogger("letopis").addHandler(logging.NullHandler())
