"""List every public method by its signature, with valid arguments of which one can be made hostile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import letopis.outbox
import letopis.store
from letopis.outbox import RecordPut
from letopis.outbox.history.options import AppendOptions
from letopis.store import LetopisError, Message
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


def _quiet(world: World) -> dict[str, Any]:
    return {"conversation": world.quiet}


def _owner(world: World) -> dict[str, Any]:
    return {"owner": OWNER}


def _none(world: World) -> dict[str, Any]:
    return {}


def _with(base: Arguments, **more: Any) -> Arguments:
    return lambda world: {**base(world), **more}


def _methods(groups: Mapping[Arguments, str]) -> Mapping[str, Arguments]:
    """Return by method what makes its arguments."""
    return dict(sorted((name, made) for made, names in groups.items() for name in names.split()))


def _append(world: World) -> dict[str, Any]:
    return {"conversation_id": world.lasting, "what": Message.user("words")}


def _replace(world: World) -> dict[str, Any]:
    return {"conversation_id": world.fresh(), "messages": [Message.user("words", id=ASKED)]}


HISTORY: Final = _methods(
    {
        _none: "conversations statistics status transaction unconfirmed",
        _owner: "active start",
        _read: "context messages",
        _said: "reply",
        _append: "append append_in",
        _with(_none, timeout=5.0): "drained",
        _with(_none, message_id="nowhere"): "message",
        _with(_none, query="words"): "search",
    }
)
CHAT: Final = _methods(
    {
        _own: "activate archive delete pop regenerate reset restore undo",
        _read: "conversation count events fork transcript",
        _message: "failed send sent",
        _replace: "replace",
        _with(_own, message_id=ANSWERED): "redact",
        _with(_own, to=ASKED): "rewind",
        _with(_read, message_id=ASKED): "message",
        _with(_said, tags="vip"): "tag",
        _with(_said, metadata={"a": 1}): "annotate",
        _with(_said, title="title"): "rename",
        _with(_message, content="anew"): "edit",
        _with(_message, key="like"): "react unreact",
    }
)
ALL_RECORDS: Final = _methods({_quiet: "__call__", _none: "scopes", _with(_none, tags={"run": "7"}): "find"})
STORE: Final = _methods(
    {
        _none: "catch_up_search conversations head identity log partitions ping prepare statistics subscribe",
        _owner: "active",
        _read: "conversation events messages",
        _quiet: "rebuild",
        lambda world: {"origin_id": world.origin_id, "conversation_ids": [world.quiet]}: "lane_heads",
        _with(_none, query="words"): "search",
    }
)
ERASURES: Final = _methods(
    {
        _none: "holds unacknowledged",
        _owner: "check_not_held",
        _with(_none, number=0): "after",
        _with(_none, kind="owner", subject="held", reason="asked"): "hold",
        _with(_none, kind="owner", subject="nobody", how="reset"): "register",
        _with(_none, kind="owner", subject="held"): "release",
    }
)
OUTBOX_ACCESS: Final = _methods(
    {
        _none: "search_start",
        _with(_none, message_id=ASKED, limit=5): "conversations_of",
        _with(_read, message_ids=[ASKED]): "path_of",
    }
)
REPLY: Final = _methods({_none: "failed finish send sent", _with(_none, what="more"): "add"})
RECEIPT: Final = _methods({_none: "state", _with(_none, timeout=5.0): "saved superseded"})
RECORDS: Final = _methods(
    {
        _none: "erase",
        _with(_none, prefix=("a",)): "delete_where list namespaces",
        _with(_none, namespace=("a",), key="b"): "delete get",
        _with(_none, namespace=("a",), key="b", value={"c": 1}): "put",
        _with(_none, keys=[(("a",), "b")]): "delete_many get_many",
        _with(_none, puts=[RecordPut(("a",), "b", {"c": 1})]): "put_many",
    }
)
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

LEFT_OUT: Final[Mapping[str, Sequence[str]]] = {
    "a constructor: see `constructors`": ("ConversationStore.open", "Event.of", "ForkPoint.*"),
    "a result": ("Conflict.*", "Status.*", "Incident.*", "Page.*", "RecordedEvent.*"),
    "no arguments": (
        *("ConversationStore.close", "ConversationStore.run_pending_tasks", "ConversationStore.pending_tasks"),
        *("ConversationStore.new_identity", "History.close", "History.prepare", "Transaction.session"),
    ),
    "no arguments but at its constructor": ("Follower.*", "Relay.*", "BackgroundIndexer.*", "Projector.*"),
    "made by its constructor, or by arguments, which are tried": ("Filter.*", "Scope.*", "Precondition.*"),
    "a base class or a protocol that programs fill in": ("Projection.*", "Channel.*"),
    "an object, rules or a statement of the program's, no input": (
        *("ConversationStore.projector", "Upcasters.*", "Transaction.execute", "Transaction.scalar"),
    ),
    "called by Letopis alone, with what it checked or a store holds": (
        *("ContentRetention.rule_for", "Timeouts.*", "RepeatFilter.filter", "RecordedMessage.of_row", "RetryPolicy.*"),
        *("Bounds.*", "EncodedEvent.has_content_of"),
    ),
    "the file itself, for the relay and the command; takes functions of Letopis's own": ("OutboxFile.*",),
    "what the command calls; the arguments of its verbs are tried in `commands`": ("OutboxAdmin.*",),
    "makes a `Chat`, whose calls are tried with each id": ("History.chat",),
    "makes a `Follower`; wrong names are tried in `tests/integration/test_follow.py`": ("ConversationStore.follower",),
    "takes what only `LaneBatch` and `encode` make; what an outbox sends is that": ("ConversationStore.apply",),
    "arguments as `Reply.finish`, and a reply that is open": ("Transaction.finish",),
    "as its twin that is not blocking, which it calls": (
        *("BlockingTransaction.put", "BlockingTransaction.delete_record", "BlockingRecords.*"),
    ),
    "arguments as `Receipt`, which it calls": ("RecordReceipt.*",),
}
"""Why there is no hostile run here of what; of a blocking class neither, where its twin has none."""
_LEFT_OUT: Final = frozenset(name for names in LEFT_OUT.values() for name in names)

OBJECTS: Final[Mapping[str, str]] = {
    "append_in.connection": "a connection of the program's",
    "put.records": "an object of `History.records`",
    "delete_record.records": "an object of `History.records`",
    "context.count": "a function of the program's",
    "transcript.tz": "an object of `datetime`, no input",
}
"""Parameters that take an object of the program's and not a value."""


