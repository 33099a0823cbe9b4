"""The history store of Letopis: events and messages, and the databases that keep them."""

from __future__ import annotations

import importlib
import logging
import typing

from letopis.store import errors as _errors

if typing.TYPE_CHECKING:
    from letopis.store.conversation_store import ConversationStore as ConversationStore
    from letopis.store.database.faults import FaultClass as FaultClass
    from letopis.store.database.faults import StoreFault as StoreFault
    from letopis.store.database.store_identity import StoreIdentity as StoreIdentity
    from letopis.store.database.timeouts import Timeouts as Timeouts
    from letopis.store.erasures import Erasure as Erasure
    from letopis.store.erasures import ErasureRegister as ErasureRegister
    from letopis.store.erasures import Hold as Hold
    from letopis.store.erasures import Unacknowledged as Unacknowledged
    from letopis.store.errors import BatchRefused as BatchRefused
    from letopis.store.errors import CallerError as CallerError
    from letopis.store.errors import Closed as Closed
    from letopis.store.errors import ConfigurationError as ConfigurationError
    from letopis.store.errors import ConversationGone as ConversationGone
    from letopis.store.errors import ErasuresPending as ErasuresPending
    from letopis.store.errors import Held as Held
    from letopis.store.errors import HistoryDiverged as HistoryDiverged
    from letopis.store.errors import IdReused as IdReused
    from letopis.store.errors import InvalidInput as InvalidInput
    from letopis.store.errors import LetopisError as LetopisError
    from letopis.store.errors import MoveFailed as MoveFailed
    from letopis.store.errors import NotSaved as NotSaved
    from letopis.store.errors import OriginSuperseded as OriginSuperseded
    from letopis.store.errors import OutboxFull as OutboxFull
    from letopis.store.errors import OutboxUnavailable as OutboxUnavailable
    from letopis.store.errors import ReadTimeout as ReadTimeout
    from letopis.store.errors import RecordConflict as RecordConflict
    from letopis.store.errors import Reuse as Reuse
    from letopis.store.errors import SendRefused as SendRefused
    from letopis.store.errors import SequenceGap as SequenceGap
    from letopis.store.errors import StoreUnavailable as StoreUnavailable
    from letopis.store.errors import VersionConflict as VersionConflict
    from letopis.store.model.codec import EncodedEvent as EncodedEvent
    from letopis.store.model.codec import Limits as Limits
    from letopis.store.model.conversations import Conversation as Conversation
    from letopis.store.model.conversations import Delivery as Delivery
    from letopis.store.model.conversations import Page as Page
    from letopis.store.model.conversations import Reaction as Reaction
    from letopis.store.model.conversations import RecordedMessage as RecordedMessage
    from letopis.store.model.conversations import Saved as Saved
    from letopis.store.model.conversations import Seen as Seen
    from letopis.store.model.event_types import NULL as NULL
    from letopis.store.model.event_types import PINNED as PINNED
    from letopis.store.model.event_types import Body as Body
    from letopis.store.model.event_types import ConversationActivated as ConversationActivated
    from letopis.store.model.event_types import ConversationAnnotated as ConversationAnnotated
    from letopis.store.model.event_types import ConversationArchived as ConversationArchived
    from letopis.store.model.event_types import ConversationDeleted as ConversationDeleted
    from letopis.store.model.event_types import ConversationRenamed as ConversationRenamed
    from letopis.store.model.event_types import ConversationRestored as ConversationRestored
    from letopis.store.model.event_types import ConversationRewound as ConversationRewound
    from letopis.store.model.event_types import ConversationStarted as ConversationStarted
    from letopis.store.model.event_types import ConversationTagged as ConversationTagged
    from letopis.store.model.event_types import ConversationTrimmed as ConversationTrimmed
    from letopis.store.model.event_types import CustomEvent as CustomEvent
    from letopis.store.model.event_types import EventSkipped as EventSkipped
    from letopis.store.model.event_types import MessageAppended as MessageAppended
    from letopis.store.model.event_types import MessageEdited as MessageEdited
    from letopis.store.model.event_types import MessageFailed as MessageFailed
    from letopis.store.model.event_types import MessageRedacted as MessageRedacted
    from letopis.store.model.event_types import MessageSent as MessageSent
    from letopis.store.model.event_types import ReactionAdded as ReactionAdded
    from letopis.store.model.event_types import ReactionRemoved as ReactionRemoved
    from letopis.store.model.event_types import UnknownEvent as UnknownEvent
    from letopis.store.model.events import Event as Event
    from letopis.store.model.events import RecordedEvent as RecordedEvent
    from letopis.store.model.events import Upcasters as Upcasters
    from letopis.store.model.identifiers import ForkPoint as ForkPoint
    from letopis.store.model.messages import Message as Message
    from letopis.store.model.messages import Role as Role
    from letopis.store.model.parts import Data as Data
    from letopis.store.model.parts import File as File
    from letopis.store.model.parts import Reasoning as Reasoning
    from letopis.store.model.parts import Text as Text
    from letopis.store.model.parts import ToolCall as ToolCall
    from letopis.store.model.parts import ToolResult as ToolResult
    from letopis.store.model.parts import UnknownPart as UnknownPart
    from letopis.store.model.records import ABSENT as ABSENT
    from letopis.store.model.records import ANY as ANY
    from letopis.store.model.records import Condition as Condition
    from letopis.store.model.records import Media as Media
    from letopis.store.model.records import Record as Record
    from letopis.store.model.records import Scope as Scope
    from letopis.store.projections.base import Projection as Projection
    from letopis.store.projections.projector import Follower as Follower
    from letopis.store.projections.projector import Progress as Progress
    from letopis.store.projections.projector import Projector as Projector
    from letopis.store.read.task_marks import PendingTasks as PendingTasks
    from letopis.store.rules.apply_plan import ApplyResult as ApplyResult
    from letopis.store.rules.apply_plan import LaneApplied as LaneApplied
    from letopis.store.rules.apply_plan import LaneBatch as LaneBatch
    from letopis.store.rules.apply_plan import Origin as Origin
    from letopis.store.rules.apply_plan import SequencedEvent as SequencedEvent
    from letopis.store.rules.context_window import Context as Context
    from letopis.store.rules.context_window import by_recorded_tokens as by_recorded_tokens
    from letopis.store.rules.context_window import window as window
    from letopis.store.rules.filter import Filter as Filter
    from letopis.store.rules.preconditions import Conflict as Conflict
    from letopis.store.rules.preconditions import Precondition as Precondition
    from letopis.store.rules.retention import ContentRetention as ContentRetention
    from letopis.store.rules.retention import RetentionRule as RetentionRule
    from letopis.store.rules.statistics import Figures as Figures
    from letopis.store.rules.statistics import Statistics as Statistics
    from letopis.store.rules.tool_calls import StrayResult as StrayResult
    from letopis.store.rules.transcript import transcript as transcript
    from letopis.store.search.indexer import BackgroundIndexer as BackgroundIndexer
    from letopis.store.search.results import Hit as Hit

