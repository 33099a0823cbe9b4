"""List every public method by its signature, with valid arguments of which one can be made hostile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import letopis.outbox
import letopis.store
from letopis.outbox import BlockingHistory, History, RecordPut
from letopis.outbox.history.options import AppendOptions
from letopis.store import ConversationStore, LetopisError, Message
from letopis.store.outbox_access import OutboxAccess

OWNER: Final = "owner-1"
ASKED: Final = "m-asked"
ANSWERED: Final = "m-answered"


@dataclass(slots=True)
class World:
    """What the calls are made on: conversations that are there already, each for one call that changes it."""

    prefix: str
    ready: int
    used: int = 0
    origin_id: Any = None
    lasting: str = field(init=False)
    quiet: str = field(init=False)

    def __post_init__(self) -> None:
        # What is written to grows, and would make every read of it slow.
        self.lasting, self.quiet = f"{self.prefix}-0", f"{self.prefix}-1"

    def names(self) -> list[str]:
        return [f"{self.prefix}-{number}" for number in range(self.ready)]

    def fresh(self) -> str:
        """Return one that no call has changed, as far as there are any left."""
        self.used = self.used % (self.ready - 2) + 1
        return f"{self.prefix}-{self.used + 1}"


Arguments = Callable[[World], dict[str, Any]]


def _read(world: World) -> dict[str, Any]:
    return {"conversation_id": world.quiet}


def _said(world: World) -> dict[str, Any]:
    return {"conversation_id": world.lasting}


def _own(world: World) -> dict[str, Any]:
    return {"conversation_id": world.fresh()}


def _message(world: World) -> dict[str, Any]:
    return {"conversation_id": world.lasting, "message_id": ANSWERED}


def _owner(world: World) -> dict[str, Any]:
    return {"owner": OWNER}


def _none(world: World) -> dict[str, Any]:
    return {}


def _with(base: Arguments, **more: Any) -> Arguments:
    return lambda world: {**base(world), **more}


HISTORY: Final[Mapping[str, Arguments]] = {
    "active": _owner,
    "append": lambda world: {"conversation_id": world.lasting, "what": Message.user("words")},
    "append_in": lambda world: {"conversation_id": world.lasting, "what": Message.user("words")},
    "context": _read,
    "conversations": _none,
    "drained": _with(_none, timeout=5.0),
    "message": lambda world: {"message_id": "nowhere"},
    "messages": _read,
    "reply": _said,
    "search": _with(_none, query="words"),
    "start": _owner,
    "statistics": _none,
    "status": _none,
    "transaction": _none,
    "unconfirmed": _none,
}
CHAT: Final[Mapping[str, Arguments]] = {
    "activate": _own,
    "tag": _with(_said, tags="vip"),
    "annotate": _with(_said, metadata={"a": 1}),
    "archive": _own,
    "conversation": _read,
    "count": _read,
    "delete": _own,
    "edit": _with(_message, content="anew"),
    "events": _read,
    "failed": _message,
    "fork": _read,
    "message": lambda world: {"message_id": ASKED, "conversation_id": world.quiet},
    "pop": _own,
    "react": _with(_message, key="like"),
    "redact": lambda world: {"conversation_id": world.fresh(), "message_id": ANSWERED},
    "regenerate": _own,
    "rename": _with(_said, title="title"),
    "replace": lambda world: {"conversation_id": world.fresh(), "messages": [Message.user("words", id=ASKED)]},
    "reset": _own,
    "restore": _own,
    "rewind": _with(_own, to=ASKED),
    "send": _message,
    "sent": _message,
    "transcript": _read,
    "undo": _own,
    "unreact": _with(_message, key="like"),
}
ALL_RECORDS: Final[Mapping[str, Arguments]] = {
    "__call__": lambda world: {"conversation": world.quiet},
    "find": _with(_none, tags={"run": "7"}),
    "scopes": _none,
}
STORE: Final[Mapping[str, Arguments]] = {
    "active": _owner,
    "catch_up_search": _none,
    "conversation": _read,
    "conversations": _none,
    "events": _read,
    "head": _none,
    "identity": _none,
    "lane_heads": lambda world: {"origin_id": world.origin_id, "conversation_ids": [world.quiet]},
    "log": _none,
    "messages": _read,
    "partitions": _none,
    "ping": _none,
    "prepare": _none,
    "rebuild": lambda world: {"conversation": world.quiet},
    "search": _with(_none, query="words"),
    "statistics": _none,
    "subscribe": _none,
}
ERASURES: Final[Mapping[str, Arguments]] = {
    "after": _with(_none, number=0),
    "check_not_held": _owner,
    "hold": _with(_none, kind="owner", subject="held", reason="asked"),
    "holds": _none,
    "register": _with(_none, kind="owner", subject="nobody", how="reset"),
    "release": _with(_none, kind="owner", subject="held"),
    "unacknowledged": _none,
}
OUTBOX_ACCESS: Final[Mapping[str, Arguments]] = {
    "conversations_of": lambda world: {"message_id": ASKED, "limit": 5},
    "path_of": lambda world: {"conversation_id": world.quiet, "message_ids": [ASKED]},
    "search_start": _none,
}
REPLY: Final[Mapping[str, Arguments]] = {
    "add": _with(_none, what="more"),
    "failed": _none,
    "finish": _none,
    "send": _none,
    "sent": _none,
}
RECEIPT: Final[Mapping[str, Arguments]] = {
    "saved": _with(_none, timeout=5.0),
    "state": _none,
    "superseded": _with(_none, timeout=5.0),
}
RECORDS: Final[Mapping[str, Arguments]] = {
    "delete": _with(_none, namespace=("a",), key="b"),
    "delete_many": _with(_none, keys=[(("a",), "b")]),
    "delete_where": _with(_none, prefix=("a",)),
    "erase": _none,
    "get": _with(_none, namespace=("a",), key="b"),
    "get_many": _with(_none, keys=[(("a",), "b")]),
    "list": _with(_none, prefix=("a",)),
    "namespaces": _with(_none, prefix=("a",)),
    "put": _with(_none, namespace=("a",), key="b", value={"c": 1}),
    "put_many": lambda world: {"puts": [RecordPut(("a",), "b", {"c": 1})]},
}
TRANSACTION: Final[Mapping[str, Arguments]] = {
    "append": HISTORY["append"],
    "delete_record": RECORDS["delete"],
    "put": RECORDS["put"],
}

TABLES: Final[Mapping[str, Mapping[str, Arguments]]] = {
    "History": HISTORY,
    "BlockingHistory": {name: made for name, made in HISTORY.items() if name != "append_in"},
    "Chat": CHAT,
    "BlockingChat": CHAT,
    "AllRecords": ALL_RECORDS,
    "BlockingAllRecords": ALL_RECORDS,
    "ConversationStore": STORE,
    "ErasureRegister": ERASURES,
    "OutboxAccess": OUTBOX_ACCESS,
    "Reply": REPLY,
    "BlockingReply": REPLY,
    "Receipt": RECEIPT,
    "BlockingReceipt": RECEIPT,
    "Transaction": TRANSACTION,
    "BlockingTransaction": {"append": HISTORY["append"]},
    "Records": RECORDS,
}
"""The classes with methods that a program calls, and arguments of each method that are in order."""

LEFT_OUT: Final[Mapping[str, str]] = {
    "EncodedEvent.has_content_of": "takes a digest and a salt that a file or a store holds",
    "OutboxAdmin.*": "what the command calls; the arguments of its verbs are tried in `commands`",
    "ContentRetention.rule_for": "called by the relay with what a store holds",
    "Timeouts.*": "called by the engines with what they checked",
    "RepeatFilter.filter": "called by the logging module with records of its own",
    "Rules.*": "called by the monitor with times of its own",
    "History.chat": "makes a `Chat`, whose calls are tried with each id",
    "BlockingHistory.chat": "makes a `Chat`, whose calls are tried with each id",
    "History": "constructor: see `constructors`",
    "BlockingHistory": "constructor: see `constructors`",
    "ConversationStore.open": "constructor: see `constructors`",
    "ConversationStore.close": "no arguments; ends the object",
    "ConversationStore.run_pending_tasks": "no arguments",
    "ConversationStore.pending_tasks": "no arguments",
    "ConversationStore.apply": "takes what only `LaneBatch` and `encode` make; what an outbox sends is that",
    "ConversationStore.new_identity": "no arguments; no outbox would deliver to the store any more",
    "OutboxAccess.statistics": "takes a `Period`, which `ConversationStore.statistics` makes",
    "OutboxAccess.snapshot": "takes a function of Letopis's own",
    "OutboxAccess.view": "takes a query of Letopis's own",
    "OutboxAccess.active_view": "arguments as `active`, and the origin of the outbox's own",
    "OutboxAccess.conflict_before": "takes a condition and an event that `append` has checked",
    "OutboxAccess.conversations": "arguments as `History.conversations`, which are tried",
    "Filter.*": "made by its constructor, which checks what it is given",
    "OutboxAccess.try_out": "takes the id of a conversation that the relay isolates",
    "ConversationStore.follower": "makes a `Follower`; wrong names are tried in `tests/integration/test_follow.py`",
    "Follower.*": "no arguments but at its constructor",
    "ConversationStore.projector": "takes an object of the program's, no input",
    "BlockingHistory.close": "no arguments; ends the object",
    "History.close": "no arguments; ends the object",
    "History.prepare": "no arguments",
    "Transaction.finish": "arguments as `Reply.finish`, and a reply that is open",
    "BlockingTransaction.finish": "arguments as `Reply.finish`, and a reply that is open",
    "BlockingTransaction.put": "as `Transaction.put`, which it calls",
    "BlockingTransaction.delete_record": "as `Transaction.delete_record`, which it calls",
    "BlockingRecords.*": "as `Records`, which it calls",
    "RecordReceipt.*": "arguments as `Receipt`, which it calls",
    "BlockingRecordReceipt.*": "arguments as `Receipt`, which it calls",
    "Scope.*": "made by the arguments of `History.records`, which are tried",
    "RecordedMessage.of_row": "called by reads, with what the store holds",
    "Transaction.session": "no arguments",
    "Transaction.execute": "takes a statement of the program's own, for its own tables",
    "Transaction.scalar": "takes a statement of the program's own, for its own tables",
    "BlockingTransaction.execute": "takes a statement of the program's own, for its own tables",
    "BlockingTransaction.scalar": "takes a statement of the program's own, for its own tables",
    "OutboxFile.*": "the file itself, for the relay and the command; takes functions of Letopis's own",
    "Relay.*": "no arguments but at its constructor",
    "BackgroundIndexer.*": "no arguments but at its constructor",
    "Conflict.*": "a result",
    "Precondition.*": "made by the options of `append`, which are tried",
    "Projector.*": "no arguments but at its constructor",
    "Projection.*": "a base class that programs fill in",
    "Channel.*": "a protocol that programs fill in",
    "Upcasters.*": "rules of the program's own, no input",
    "Status.*": "a result",
    "Incident.*": "a result",
    "Page.*": "a result",
    "RecordedEvent.*": "a result",
    "Event.of": "a constructor: see `constructors`",
    "ForkPoint.*": "a constructor: see `constructors`",
    "RetryPolicy.*": "called by the relay alone",
    "Bounds.*": "called by the outbox alone",
}
"""What has no hostile run here, and why."""

OBJECTS: Final[Mapping[str, str]] = {
    "append_in.connection": "a connection of the program's",
    "put.records": "an object of `History.records`",
    "delete_record.records": "an object of `History.records`",
    "context.count": "a function of the program's",
    "transcript.tz": "an object of `datetime`, no input",
}
"""Parameters that take an object of the program's and not a value."""


