"""Check that no statement is built of values, and that nothing is unpickled, evaluated or given to a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[3]
FOLDERS: Final = ("store", "outbox", "migrations")
TAKES_SQL: Final = frozenset(
    {"execute", "executemany", "executescript", "exec_driver_sql", "text", "scalar", "scalars", "stream"}
)
TAKES_SQL_SECOND: Final = frozenset({"query_one", "query_all", "fetch_one", "fetch_all", "iterate"})
"""Functions of ours whose second argument is a statement."""
FORBIDDEN: Final = frozenset({"eval", "exec", "compile", "__import__"})
FORBIDDEN_OF: Final = {
    "pickle": frozenset({"load", "loads", "Unpickler"}),
    "marshal": frozenset({"load", "loads"}),
    "yaml": frozenset({"load", "unsafe_load", "full_load"}),
    "shelve": frozenset({"open"}),
    "os": frozenset({"system", "popen"}),
}
_OUTBOX: Final = "outbox/letopis/outbox"
_CONDITIONS: Final = "the conditions of a Selection, constants with places for parameters"
_REASONS: Final = {
    "outbox/letopis/adapters/telegram/persistence.py LetopisPersistence._decoded": (
        "only with codec='pickle', which the caller has chosen; the documentation says what it costs"
    ),
    "store/letopis/store/database/sqlite.py truncate_wal": "the number that SQLite itself gave for the same pragma",
    "store/letopis/store/database/citus.py Citus.insert": "names of a table and its columns, and places for parameters",
    "store/letopis/store/database/postgresql.py create_postgresql_engine.limit": (
        "names of settings and numbers of milliseconds of ours"
    ),
    f"{_OUTBOX}/pending_reads/pending_statistics.py _lanes": "conditions that its two callers write as constants",
    "outbox/letopis/ops/transfer/importer.py _select": "one of two constants, filled with places for parameters",
    f"{_OUTBOX}/operations/pending_events.py list_pending": _CONDITIONS,
    f"{_OUTBOX}/operations/repair.py _lanes": _CONDITIONS,
    f"{_OUTBOX}/pending_reads/pending_search.py snapshot": "constant conditions with places for parameters",
    f"{_OUTBOX}/file/wal_checkpoint.py WalCheckpoint.run": "the number that SQLite itself gave for the same pragma",
}
ALLOWED: Final = {tuple(place.split()): reason for place, reason in _REASONS.items()}
"""Module and function where a statement has a part that is not visibly a constant, and what that part is."""


class Found(NamedTuple):
    """One place that breaks the rule."""

    module: str
    function: str
    line: int
    what: str


def sources() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every module of the product."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def broken(module: str, source: str) -> list[Found]:
    """Return where a module breaks the rule; what is allowed for a reason too."""
    return list(_within(module, ast.parse(source), "", {}))


PLANTED: Final[dict[str, str]] = {
    "f-string": "def a(c, x):\n    c.execute(f'SELECT 1 WHERE a = {x}')\n",
    "percent": "def a(c, x):\n    c.execute('SELECT 1 WHERE a = %s' % x)\n",
    "plus": "def a(c, x):\n    c.exec_driver_sql('SELECT 1 WHERE a = ' + x)\n",
    "format": "def a(c, x):\n    c.execute('SELECT {}'.format(x))\n",
    "text": "import sqlalchemy as sa\ndef a(x):\n    return sa.text(f'SELECT {x}')\n",
    "a name first": "def a(c, x):\n    words = f'SELECT {x}'\n    c.execute(words)\n",
    "grown": "def a(c, x):\n    words = 'SELECT 1'\n    words += f' WHERE {x}'\n    c.execute(words)\n",
    "helper": "def a(c, x):\n    query_one(c, f'SELECT 1 WHERE a = {x}')\n",
    "join": "def a(c, xs):\n    c.execute('SELECT 1 WHERE a IN (' + ', '.join(xs) + ')')\n",
    "pickle": "import pickle\ndef a(x):\n    return pickle.loads(x)\n",
    "marshal": "import marshal\ndef a(x):\n    return marshal.loads(x)\n",
    "yaml": "import yaml\ndef a(x):\n    return yaml.load(x)\n",
    "eval": "def a(x):\n    return eval(x)\n",
    "exec": "def a(x):\n    exec(x)\n",
    "shell": "import subprocess\ndef a(x):\n    subprocess.run(x, shell=True)\n",
}
"""What the rule has to find, each on its own."""


def _within(module: str, scope: ast.AST, name: str, known: dict[str, list[ast.expr]]) -> Iterator[Found]:
    assigned = {**known, **_assigned(scope)}
    for node in _own(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _within(module, node, f"{name}.{node.name}".lstrip("."), assigned)
        elif isinstance(node, ast.Call) and (what := _wrong(node, assigned)) is not None:
            yield Found(module, name, node.lineno, what)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def _assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in _own(scope):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


def _wrong(call: ast.Call, assigned: dict[str, list[ast.expr]]) -> str | None:
    function = call.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    if isinstance(function, ast.Name) and name in FORBIDDEN:
        return f"{name}() runs what it is handed"
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if name in FORBIDDEN_OF.get(owner, frozenset()):
        return f"{owner}.{name}() runs what it is handed"
    if any(one.arg == "shell" and getattr(one.value, "value", True) is not False for one in call.keywords):
        return "shell= hands words to a shell"
    statement = call.args[0:1] if name in TAKES_SQL else call.args[1:2] if name in TAKES_SQL_SECOND else []
    if statement and not _constant(statement[0], assigned, 0):
        return f"{name}() is given a statement that is put together of what is no constant"
    return None


def _constant(value: ast.expr, assigned: dict[str, list[ast.expr]], depth: int) -> bool:
    """Return True if what a statement is made of is a constant, or no text that was put together here."""
    if depth > 8:
        return False
    match value:
        case ast.JoinedStr():
            return all(
                _harmless(one.value, assigned, depth) for one in value.values if isinstance(one, ast.FormattedValue)
            )
        case ast.BinOp(op=ast.Add() | ast.Mod()):
            return _harmless(value.left, assigned, depth) and _harmless(value.right, assigned, depth)
        case ast.Call(func=ast.Attribute(attr="format", value=template)):
            parts = [*value.args, *(one.value for one in value.keywords)]
            return all(_harmless(one, assigned, depth) for one in (template, *parts))
        case ast.Name(id=name) if name in assigned:
            return all(_constant(one, assigned, depth + 1) for one in assigned[name])
        case ast.IfExp():
            return _constant(value.body, assigned, depth) and _constant(value.orelse, assigned, depth)
        case _:
            return True  # a name from elsewhere, an object of SQLAlchemy: not put together here


def _harmless(value: ast.expr, assigned: dict[str, list[ast.expr]], depth: int) -> bool:
    """Return True if a part that is put into a statement is a constant, a number, or places for parameters."""
    match value:
        case ast.Constant() | ast.Call(func=ast.Name(id="int" | "round" | "len")):
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name) if name.lstrip("_").isupper():
            return True
        case ast.Name(id=name):
            return name in assigned and all(_harmless(one, assigned, depth + 1) for one in assigned[name]) and depth < 8
        case ast.Call(func=ast.Attribute(attr="join", value=ast.Constant()), args=[joined]):
            return _harmless(joined, assigned, depth)
        case ast.Call(func=ast.Attribute(attr="format")) | ast.JoinedStr():
            return _constant(value, assigned, depth)
        case ast.GeneratorExp() | ast.ListComp():
            named = {one.target.id for one in value.generators if isinstance(one.target, ast.Name)}
            safe = all(_harmless(one.iter, assigned, depth) for one in value.generators)
            return safe and _harmless(value.elt, {**assigned, **{name: [ast.Constant("")] for name in named}}, depth)
        case ast.List() | ast.Tuple():
            return all(_harmless(one, assigned, depth) for one in value.elts)
        case ast.BinOp():
            # A repeated string: places for parameters.
            return _harmless(value.left, assigned, depth) and (
                isinstance(value.op, ast.Mult) or _harmless(value.right, assigned, depth)
            )
        case ast.IfExp():
            return _harmless(value.body, assigned, depth) and _harmless(value.orelse, assigned, depth)
        case ast.Subscript(value=of):
            return _harmless(of, assigned, depth)
        case _:
            return False


def unreasoned() -> list[Found]:
    """Return where the product breaks the rule without a reason."""
    return [
        one
        for module, source in sources()
        for one in broken(module, source)
        if (one.module, one.function) not in ALLOWED
    ]
