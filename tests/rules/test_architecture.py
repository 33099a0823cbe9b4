"""The house holds: imports run one way, every module has one declared place, and what is forbidden is absent."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# One entry a room, lowest first: a module imports only from its own room and from those before it. A room is a package,
# or a module that stands beside the packages; `__main__` and the front doors stand above everything.
ROOMS: dict[str, tuple[str, ...]] = {
    "letopis.store": (
        "errors",
        "cancellation",
        "model",
        "rules",
        "database",
        "read",
        "projections",
        "search",
        "write",
        "maintenance",
        "_components",
        "_runtime",
        "erasures",
        "outbox_access",
        "conversation_store",
        "relocation",
        "transfer",
        "testing",
    ),
    "letopis.outbox": (
        "telemetry",
        "concurrency",
        "retry",
        "event_log",
        "file",
        "alerting",
        "relay",
        "operations",
        "pending_reads",
        "drafts",
        "history",
        "sync",
        "transfer",
        "config",
        "diagnostics",
        "daemon",
        "cli",
    ),
    "letopis.console": (
        "access",
        "headers",
        "forms",
        "charts",
        "assets",
        "i18n",
        "words",
        "verdict",
        "configuration",
        "stuck_lanes",
        "incident_list",
        "store_log",
        "insight",
        "activity",
        "figures",
        "verification",
        "state",
        "rendering",
        "visit",
        "pages",
        "application",
        "standalone",
        "hosted",
    ),
    "letopis.examples": ("demo",),
    "letopis.testing": ("clock", "platform", "store", "fixtures"),
    "letopis.adapters": (
        "_envelope",
        "formats",
        "_blocking",
        "_messages",
        "_values",
        "agent_framework",
        "telegram_core",
        "aiogram",
        "google_adk",
        "haystack",
        "langchain",
        "langgraph",
        "llama_index",
        "openai_agents",
        "pydantic_ai",
        "strands",
        "pyrogram",
        "telegram",
        "voxpersona",
    ),
}

# Published beside the front door, and built on it.
ABOVE_THE_DOOR = frozenset({"testing"})

# The one direction between the packages: who may import whom.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "letopis": frozenset({"letopis._public"}),
    "letopis._public": frozenset({"letopis.store", "letopis.outbox"}),
    "letopis.store": frozenset(),
    "letopis.outbox": frozenset({"letopis.store"}),
    "letopis.adapters": frozenset({"letopis.store", "letopis.outbox"}),
    "letopis.console": frozenset({"letopis.store", "letopis.outbox"}),
    "letopis.examples": frozenset({"letopis.store", "letopis.outbox"}),
    "letopis.testing": frozenset({"letopis.store", "letopis.outbox"}),
    "letopis.migrations": frozenset({"letopis.store", "letopis.outbox"}),
}

# What an env.py may know of the code: the tables, what opens a database, and what says why it does not. Revisions are
# frozen and know nothing.
MIGRATIONS_MAY_IMPORT: frozenset[str] = frozenset(
    {
        "letopis.store.database.schema",
        "letopis.store.database.urls",
        "letopis.store.database.engines",
        "letopis.store.database.timeouts",
        "letopis.store.database.dialects",
        "letopis.store.database.migrations",
        "letopis.store.errors",
        "letopis.store.database.faults",
        "letopis.store.database.fault_classification",
        "letopis.outbox.event_log.schema",
    }
)

# What is importable after a plain `pip install letopis`; extras are imported where they are used.
CORE = frozenset({"sqlalchemy", "aiosqlite", "alembic", "orjson", "anyio", "click", "filelock"})

# What a package imports that needs an extra as a whole.
CORE_OF_PACKAGES = {"letopis.console": frozenset({"starlette", "jinja2", "markupsafe", "uvicorn"})}

# What one room alone imports: classes of tests are of use to a caller that has pytest, an adapter to one that has the
# framework.
CORE_OF_ROOMS = {
    "letopis.store.testing": frozenset({"pytest"}),
    "letopis.testing.fixtures": frozenset({"pytest"}),
    "letopis.adapters.agent_framework": frozenset({"agent_framework"}),
    "letopis.adapters.aiogram": frozenset({"aiogram", "aiohttp"}),
    "letopis.adapters.google_adk": frozenset({"google", "pydantic_core"}),
    "letopis.adapters.langgraph": frozenset({"langgraph"}),
    "letopis.adapters.pydantic_ai": frozenset({"pydantic", "pydantic_ai", "pydantic_core"}),
    "letopis.adapters.strands": frozenset({"strands"}),
    "letopis.adapters.pyrogram": frozenset({"pyrogram"}),
    "letopis.adapters.telegram": frozenset({"telegram"}),
}

LONGEST = 450
NO_NAMES = frozenset(
    {"manager", "helper", "helpers", "util", "utils", "service", "handler", "processor", "common", "misc"}
)
SWALLOWING_SQL = re.compile(r"INSERT\s+OR\s+IGNORE|INSERT\s+IGNORE|ON\s+CONFLICT\s+DO\s+NOTHING", re.IGNORECASE)
BROAD = frozenset({"Exception", "BaseException"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One source file of the distribution."""

    name: str
    path: Path

    @property
    def package(self) -> str:
        return ".".join(self.name.split(".")[:2])

    @property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for folder in ("store", "outbox", "migrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name=name, path=path))
    return tuple(found)


@cache
def names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each module that is imported, wherever the import stands, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (whole if whole in names() else base), node.lineno


@cache
def imported_by(module: Module) -> tuple[tuple[str, int], ...]:
    return tuple(imported(module.tree))


def test_there_is_code_to_look_at() -> None:
    """The rules below would all hold for an empty list."""
    assert {"letopis.store", "letopis.outbox", "letopis.migrations"} <= {module.package for module in modules()}


def test_the_packages_import_one_way() -> None:
    wrong = [
        f"{module.name}:{line} imports {target}"
        for module in modules()
        for target, line in imported_by(module)
        if target.startswith((".", "letopis"))
        and ".".join(target.split(".")[:2]) not in MAY_IMPORT[module.package] | {module.package}
    ]

    assert not wrong


def room_of(name: str) -> str:
    """The room of a module: the first part of its name below its package; empty for the front door."""
    return ".".join(name.split(".")[2:3])


def imports_of(package: str) -> Iterator[tuple[Module, str, int]]:
    """Each import of a module of the same package, with its line."""
    for module in modules():
        if module.package == package:
            for target, line in imported_by(module):
                if target in names() and target.startswith(package):
                    yield module, target, line


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_declared(package: str) -> None:
    there = {room_of(module.name) for module in modules() if module.package == package} - {""}

    assert there == set(ROOMS[package]), "declare a new room in ROOMS, and take away the ones that are gone"
    assert len(ROOMS[package]) == len(set(ROOMS[package]))


@pytest.mark.parametrize("package", ROOMS)
def test_imports_run_down_the_rooms(package: str) -> None:
    door = len(ROOMS[package])
    floor = {room: index + door * (room in ABOVE_THE_DOOR) for index, room in enumerate(ROOMS[package])} | {"": door}
    wrong = [
        f"{module.name}:{line} imports {target}, which stands above it"
        for module, target, line in imports_of(package)
        if floor[room_of(target)] > floor[room_of(module.name)]
    ]

    assert not wrong


@pytest.mark.parametrize("package", ROOMS)
def test_no_circle_inside_a_room(package: str) -> None:
    """Imports at run time only: a type may be named in both directions."""
    graph = dict[str, set[str]]()
    for module, target, _ in imports_of(package):
        if room_of(module.name) == room_of(target) and target != module.name:
            graph.setdefault(module.name, set()).add(target)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(f"imports in a circle: {' -> '.join(circle.args[1])}")


def test_what_is_private_to_a_room_stays_in_it() -> None:
    """`_x.py` is for its own room; the front door alone may reach into one."""
    wrong = [
        f"{module.name}:{line} imports {target}"
        for module in modules()
        for target, line in imported_by(module)
        if target in names()
        and any(part.startswith("_") for part in target.split(".")[2:])
        and module.name != module.package
        and module.name.split(".")[1:3] != target.split(".")[1:3]
        and not (target.count(".") == 2 and module.package == ".".join(target.split(".")[:2]))
    ]

    assert not wrong


def test_migrations_know_only_the_tables() -> None:
    wrong = [
        f"{module.name}:{line} imports {target}"
        for module in modules()
        if module.package == "letopis.migrations"
        for target, line in imported_by(module)
        if target.startswith("letopis.")
        and not target.startswith("letopis.migrations")
        and (target not in MIGRATIONS_MAY_IMPORT or ".versions." in module.name)
    ]

    assert not wrong


def test_the_core_imports_its_declared_dependencies_only() -> None:
    wrong = [
        f"{module.name}:{node.lineno} imports {target}"
        for module in modules()
        for room in [f"{module.package}.{room_of(module.name)}"]
        for node in module.tree.body
        for target, _ in imported(node if isinstance(node, ast.Import | ast.ImportFrom) else ast.Pass())
        if (top := target.split(".")[0])
        not in CORE
        | CORE_OF_ROOMS.get(room, frozenset())
        | CORE_OF_PACKAGES.get(module.package, frozenset())
        | {"letopis"}
        and top not in sys.stdlib_module_names
    ]

    assert not wrong, "a dependency of an extra is imported inside the function that needs it"


def test_no_module_is_longer_than_can_be_read() -> None:
    long = {module.name: lines for module in modules() if (lines := len(module.source.splitlines())) > LONGEST}

    assert not long


def test_every_module_says_its_one_job_in_one_sentence() -> None:
    def one_sentence(text: str | None) -> bool:
        first = " ".join((text or "").split("\n\n")[0].split())
        return first.endswith((".", "::")) and not re.search(r"[.!?] [A-Z]", first)

    wrong = [module.name for module in modules() if not one_sentence(ast.get_docstring(module.tree))]

    assert not wrong


def test_names_say_what_a_module_holds() -> None:
    wrong = [module.name for module in modules() if NO_NAMES & set(re.split(r"[._]", module.name))]

    assert not wrong


def test_imports_are_absolute() -> None:
    wrong = [f"{module.name}:{line}" for module in modules() for name, line in imported_by(module) if name[0] == "."]

    assert not wrong


def test_no_insert_swallows_a_conflict_it_did_not_name() -> None:
    """An unnamed conflict target would hide a real loss: the row that was refused for another reason."""

    def swallows(node: ast.AST) -> bool:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            return False
        if node.func.attr == "on_conflict_do_nothing":
            return not node.args and not {"index_elements", "constraint"} & {word.arg for word in node.keywords}
        return node.func.attr == "prefix_with" and any(
            isinstance(argument, ast.Constant) and "IGNORE" in str(argument.value).upper() for argument in node.args
        )

    wrong = [
        f"{module.name}: {found.group()}" for module in modules() for found in SWALLOWING_SQL.finditer(module.source)
    ]
    wrong += [
        f"{module.name}:{node.lineno}" for module in modules() for node in ast.walk(module.tree) if swallows(node)
    ]  # type: ignore[attr-defined]

    assert not wrong


def test_no_page_is_found_by_counting_rows() -> None:
    """An offset reads all that it skips, and repeats or misses rows while others write."""
    offset = re.compile(r"\.offset\(|\bOFFSET\b")
    wrong = [module.name for module in modules() if offset.search(module.source)]

    assert not wrong


def test_a_broad_except_gives_its_reason_and_does_something() -> None:
    """One that raises at its end swallows nothing, and needs no comment."""
    wrong = []
    for module in modules():
        lines = module.source.splitlines()
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
                continue
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in BROAD)
            idle = all(isinstance(child, ast.Pass | ast.Continue) for child in node.body)
            reason = any("#" in line for line in lines[node.lineno - 1 : node.end_lineno])
            if broad and (idle or not reason):
                wrong.append(f"{module.name}:{node.lineno}")

    assert not wrong