def surface() -> Iterator[tuple[str, str, Any]]:
    """Yield every public method as class, name and function."""
    for module in (letopis.store, letopis.outbox):
        for name in module.__all__:
            cls = getattr(module, name)
            if not inspect.isclass(cls) or issubclass(cls, LetopisError | str | tuple):
                continue
            if hasattr(cls, "from_data") or hasattr(cls, "with_changes"):
                continue  # values: their fields are tried, not their methods
            for found in dir(cls):
                if not found.startswith("_") and inspect.isroutine(getattr(cls, found)):
                    yield name, found, getattr(cls, found)


def parameters(cls: str, method: str) -> list[str]:
    """Return the parameters of a method that take a value; a chat has its conversation beside them."""
    found = inspect.signature(getattr(_class(cls), method)).parameters
    own = ["conversation_id"] if cls.endswith("Chat") else []
    names = [*own, *found, *(AppendOptions.__annotations__ if "options" in found else ())]
    return [name for name in names if name not in ("self", "options") and f"{method}.{name}" not in OBJECTS]


def untried() -> list[str]:
    """Return the public methods that have neither a run nor a reason: a new one is listed until it gets one."""
    missing = []
    for cls, method, _ in surface():
        if method in TABLES.get(cls, {}) or f"{cls}.{method}" in LEFT_OUT or f"{cls}.*" in LEFT_OUT:
            continue
        missing.append(f"{cls}.{method}")
    gone = [f"{cls}.{method} is no more" for cls, table in TABLES.items() for method in table if not _has(cls, method)]
    return missing + gone


def _class(name: str) -> Any:
    if name == "OutboxAccess":  # no application uses it
        return OutboxAccess
    return getattr(letopis.store if hasattr(letopis.store, name) else letopis.outbox, name)


def _has(cls: str, method: str) -> bool:
    return hasattr(_class(cls), method)


__all__ = ("LEFT_OUT", "TABLES", "BlockingHistory", "ConversationStore", "History", "World", "parameters", "untried")
