"""The house holds: imports run one way, every module has one declared place, and what is forbidden is absent."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# One entry a module, lowest first: a module imports only what stands before it. `store` alone is the package itself.
ORDER: dict[str, tuple[str, ...]] = {
    "letopis.store": (
        # values
        "errors",
        "identifiers",
        "making",
        "numbers",
        "messages",
        "upcasters",
        "vocabulary",
        "events",
        "codec",
        "conversation",
        # pure rules
        "erasure",
        "fold",
        "turns",
        "plan",
        "projection",
        "pairing",
        "context",
        "transcript",
        # databases
        "schema",
        "faults",
        "urls",
        "sqlite_cursor",
        "sqlite_files",
        "engines",
        "dialects",
        "migration",
        "shield",
        "cutback",
        # what a search looks for, and in what
        "search",
        "search.words",
        "search.query",
        "search.marking",
        "search.hits",
        "search.index",
        "search.documents",
        # the store
        "rows",
        "erasing",
        "verdicts",
        "owners",
        "remaking",
        "rebuild",
        "wal",
        "soundness",
        "projections",
        "checkpoints",
        "inline",
        "readings",
        "apply",
        "asking",
        "selects",
        "recorded",
        "reads",
        "timetravel",
        "lineage",
        "kept",
        "catchup",
        "search.indexing",
        "search.finding",
        "search.upkeep",
        "statistics",
        "subscription",
        "ready",
        "history",
        # formats
        "transfer",
        "transfer.occurrences",
        "transfer.moments",
        "transfer.jsonl",
    ),
    "letopis.outbox": (
        # the tables, and rules without I/O
        "schema",
        "backoff",
        "clock",
        "breaker",
        "diversity",
        "tracing",
        "bounds",
        "headroom",
        "incidents",
        "texts",
        "notices",
        "trouble",
        # one thread, one bell, one turn, one glance
        "thread",
        "glance",
        "bell",
        "turn",
        "calls",
        "notify",
        "logs",
        # statements on the file
        "identity",
        "drafts",
        "effects",
        "append",
        "lanes",
        "hold",
        "marks",
        "tail",
        "incident_log",
        "repair",
        "notice_log",
        "overlay",
        "owners",
        "targets",
        "counting",
        "unsaved",
        # the file
        "writer",
        "file",
        "receipts",
        "transaction",
        "joining",
        "verbs",
        # the relay
        "lease",
        "rebirth",
        "wake",
        "isolation",
        "account",
        "drain",
        "relay",
        "reach",
        # what is stuck, and who is told
        "status",
        "webhook",
        "alerts",
        "bulletin",
        "watch",
        # what a bot embeds
        "embedded",
        "lineage",
        "saying",
        "reading",
        "rewinding",
        "forking",
        "windows",
        "chats",
        "liveness",
        "composing",
        "ending",
        "reply",
        "replies",
        "searching",
        "history",
        # without asyncio
        "portal",
        "blocking_parts",
        "blocking",
        # in and out
        "intake",
        "outflow",
        # the process that serves many
        "alert_settings",
        "outboxes",
        "measured",
        "stores",
        "figures",
        "served",
        "metrics",
        "listening",
        "daemon",
        # the command
        "config",
        "demo",
        # what an operator looks at
        "checks",
        "checks.finding",
        "checks.peek",
        "checks.place",
        "checks.sqlite",
        "checks.store",
        "checks.settings",
        "doctor",
        # what of a file is still as it was written
        "pages",
        "soundness",
        "salvage",
        "cli.exits",
        "cli.lazy",
        "cli.options",
        "cli",
        "cli.__main__",
        "cli.output",
        "cli.outfile",
        "cli.places",
        "cli.init",
        "cli.rebuild",
        "cli.soundness",
        "cli.db",
        "cli.relay",
        "cli.healthcheck",
        "cli.status",
        "cli.history",
        "cli.stats",
        "cli.search",
        "cli.transfer",
        "cli.alerts",
        "cli.choosing",
        "cli.opened",
        "cli.pending",
        "cli.outbox",
        "cli.pause",
        "cli.doctor",
        "cli.demo",
    ),
}

# The one direction between the packages: who may import whom.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "letopis.store": frozenset(),
    "letopis.outbox": frozenset({"letopis.store"}),
    "letopis.migrations": frozenset({"letopis.store", "letopis.outbox"}),
}

# What an env.py may know of the code: the tables, what opens a database, and what says why it does not. Revisions are
# frozen and know nothing.
MIGRATIONS_MAY_IMPORT: frozenset[str] = frozenset(
    {
        "letopis.store.schema",
        "letopis.store.urls",
        "letopis.store.engines",
        "letopis.store.dialects",
        "letopis.store.migration",
        "letopis.store.errors",
        "letopis.store.faults",
        "letopis.outbox.schema",
    }
)

# What is importable after a plain `pip install letopis`; extras are imported where they are used.
CORE = frozenset({"sqlalchemy", "aiosqlite", "alembic", "orjson", "anyio", "click", "filelock"})

LONGEST = 600
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
    def room(self) -> str:
        """The name inside its package; empty for the package itself."""
        return self.name.removeprefix(self.package).removeprefix(".")

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


def test_there_is_code_to_look_at() -> None:
    """The rules below would all hold for an empty list."""
    assert {"letopis.store", "letopis.outbox", "letopis.migrations"} <= {module.package for module in modules()}


def test_the_packages_import_one_way() -> None:
    wrong = [
        f"{module.name}:{line} imports {target}"
        for module in modules()
        for target, line in imported(module.tree)
        if target.startswith((".", "letopis"))
        and ".".join(target.split(".")[:2]) not in MAY_IMPORT[module.package] | {module.package}
    ]

    assert not wrong


@pytest.mark.parametrize("package", ORDER)
def test_every_module_has_its_declared_place(package: str) -> None:
    there = {module.room for module in modules() if module.package == package} - {""}

    assert there == set(ORDER[package]), "declare new modules in ORDER, and take away the ones that are gone"
    assert len(ORDER[package]) == len(set(ORDER[package]))


@pytest.mark.parametrize("package", ORDER)
def test_inside_a_package_imports_run_down_the_rooms(package: str) -> None:
    place = {f"{package}.{room}": index for index, room in enumerate(ORDER[package])} | {package: len(ORDER[package])}
    wrong = [
        f"{module.name}:{line} imports {target}, which stands above it"
        for module in modules()
        if module.package == package
        for target, line in imported(module.tree)
        if target in place and place[target] >= place.get(module.name, -1)
    ]

    assert not wrong


def test_migrations_know_only_the_tables() -> None:
    wrong = [
        f"{module.name}:{line} imports {target}"
        for module in modules()
        if module.package == "letopis.migrations"
        for target, line in imported(module.tree)
        if target.startswith("letopis.")
        and not target.startswith("letopis.migrations")
        and (target not in MIGRATIONS_MAY_IMPORT or ".versions." in module.name)
    ]

    assert not wrong


def test_the_core_imports_its_declared_dependencies_only() -> None:
    wrong = [
        f"{module.name}:{node.lineno} imports {target}"
        for module in modules()
        for node in module.tree.body
        for target, _ in imported(node if isinstance(node, ast.Import | ast.ImportFrom) else ast.Pass())
        if (top := target.split(".")[0]) not in CORE | {"letopis"} and top not in sys.stdlib_module_names
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
    wrong = [f"{module.name}:{line}" for module in modules() for name, line in imported(module.tree) if name[0] == "."]

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
    assert [name for name in loaded.__all__ if not getattr(loaded, name).__doc__] == []
    assert set(loaded.__all__) <= set(dir(loaded))
    with pytest.raises(AttributeError, match="no_such_name"):
        loaded.no_such_name  # noqa: B018


def test_a_bot_starts_without_what_few_need() -> None:
    """In a process of its own: this one has imported everything."""
    late = {
        "alembic",
        "apprise",
        "letopis.store.transfer",
        "opentelemetry",
        "prometheus_client",
        "snowballstemmer",
    }
    code = f"import sys; from letopis.outbox import History; print(*sorted({late!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.split() == []