def test_nothing_unfinished_is_left() -> None:
    mark = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    wrong = [module.name for module in modules() if mark.search(module.source)]

    assert not wrong


@pytest.mark.parametrize("package", ["letopis.store", "letopis.outbox"])
def test_the_front_door_lists_exactly_the_public_names(package: str) -> None:
    """Whether it imports them at once or when they are asked for."""
    (door,) = (module for module in modules() if module.name == package)
    brought = {
        alias.asname or alias.name
        for node in ast.walk(door.tree)
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    loaded = importlib.import_module(package)

    assert len(loaded.__all__) == len(set(loaded.__all__))
    assert set(loaded.__all__) == {name for name in brought if not name.startswith("_")}
    # A type alias, such as `Role`, has no docstring of its own.
    told = [name for name in loaded.__all__ if typing.get_origin(getattr(loaded, name)) is None]
    assert [name for name in told if not getattr(loaded, name).__doc__] == []
    assert set(loaded.__all__) <= set(dir(loaded))
    with pytest.raises(AttributeError, match="no_such_name"):
        loaded.no_such_name  # noqa: B018


def loaded_by(statement: str, modules: set[str]) -> list[str]:
    """Which modules a statement imports, in a process of its own: this one has imported everything."""
    code = f"import sys; {statement}; print(*sorted({modules!r} & sys.modules.keys()))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_a_bot_starts_without_what_few_need() -> None:
    late = {
        "alembic",
        "apprise",
        "filelock",
        "letopis.store.transfer",
        "opentelemetry",
        "prometheus_client",
        "snowballstemmer",
        "sqlalchemy.dialects.mysql",
        "sqlalchemy.dialects.postgresql",
    }
    assert loaded_by("from letopis.outbox import History", late) == []


def test_the_command_and_the_bot_come_without_the_console() -> None:
    late = {"jinja2", "letopis.console", "markupsafe", "starlette", "uvicorn"}
    statements = (
        "import letopis.outbox.cli",
        "import letopis.outbox.cli.relay",
        "from letopis import History",
    )
    assert [loaded_by(one, late) for one in statements] == [[], [], []]


def test_the_class_of_a_history_comes_without_what_works_in_one() -> None:
    """A test or a type check imports the class; the relay, the writer and the readers come with the first history."""
    late = {
        "letopis.outbox.alerting.monitor",
        "letopis.outbox.file.writer",
        "letopis.outbox.history._opening",
        "letopis.outbox.pending_reads",
        "letopis.outbox.relay",
        "letopis.store._runtime",
        "letopis.store.read.reader",
        "letopis.store.write",
        "sqlalchemy.dialects.sqlite",
    }
    assert loaded_by("from letopis import History, Message", late) == []