def surface() -> Iterator[tuple[str, str]]:
    """Yield every public method as class and name."""
    for module in (letopis.store, letopis.outbox):
        for name in module.__all__:
            cls = getattr(module, name)
            if not inspect.isclass(cls) or issubclass(cls, LetopisError | str | tuple):
                continue
            if hasattr(cls, "from_data") or hasattr(cls, "with_changes"):
                continue  # values: their fields are tried, not their methods
            for found in dir(cls):
                if not found.startswith("_") and inspect.isroutine(getattr(cls, found)):
                    yield name, found


def parameters(cls: str, method: str) -> list[str]:
    """Return the parameters of a method that take a value; a chat has its conversation beside them."""
    found = inspect.signature(getattr(_class(cls), method)).parameters
    own = ["conversation_id"] if cls.endswith("Chat") else []
    names = [*own, *found, *(AppendOptions.__annotations__ if "options" in found else ())]
    return [name for name in names if name not in ("self", "options") and f"{method}.{name}" not in OBJECTS]


def untried() -> list[str]:
    """Return the public methods that have neither a run nor a reason: a new one is listed until it gets one."""
    missing = []
    for cls, method in surface():
        names = {f"{one}.{name}" for one in (cls, cls.removeprefix("Blocking")) for name in (method, "*")}
        if method not in TABLES.get(cls, {}) and not names & _LEFT_OUT:
            missing.append(f"{cls}.{method}")
    tables = ((cls, method) for cls, table in TABLES.items() for method in table)
    return missing + [f"{cls}.{method} is no more" for cls, method in tables if not hasattr(_class(cls), method)]


def _class(name: str) -> Any:
    if name == "OutboxAccess":  # no application uses it
        return OutboxAccess
    return getattr(letopis.store if hasattr(letopis.store, name) else letopis.outbox, name)