_NAMES = {
    "conversation_store": "ConversationStore",
    "database.timeouts": "Timeouts",
    "database.faults": "FaultClass StoreFault",
    "database.store_identity": "StoreIdentity",
    "erasures": "Erasure ErasureRegister Hold Unacknowledged",
    "errors": (
        "BatchRefused CallerError Closed ConfigurationError ConversationGone ErasuresPending Held HistoryDiverged "
        "IdReused InvalidInput LetopisError MoveFailed NotSaved OriginSuperseded OutboxFull OutboxUnavailable "
        "ReadTimeout RecordConflict Reuse SendRefused SequenceGap StoreUnavailable VersionConflict"
    ),
    "model.codec": "EncodedEvent Limits",
    "model.conversations": "Conversation Delivery Page Reaction RecordedMessage Saved Seen",
    "model.event_types": (
        "NULL PINNED Body ConversationActivated ConversationAnnotated ConversationArchived ConversationDeleted "
        "ConversationRenamed ConversationRestored ConversationRewound ConversationStarted ConversationTagged "
        "ConversationTrimmed CustomEvent EventSkipped MessageAppended MessageEdited MessageFailed MessageRedacted "
        "MessageSent ReactionAdded ReactionRemoved UnknownEvent"
    ),
    "model.events": "Event RecordedEvent Upcasters",
    "model.identifiers": "ForkPoint",
    "model.messages": "Message Role",
    "model.parts": "Data File Reasoning Text ToolCall ToolResult UnknownPart",
    "model.records": "ABSENT ANY Condition Media Record Scope",
    "projections.base": "Projection",
    "projections.projector": "Follower Progress Projector",
    "rules.statistics": "Figures Statistics",
    "read.task_marks": "PendingTasks",
    "rules.apply_plan": "ApplyResult LaneApplied LaneBatch Origin SequencedEvent",
    "rules.context_window": "Context by_recorded_tokens window",
    "rules.filter": "Filter",
    "rules.preconditions": "Conflict Precondition",
    "rules.retention": "ContentRetention RetentionRule",
    "rules.tool_calls": "StrayResult",
    "rules.transcript": "transcript",
    "search.indexer": "BackgroundIndexer",
    "search.results": "Hit",
}
"""The public names of each module, imported when they are first used."""

ROOMS = {name: room for room, names in _NAMES.items() for name in names.split()}
if not typing.TYPE_CHECKING:  # which would take it for an empty list
    __all__ = tuple(sorted(ROOMS))

# A traceback names an error as programs import it. Values keep their own modules: type hints are resolved in them.
for _error in vars(_errors).values():
    if isinstance(_error, type) and _error.__module__ == _errors.__name__:
        _error.__module__ = __name__

# What the library logs is for the program to show; without this, Python would print warnings on its own.
logging.getLogger("letopis").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    # Importing one name must not wait for all others: a bot does not need what searches or projects a history.
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS})
