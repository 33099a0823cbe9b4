"""Call every public constructor with one hostile argument; what it accepts is encoded or refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

import letopis.outbox
import letopis.store
from letopis.outbox import Bounds, History, Retention, RetryPolicy, Rules
from letopis.store import (
    Body,
    ConversationStore,
    Data,
    Event,
    FaultClass,
    File,
    Filter,
    ForkPoint,
    InvalidInput,
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
from tests.proof.inputs.running import Tally
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
    Limits: {},
    Timeouts: {},
    Bounds: {},
    Retention: {"keep_for": timedelta(days=1)},
    RetryPolicy: {},
    Rules: {},
    Filter: {},
}
RESULTS: Final = {
    *("Conversation", "Delivery", "FaultClass", "Figures", "Hit", "Page", "Progress", "Reaction", "RecordedEvent"),
    *(
        "RecordedMessage",
        "Rebuilt",
        "Moved",
        "MoveProgress",
        "Reuse",
        "Saved",
        "Seen",
        "Statistics",
        "Incident",
        "Status",
        "Unconfirmed",
        "UnsentReply",
        "Receipt",
    ),
    *("Erasure", "ErasureRegister", "Hold", "Unacknowledged"),
    *("ApplyResult", "Conflict", "Context", "LaneApplied", "PendingTasks", "StoreIdentity", "StrayResult"),
    *("EncodedEvent", "LaneBatch", "Origin", "SequencedEvent"),
    *("BlockingReceipt", "BlockingReply", "BlockingTransaction", "Reply", "Transaction"),
    *("AllRecords", "BlockingAllRecords", "BlockingChat", "Chat"),
    *("BlockingRecordReceipt", "BlockingRecords", "Record", "RecordReceipt", "Records"),
}
"""What only Letopis makes."""
APART: Final = {
    "Body": "the base class",
    "move": "takes two URLs; see tests/integration/test_move.py and tests/unit/store/database/test_urls.py",
    "cancel_move": "as `move`",
    "BackgroundIndexer": "takes a method of the store",
    "Precondition": "made by the options of `History.append`",
    "by_recorded_tokens": "takes a function of the program's",
    "transcript": "tried as `Chat.transcript`",
    "window": "tried as `History.context`",
    "Channel": "a protocol",
    "Alert": "what a channel is given",
    "open_channels": "takes addresses; see tests/unit/outbox/alerting/test_channels.py",
    "OutboxAdmin": "what the command calls; the arguments of its verbs are tried in `commands`",
    "Selection": "made by the options of the command, which are tried in `commands`",
    "Role": "a type",
    "NULL": "a value",
    "PINNED": "a value",
    "ContentRetention": "its values are tried in tests/unit/outbox/config/test_settings.py",
    "RetentionRule": "as `ContentRetention`",
    "erase_owner": "what the command calls; its options are tried in `commands`",
    "erase_person": "as `erase_owner`",
    "ANY": "a value",
    "ABSENT": "a value",
    "Condition": "the type of the two",
    "Media": "values of Letopis's own",
    "RecordPut": "checked by `Records.put_many`; its fields are tried as the arguments of `Records.put`",
    "Scope": "made by the arguments of `History.records`, which are tried",
    "Projection": "a base class",
    "Follower": "made by `ConversationStore.follower`",
    "Projector": "made by `ConversationStore.projector`",
    "Upcasters": "takes rules of the program's own",
    "BlockingHistory": "opened by what `History` opens",
    "OutboxFile": "opened by `History`",
    "Relay": "takes an outbox and a store; its policy is tried",
    "RepeatFilter": "takes a clock",
}


def untried() -> list[str]:
    """Return the public classes without a hostile run and without a reason."""
    known = {*RESULTS, *APART, "History", "ConversationStore", "Event", "Message", "ForkPoint"}
    known |= {cls.__name__ for cls in (*PARTS, *SETTINGS, *VOCABULARY.values(), CustomEvent, UnknownEvent)}
    return [
        name
        for module in (letopis.store, letopis.outbox)
        for name in module.__all__
        if name not in known
        and not (isinstance(found := getattr(module, name), type) and issubclass(found, LetopisError))
    ]


def _made() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any], Callable[[Any], Any]]]:
    """Yield name, constructor, arguments in order, and what makes something to be appended of it."""
    yield "Message", Message, {"role": "user", "content": "words"}, lambda made: made
    yield "Event", Event, {"type": "custom.tried"}, lambda made: made
    yield "ForkPoint", ForkPoint, {"conversation_id": "c", "version": 1}, lambda made: None
    for body in (*VOCABULARY.values(), CustomEvent, UnknownEvent):
        yield body.__name__, body, BODIES.get(body.__name__, {}), lambda made: made
    for part, given in PARTS.items():
        yield part.__name__, part, given, lambda made: Message.user([made])
    for cls, given in SETTINGS.items():
        yield cls.__name__, cls, given, lambda made: None


def constructed(tally: Tally) -> list[tuple[str, Any]]:
    through: list[tuple[str, Any]] = []
    for name, make, given, to_append in _made():
        for parameter in inspect.signature(make).parameters:
            for hostile in values():
                label = f"{name}({parameter}={hostile.name})"
                tally.tried += 1
                try:
                    what = to_append(make(**{**given, parameter: hostile.value}))
                    if what is not None:
                        encode(Event.of(what, conversation_id="c"), conversation_id="c")
                except Exception as error:  # whatever comes is what is looked for
                    tally.refusal(label, error)
                else:
                    tally.accepted += 1
                    if what is not None:
                        through.append((label, what))
    return through


async def appended(
    history: History, through: list[tuple[str, Any]], tally: Tally, *, many: int, random: Random
) -> None:
    """Append a part of what was let through, each in a conversation of its own: it has to go through to the store."""
    for number, (label, what) in enumerate(random.sample(through, min(many, len(through)))):
        try:
            await history.append(f"made-{number}", what)
        except InvalidInput:
            tally.refused += 1  # a target that is not there, an id that is taken
        except Exception as error:  # whatever comes is what is looked for
            tally.refusal(label, error)


async def opened(folder: Path, tally: Tally, *, many: int, random: Random) -> None:
    """Try the arguments of the two that open files and servers."""
    place = folder / "opened"
    place.mkdir()
    for parameter in inspect.signature(History).parameters:
        for hostile in _fit(parameter, sample(many, random), place):
            label = f"History({parameter}={hostile.name})"
            given: dict[str, Any] = {"path": place / "x.outbox.db", "relay": False, "watch": False}
            await _open(tally, label, lambda options: History(**options), {**given, parameter: hostile.value})
    for parameter in inspect.signature(ConversationStore).parameters:
        for hostile in _fit(parameter, sample(many, random), place):
            label = f"ConversationStore({parameter}={hostile.name})"
            given = {"url": place / "x.history.db"}
            await _open(
                tally, label, lambda options: ConversationStore.open(**options), {**given, parameter: hostile.value}
            )


async def _open(tally: Tally, label: str, make: Callable[[dict[str, Any]], Any], given: dict[str, Any]) -> None:
    tally.tried += 1
    try:
        async with make(given):
            tally.accepted += 1
    except Exception as error:  # whatever comes is what is looked for
        if isinstance(error, StoreFault) and error.fault_class is FaultClass.MISCONFIGURED:
            tally.refused += 1  # a path whose folder is not there: it was well formed, and it says what to do
        else:
            tally.refusal(label, error)


def _fit(parameter: str, some: list[Hostile], place: Path) -> Iterator[Hostile]:
    """Yield the values for a parameter; a name stays in a folder of its own, whatever it says."""
    for one in some:
        if parameter in ("path", "url", "store") and isinstance(one.value, str) and "://" not in one.value:
            inside = one.value.replace("..", "--")
            yield Hostile(one.name, f"{place}/{inside}")
        else:
            yield one


__all__ = ("Body", "appended", "constructed", "opened", "untried")
