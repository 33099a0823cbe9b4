"""Generate the synchronous API from the asynchronous classes: `python -m tests.support.sync_api`."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, Final, get_overloads

from letopis.outbox import AllRecords, Chat, History, Receipt, RecordReceipt, Records, Reply, Transaction
from tests.support.paths import ROOT

OUTBOX: Final = ROOT / "outbox" / "letopis" / "outbox" / "sync"

TWINS: Final = {
    "Receipt": Receipt,
    "RecordReceipt": RecordReceipt,
    "Records": Records,
    "AllRecords": AllRecords,
    "Chat": Chat,
    "Transaction": Transaction,
    "Reply": Reply,
    "History": History,
}
"""What has a twin, by the name that annotations call it."""

_FACES: Final = {f"Blocking{name}" for name in TWINS}

# Set in `__init__`, so that the class itself does not tell of them.
ATTRIBUTES: Final = {
    Chat: {"conversation_id": "str"},
    Reply: {"conversation_id": "str", "message_id": "str", "event_id": "UUID"},
}

BESIDE: Final = {
    # `append_in` takes asyncio's connections and sessions, and the properties belong to an event loop: a caller that
    # has one uses `History` there. `BlockingHistory` is prepared when it is made, and its `close` ends the portal too.
    History: {"append_in", "close", "outbox", "prepare", "relay", "store"},
    Transaction: {"connection", "session"},
}
"""What has no twin, and why."""

NARROWER: Final = {
    ("finish", "reply"): "BlockingReply",
    ("put", "records"): "BlockingRecords",
    ("delete_record", "records"): "BlockingRecords",
}
"""Annotations that differ from those of the asynchronous API."""

_ABOUT: Final = {
    "Receipt": """What ``BlockingHistory.append`` gives back: a :class:`Receipt` whose methods wait.

    Equal to another one of the same events.
    """,
    "RecordReceipt": "What ``BlockingRecords.put`` gives back: a :class:`RecordReceipt` whose methods wait.",
    "Records": "The records of one scope: :class:`Records` whose methods wait. Any number of threads may use it.",
    "AllRecords": "What frameworks keep beside the messages: :class:`AllRecords` whose methods wait.",
    "Chat": "One conversation of a history: a :class:`Chat` whose methods wait. Any number of threads may use it.",
    "Transaction": "An open transaction: a :class:`Transaction` whose methods wait. Used by one thread at a time.",
    "Reply": "A reply that is being written: a :class:`Reply` whose methods wait. Used by one thread at a time.",
    "History": """A :class:`History` whose methods wait, for programs without asyncio, open as soon as it is made.

    ::

        with BlockingHistory("bot.outbox.db") as history:
            history.append("chat-1", Message.user("What is tea?"))

    Use it as a context manager, or close it. Options as for :class:`History`; ``inside_loop="block"`` allows calls in
    threads that run an event loop, and each blocks that loop. The store is named by URL or path. Any number of threads
    may use it, except forked children. A thread whose wait is interrupted, as by Ctrl-C, cancels what it waited for:
    the file stays consistent, and an append may have taken effect.

    :raises InEventLoop: this thread runs an event loop and may not block it, or the outbox is open in that loop.
    :raises ConfigurationError: the path, the URL or an option is wrong.
    :raises OutboxUnavailable: the file cannot be used at present.
    """,
}
_BY_WHOM: Final = (
    """Written by `python -m tests.support.sync_api` from the asynchronous classes, and not edited by hand."""
)
_BEGINNING: Final = '''"""{about}"""

__slots__ = ()
'''
_AS_VALUE: Final = """
def __eq__(self, other: object) -> bool:
    return self._inner == other._inner if isinstance(other, BlockingReceipt) else NotImplemented

def __hash__(self) -> int:
    return hash(self._inner)

def __repr__(self) -> str:
    return f"Blocking{self._inner!r}"
