"""List every public method by its signature, with valid arguments of which one can be made hostile."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from operator import attrgetter
from typing import Any, Final

import letopis.outbox
import letopis.store
from letopis.outbox import RecordPut
from letopis.outbox.history.options import AppendOptions
from letopis.store import LetopisError, Message

OWNER: Final = "owner-1"
ASKED: Final = "m-asked"
ANSWERED: Final = "m-answered"


@dataclass
class World:
    """What the calls are made on: conversations that are there already, each for one call that changes it."""

    prefix: str
    ready: int
    origin_id: Any = None

    def __post_init__(self) -> None:
        self.names = [f"{self.prefix}-{number}" for number in range(self.ready)]
        # What is written to grows, and would make every read of it slow.
        self.lasting, self.quiet, *others = self.names
        self._others = cycle(others)

    def fresh(self) -> str:
        """Return one that no call has changed, as far as there are any left."""
        return next(self._others)


Arguments = Callable[[World], dict[str, Any]]
FRESH: Final = World.fresh
QUIET: Final = attrgetter("quiet")
LASTING: Final = attrgetter("lasting")


def _given(**made: Any) -> Arguments:
    """Return what makes arguments; a function among them is asked for the argument."""
    return lambda world: {name: value(world) if callable(value) else value for name, value in made.items()}


def _methods(groups: Mapping[Arguments, str]) -> Mapping[str, Arguments]:
    """Return by method what makes its arguments."""
    return dict(sorted((name, made) for made, names in groups.items() for name in names.split()))


_NONE: Final = _given()
_OWNER: Final = _given(owner=OWNER)
_READ: Final = _given(conversation_id=QUIET)
_MESSAGE: Final = {"conversation_id": LASTING, "message_id": ANSWERED}
HISTORY: Final = _methods(
    {
        _NONE: "conversations statistics status transaction unconfirmed",
        _OWNER: "active start",
        _READ: "context messages",
        _given(conversation_id=LASTING): "reply",
        _given(conversation_id=LASTING, what=lambda _: Message.user("words")): "append append_in",
        _given(timeout=5.0): "drained",
        _given(message_id="nowhere"): "message",
        _given(query="words"): "search",
    }
)
CHAT: Final = _methods(
    {
        _given(conversation_id=FRESH): "activate archive delete pop regenerate reset restore undo",
        _READ: "conversation count events fork transcript",
        _given(**_MESSAGE): "failed send sent",
        _given(conversation_id=FRESH, messages=[Message.user("words", id=ASKED)]): "replace",
        _given(conversation_id=FRESH, message_id=ANSWERED): "redact",
        _given(conversation_id=FRESH, to=ASKED): "rewind",
        _given(conversation_id=QUIET, message_id=ASKED): "message",
        _given(conversation_id=QUIET, question_id=ASKED): "answers",
        _given(conversation_id=LASTING, tags="vip"): "tag",
        _given(conversation_id=LASTING, metadata={"a": 1}): "annotate",
        _given(conversation_id=LASTING, title="title"): "rename",
        _given(**_MESSAGE, content="anew"): "edit",
        _given(**_MESSAGE, key="like"): "react unreact",
    }
)
ALL_RECORDS: Final = _methods(
    {_given(conversation=QUIET): "__call__", _NONE: "scopes", _given(tags={"run": "7"}): "find"}
)
STORE: Final = _methods(
    {
        _NONE: "catch_up_search conversations head identity log partitions ping prepare statistics subscribe",
        _OWNER: "active",
        _READ: "conversation events messages",
        _given(origin_id=attrgetter("origin_id"), conversation_ids=lambda world: [world.quiet]): "lane_heads",
        _given(query="words"): "search",
    }
)
ERASURES: Final = _methods(
    {
        _NONE: "holds unacknowledged",
        _OWNER: "check_not_held",
        _given(number=0): "after",
        _given(kind="owner", subject="held", reason="asked"): "hold",
        _given(kind="owner", subject="nobody", how="reset"): "register",
        _given(kind="owner", subject="held"): "release",
        _given(kind="owner", subject="nobody"): "last",
    }
)
REPLY: Final = _methods({_NONE: "failed finish send sent", _given(what="more"): "add"})
RECEIPT: Final = _methods({_NONE: "state", _given(timeout=5.0): "saved superseded"})
RECORDS: Final = _methods(
    {
        _NONE: "erase",
        _given(prefix=("a",)): "delete_where list namespaces",
        _given(namespace=("a",), key="b"): "delete get",
        _given(namespace=("a",), key="b", value={"c": 1}): "put",
        _given(keys=[(("a",), "b")]): "delete_many get_many",
        _given(puts=[RecordPut(("a",), "b", {"c": 1})]): "put_many",
    }
)
TRANSACTION: Final[Mapping[str, Arguments]] = {
    "append": HISTORY["append"],
    "delete_record": RECORDS["delete"],
    "put": RECORDS["put"],
}

TABLES: Final[Mapping[str, Mapping[str, Arguments]]] = {
    "History": HISTORY,
    "Chat": CHAT,
    "AllRecords": ALL_RECORDS,
    "ConversationStore": STORE,
    "ErasureRegister": ERASURES,
    "Reply": REPLY,
    "Receipt": RECEIPT,
    "Transaction": TRANSACTION,
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
        *("Bounds.*", "EncodedEvent.has_content_of", "ErasureRegister.repeat", "ErasureRegister.erasure_bounds"),
    ),
    "the file itself, for the relay and the command; takes functions of Letopis's own": ("OutboxFile.*",),
    "what the command calls; the arguments of its verbs are tried in `commands`": ("OutboxAdmin.*",),
    "makes a `Chat`, whose calls are tried with each id": ("History.chat",),
    "makes a `Follower`; wrong names are tried in `tests/integration/test_follow.py`": ("ConversationStore.follower",),
    "takes what only `LaneBatch` and `encode` make; what an outbox sends is that": ("ConversationStore.apply",),
    "arguments as `Reply.finish`, and a reply that is open": ("Transaction.finish",),
    "arguments as `ErasureRegister.record`, and a file; see tests/conformance/test_authors.py": (
        *("History.erase", "History.export"),
    ),
    "arguments as `Receipt`, which it calls": ("RecordReceipt.*",),
}
"""Why there is no hostile run here of what; a blocking class calls its twin, and has what that has."""
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
        twin = cls.removeprefix("Blocking")
        if method not in TABLES.get(twin, {}) and not {f"{twin}.{method}", f"{twin}.*"} & _LEFT_OUT:
            missing.append(f"{cls}.{method}")
    tables = ((cls, method) for cls, table in TABLES.items() for method in table)
    return missing + [f"{cls}.{method} is no more" for cls, method in tables if not hasattr(_class(cls), method)]


def _class(name: str) -> Any:
    return getattr(letopis.store if hasattr(letopis.store, name) else letopis.outbox, name)
