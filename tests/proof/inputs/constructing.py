"""Call every public constructor with one hostile argument; what it accepts is encoded or refused."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, Final

import letopis.outbox
import letopis.store
from letopis.outbox import Bounds, History, Retention, RetryPolicy, Rules
from letopis.store import (
    ConversationStore,
    Data,
    Event,
    FaultClass,
    File,
    Filter,
    ForkPoint,
    LetopisError,
    Limits,
    Message,
    Reasoning,
    StoreFault,
    Text,
    Timeouts,
    ToolCall,
    ToolResult,
    UnknownEvent,
    UnknownPart,
)
from letopis.store.model.codec import encode
from letopis.store.model.event_types import VOCABULARY, CustomEvent
from tests.proof.harness import Setting, Tally
from tests.proof.inputs.running import ACCEPTED, refusal, told
from tests.support.values.hostile import Hostile, sample, values

BODIES: Final[Mapping[str, dict[str, Any]]] = {
    "ConversationAnnotated": {"metadata": {"a": 1}},
    "ConversationTagged": {"add": ["vip"]},
    "ConversationTrimmed": {"upto": 1, "rule": "default"},
    "ConversationRenamed": {"title": "title"},
    "MessageAppended": {"message": Message.user("words")},
    "MessageEdited": {"message_id": "m", "content": "anew"},
    "MessageFailed": {"message_id": "m"},
    "MessageRedacted": {"message_id": "m"},
    "MessageSent": {"message_id": "m"},
    "ReactionAdded": {"message_id": "m", "key": "like"},
    "ReactionRemoved": {"message_id": "m", "key": "like"},
    "EventSkipped": {"skipped_event_id": "e", "skipped_type": "custom.a", "digest": "00", "reason": "none"},
    "CustomEvent": {"name": "tried"},
    "UnknownEvent": {"name": "poll.opened", "version": 1, "data": {}, "problem": "unknown"},
}
PARTS: Final[Mapping[type, dict[str, Any]]] = {
    Text: {"text": "words"},
    Reasoning: {"text": "words"},
    File: {"uri": "s3://a/b"},
    ToolCall: {"call_id": "c", "name": "search"},
    ToolResult: {"call_id": "c"},
    Data: {},
    UnknownPart: {"value": {"type": "poll"}},
}
SETTINGS: Final[Mapping[type, dict[str, Any]]] = {
    Retention: {"keep_for": timedelta(days=1)},
    ForkPoint: {"conversation_id": "c", "version": 1},
    **{settings: {} for settings in (Limits, Timeouts, Bounds, RetryPolicy, Rules, Filter)},
}
RESULTS: Final = {
    *("Conversation", "Delivery", "FaultClass", "Figures", "Hit", "Page", "Progress", "Reaction", "RecordedEvent"),
    *("RecordedMessage", "Rebuilt", "Moved", "MoveProgress", "Reuse", "Saved", "Seen", "Statistics", "Incident"),
    *("Status", "Unconfirmed", "UnsentReply", "Receipt"),
    *("Erasure", "ErasureRegister", "Hold", "Unacknowledged"),
    *("ApplyResult", "Conflict", "Context", "LaneApplied", "PendingTasks", "StoreIdentity", "StrayResult"),
    *("EncodedEvent", "LaneBatch", "Origin", "SequencedEvent"),
    *("BlockingReceipt", "BlockingReply", "BlockingTransaction", "Reply", "Transaction"),
    *("AllRecords", "BlockingAllRecords", "BlockingChat", "Chat"),
    *("BlockingRecordReceipt", "BlockingRecords", "Record", "RecordReceipt", "Records"),
}
"""What only Letopis makes."""
APART: Final = {
    "a value, or a type": ("NULL", "PINNED", "ANY", "ABSENT", "Role", "Condition", "Media"),
    "a base class or a protocol": ("Body", "Channel", "Projection"),
    "made or opened by what is tried": (
        *("Precondition", "Selection", "Scope", "Follower", "Projector", "BlockingHistory", "OutboxFile", "RecordPut"),
    ),
    "tried as a method of `History` or `Chat`": ("transcript", "window"),
    "takes functions, rules or objects of the program's, or of Letopis's": (
        *("by_recorded_tokens", "Upcasters", "BackgroundIndexer", "Relay", "RepeatFilter", "Alert"),
    ),
    "what the command calls; the options of its verbs are tried in `commands`": ("OutboxAdmin",),
    "takes addresses; see tests/unit/outbox/alerting/test_channels.py": ("open_channels",),
    "its values are tried in tests/unit/ops/config/test_settings.py": ("ContentRetention", "RetentionRule"),
}
"""Why a public name is not tried here."""


def untried() -> list[str]:
    """Return the public classes without a hostile run and without a reason."""
    known = {*RESULTS, *chain(*APART.values()), "History", "ConversationStore", "Event", "Message"}
    known |= {cls.__name__ for cls in (*PARTS, *SETTINGS, *VOCABULARY.values(), CustomEvent, UnknownEvent)}
    return [
        name
        for module in (letopis.store, letopis.outbox)
        for name in module.__all__
        if name not in known
        and not (isinstance(found := getattr(module, name), type) and issubclass(found, LetopisError))
    ]


def _made() -> Iterator[tuple[Callable[..., Any], dict[str, Any], Callable[[Any], Any]]]:
    """Yield constructor, arguments in order, and what makes something to be appended of it."""
    yield Message, {"role": "user", "content": "words"}, lambda made: made
    yield Event, {"type": "custom.tried"}, lambda made: made
    for body in (*VOCABULARY.values(), CustomEvent, UnknownEvent):
        yield body, BODIES.get(body.__name__, {}), lambda made: made
    for part, given in PARTS.items():
        yield part, given, lambda made: Message.user([made])
    for cls, given in SETTINGS.items():
        yield cls, given, lambda made: None


def constructors(setting: Setting) -> Tally:
    tally, tried = Tally(), sample(20, Random(setting.seed)) if setting.options.short else values()
    for make, given, to_append in _made():
        for parameter in inspect.signature(make).parameters:
            for hostile in tried:
                tally.count += 1
                try:
                    what = to_append(make(**{**given, parameter: hostile.value}))
                    if what is not None:
                        encode(Event.of(what, conversation_id="c"), conversation_id="c")
                        tally.figures["encoded"] += 1
                except Exception as error:  # whatever comes is what is looked for
                    refusal(tally, f"{make.__name__}({parameter}={hostile.name})", error)
    return told(tally)


async def opened(setting: Setting) -> Tally:
    """Try the arguments of the two that open files and servers."""
    tally, place, random = Tally(), setting.folder, Random(setting.seed)
    of_history: dict[str, Any] = {"path": place / "x.outbox.db", "relay": False, "watch": False}
    for made, opening, given in (
        (History, History, of_history),
        (ConversationStore, ConversationStore.open, {"url": place / "x.history.db"}),
    ):
        for parameter in inspect.signature(made).parameters:
            for hostile in _fit(parameter, sample(setting.many(8, 2), random), place):
                tally.count += 1
                try:
                    async with opening(**{**given, parameter: hostile.value}):
                        tally.figures[ACCEPTED] += 1
                except Exception as error:  # whatever comes is what is looked for
                    if isinstance(error, StoreFault) and error.fault_class is FaultClass.MISCONFIGURED:
                        tally.refused += 1  # a folder that is not there: it was well formed, and it says what to do
                    else:
                        refusal(tally, f"{made.__name__}({parameter}={hostile.name})", error)
    return told(tally)


def _fit(parameter: str, some: list[Hostile], place: Path) -> Iterator[Hostile]:
    """Yield the values for a parameter; a name stays in a folder of its own, whatever it says."""
    for one in some:
        if parameter in ("path", "url", "store") and isinstance(one.value, str) and "://" not in one.value:
            yield Hostile(one.name, f"{place}/{one.value.replace('..', '--')}")
        else:
            yield one