"""
_FACE: Final = '''P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BlockingOptions(Options):
    """What ``BlockingHistory(...)`` is given."""

    store: str | URL | os.PathLike[str] | None = None
    inside_loop: InsideLoop = "refuse"

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if isinstance(self.store, ConversationStore):
            raise ConfigurationError("a ConversationStore belongs to an event loop: give its URL or path")


class SyncBase(Generic[T]):
    """What the synchronous classes share: an asynchronous object, and the portal that they call it through."""

    __slots__ = ("_inner", "_portal")

    def __init__(self, portal: Portal, inner: T) -> None:
        self._portal = portal
        self._inner = inner

    @staticmethod
    def _inner_of(given: Any) -> Any:
        return getattr(given, "_inner", given)  # what is no twin is refused by the method that it is handed to

    def _call_receipt(
        self, fn: Callable[P, Awaitable[Receipt]], /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingReceipt:
        return BlockingReceipt(self._portal, self._portal.call(fn, *args, **kwargs))


'''
_AS_CONTEXT: Final = '''
@keywords_of(BlockingOptions)
def __init__(self, options: BlockingOptions) -> None:
    given = {option.name: getattr(options, option.name) for option in fields(Options)}
    history = History(**given)
    super().__init__(Portal(history._home, inside_loop=options.inside_loop), history)
    self._portal.open()

def close(self) -> None:
    """Close the history as the end of an ``async with`` block closes a :class:`History`. Idempotent."""
    self._portal.close()

def __enter__(self) -> Self:
    self._portal.check()
    return self

def __exit__(self, *_: object) -> None:
    self.close()
'''
ROOM: Final = "_generated"
_JOB: Final = "Offer the history to programs without asyncio, each method one call into an event loop of its own."
_IMPORTS: Final = (
    "from collections.abc import Awaitable, Callable",
    "from contextlib import AbstractContextManager",
    "from dataclasses import dataclass, fields",
    "from letopis.outbox.history.options import Options, keywords_of",
    "from letopis.outbox.sync.portal import Block, InsideLoop, Portal",
    "from letopis.store.conversation_store import ConversationStore",
    "from letopis.store.errors import ConfigurationError",
    "from sqlalchemy.engine import URL",
    "from typing import Generic, ParamSpec, Self, TypeVar, overload",
    "import os",
)


@dataclass(slots=True)
class Names:
    wanted: dict[str, str] = field(default_factory=dict)

    def of(self, node: ast.AST, module: ModuleType) -> None:
        """Note the names in ``node``, as ``module`` takes them."""
        for name in sorted({one.id for one in ast.walk(node) if isinstance(one, ast.Name)}):
            if not hasattr(builtins, name) and name not in _FACES:
                self.wanted[name] = origins(module).get(name, f"from {module.__name__} import {name}")


@cache
def origins(module: ModuleType) -> dict[str, str]:
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: f"import {_as(alias)}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"from {node.module} import {_as(alias)}" for alias in node.names}
    return found


def _as(alias: ast.alias) -> str:
    return alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"


def public(subject: type[Any]) -> Iterator[tuple[str, Any, ModuleType]]:
    """What a class and those it is made of offer, with the module that says so, in order."""
    seen: set[str] = set()
    beside = {name for part in subject.__mro__ for name in BESIDE.get(part, ())}
    for part in reversed(subject.__mro__):
        for name, value in vars(part).items():
            if (name.startswith("_") and name != "__call__") or name in seen | beside or part is object:
                continue
            if isinstance(value, FunctionType | property):
                seen.add(name)
                yield name, value, importlib.import_module(_plain(value).__module__)


def _plain(value: Any) -> Any:
    """The function of a method or property: it knows the module that it is written in."""
    return value.fget if isinstance(value, property) else value


def definition(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


def said(name: str, subject: str, *, waits: bool) -> str:
    """The docstring: where the contract is."""
    return textwrap.indent(f'"""As :meth:`{subject}.{name}`{"; waits" if waits else ""}."""', "    ")


def twin_of(annotation: str) -> tuple[str, str]:
    """Return the annotation of a result on this side, and the expression that makes it of ``value``."""
    for name in TWINS:
        made = f"Blocking{name}(self._portal, value)"
        if annotation == name:
            return f"Blocking{name}", made
        if annotation == f"{name} | None":
            return f"Blocking{name} | None", f"None if value is None else {made}"
        if annotation == f"Sequence[{name}]":
            return f"Sequence[Blocking{name}]", f"[Blocking{name}(self._portal, item) for item in value]"
    names = {one.id for one in ast.walk(ast.parse(annotation)) if isinstance(one, ast.Name)}
    if names & {*TWINS, "AsyncIterator", "AsyncGenerator", "AsyncIterable", "Awaitable", "Coroutine"}:
        raise NotImplementedError(f"teach {__name__} what {annotation} is on this side")
    return annotation, "value"


def body_of(expression: str, made: str) -> str:
    """Return the lines that return what is made of the value of an expression."""
    if made == "value":
        return f"    return {expression}"
    if made.startswith("None if"):
        return f"    value = {expression}\n    return {made}"
    return f"    return {made.replace('value', expression)}"


def is_twin(argument: ast.arg) -> bool:
    """Return True if an argument is a twin on this side: what it is the twin of is handed on."""
    return argument.annotation is not None and ast.unparse(argument.annotation) in {"BlockingReply", "BlockingRecords"}


def passed(arguments: ast.arguments) -> str:
    """The arguments of a method as it hands them on."""
    words = [
        f"self._inner_of({one.arg})" if is_twin(one) else one.arg
        for one in (*arguments.posonlyargs, *arguments.args)[1:]
    ]
    words += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    words += [f"{one.arg}={one.arg}" for one in arguments.kwonlyargs]
    words += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return ", ".join(words)


def method(subject: str, name: str, value: Any, module: ModuleType, names: Names) -> str:
    """The twin of a method or property."""
    inner = "self._inner"
    function = _plain(value)
    node = definition(function)
    arguments = node.args
    for one in (*arguments.args, *arguments.kwonlyargs):
        if (name, one.arg) in NARROWER:
            one.annotation = ast.parse(NARROWER[name, one.arg], mode="eval").body
    assert node.returns is not None, name
    names.of(arguments, module)
    result = node.returns
    is_block = isinstance(result, ast.Subscript) and ast.unparse(result.value) in {
        "AsyncIterator",
        "AbstractAsyncContextManager",
    }
    is_async = isinstance(node, ast.AsyncFunctionDef)
    if is_block and is_async and not hasattr(function, "__wrapped__"):
        raise NotImplementedError(f"teach {__name__} what the async generator {name} is on this side")
    if is_block:
        assert isinstance(result, ast.Subscript)
        result = result.slice
    returns, made = twin_of(ast.unparse(result))
    names.of(ast.parse(returns), module)
    given = passed(arguments)
    mark = ""
    if is_block:
        body = f"    return Block(self._portal, lambda: {inner}.{name}({given}), lambda value: {made})"
    elif isinstance(value, property):
        mark = "@property\n"
        body = body_of(f"{inner}.{name}", made)
    elif is_async and made == "BlockingReceipt(self._portal, value)":
        body = f"    return self._call_receipt({', '.join(filter(None, (f'{inner}.{name}', given)))})"
    elif is_async:
        body = body_of(f"self._portal.call({', '.join(filter(None, (f'{inner}.{name}', given)))})", made)
    elif made != "value":
        body = body_of(f"{inner}.{name}({given})", made)  # makes an object, and waits for nothing
    else:
        raise NotImplementedError(f"teach {__name__} what {subject}.{name} is on this side: it is not async")
    if is_block:
        returns = f"AbstractContextManager[{returns}]"
    signature = f"def {name}({ast.unparse(arguments)}) -> {returns}"
    about = said(name, subject, waits=is_async or is_block)
    return f"{overloads(function, names)}{mark}{signature}:\n{about}\n{body}\n"


def overloads(function: Any, names: Names) -> str:
    """The overloads of a method, none of which returns anything that has a twin."""
    parts = []
    for one in get_overloads(inspect.unwrap(function)):
        node = definition(one)
        assert node.returns is not None
        names.of(node.args, importlib.import_module(function.__module__))
        parts.append(f"@overload\ndef {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}: ...\n\n")
    return "".join(parts)


def sources(subject: str) -> ModuleType:
    """The module that a class is written in, which its ``__module__`` need not name."""
    return [module for _, _, module in public(TWINS[subject])][-1]


def attribute(subject: str, name: str, annotation: str) -> str:
    return (
        f'@property\ndef {name}(self) -> {annotation}:\n    """As in :class:`{subject}`."""\n'
        f"    return self._inner.{name}\n"
    )


def face(subject: str, names: Names) -> str:
    cls = TWINS[subject]
    module = sources(subject)
    own = {name: of for name, of in inspect.get_annotations(cls).items() if not name.startswith("_")}
    parts = []
    for name, annotation in {**ATTRIBUTES.get(cls, {}), **own}.items():
        names.of(ast.parse(annotation), module)
        parts.append(attribute(subject, name, annotation))
    parts += [method(subject, name, value, where, names) for name, value, where in public(cls)]
    begin = _BEGINNING.format(about=_ABOUT[subject])
    if subject == "Receipt":
        begin += _AS_VALUE
    if subject == "History":
        begin += _AS_CONTEXT
    return f"class Blocking{subject}(SyncBase[{subject}]):\n" + textwrap.indent("\n".join((begin, *parts)), "    ")


def written() -> str:
    """The module, before it is formatted."""
    names = Names()
    faces = [face(subject, names) for subject in TWINS]
    imports = {*names.wanted.values(), *_IMPORTS}
    imports |= {f"from {sources(subject).__name__} import {subject}" for subject in TWINS}
    head = f'"""{_JOB}\n\n{_BY_WHOM}\n"""\n\nfrom __future__ import annotations\n\n'
    return head + "\n".join(sorted(imports)) + "\n\n\n" + _FACE + "\n\n".join(faces)


def formatted(source: str) -> str:
    """The module as stored."""
    for command in (("check", "--select", "I", "--fix", "--quiet"), ("format", "--quiet")):
        source = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(OUTBOX / f"{ROOM}.py"), "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return source


if __name__ == "__main__":
    (OUTBOX / f"{ROOM}.py").write_text(formatted(written()), encoding="utf-8")
