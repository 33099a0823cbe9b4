"""The house holds: imports run one way, every module has one declared place, and what is forbidden is absent."""

import ast
import builtins
import importlib
import pickle
import re
import subprocess
import sys
import typing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import letopis
import letopis.outbox
from tests.support.paths import ROOT

# One entry a room, lowest first: a module imports only from its own room and from those before it. A room is a package,
# or a module that stands beside the packages; `__main__` and the front doors stand above everything.
ROOMS = {
    package: rooms.split()
    for package, rooms in {
        "letopis.store": "errors cancellation private_files model rules database holds read projections search write"
        " maintenance components runtime erasures conversation_store transfer testing ops",
        "letopis.outbox": "telemetry concurrency retry event_log file alerting relay operations pending_reads drafts"
        " history sync",
        "letopis.ops": "config verify new_origin salvage doctor transfer daemon cli",
        "letopis.console": "access headers forms charts assets i18n words verdict configuration stuck_lanes"
        " incident_list store_log insight activity figures verification state rendering visit pages application"
        " standalone hosted",
        "letopis.examples": "demo",
        "letopis.testing": "clock platform store fixtures",
        "letopis.adapters": "_envelope formats _blocking _messages agent_framework telegram_core aiogram"
        " google_adk haystack langchain langgraph llama_index openai_agents pydantic_ai strands pyrogram telegram"
        " voxpersona",
    }.items()
}

# Published beside the front door, and built on it.
ABOVE_THE_DOOR = frozenset({"testing"})

# The one direction between the packages: who may import whom.
BOTH = frozenset({"letopis.store", "letopis.outbox"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "letopis": BOTH | {"letopis._public"},
    "letopis._public": BOTH,
    "letopis.store": frozenset(),
    "letopis.outbox": frozenset({"letopis.store"}),
    **{f"letopis.{name}": BOTH for name in ("ops", "examples", "testing", "migrations")},
    # The console is an operators' room, and one adapter brings a command.
    **{f"letopis.{name}": BOTH | {"letopis.ops"} for name in ("adapters", "console")},
}

# What an env.py may know of the code: the tables, what opens a database, and what says why it does not. Revisions are
# frozen and know nothing.
OF_DATABASE = ("schema", "urls", "engines", "timeouts", "dialects", "migrations", "faults", "fault_classification")
MIGRATIONS_MAY_IMPORT = {
    "letopis.outbox.event_log.schema",
    "letopis.store.errors",
    *(f"letopis.store.database.{name}" for name in OF_DATABASE),
}

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


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module while it is looked at; then its imports are kept, and what was found, but no tree."""

    name: str
    source: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return ".".join(self.name.split(".")[:2])

    @cached_property
    def nodes(self) -> Sequence[ast.AST]:
        return tuple(ast.walk(self.tree))

    @cached_property
    def imports(self) -> Sequence[tuple[str, int]]:
        return tuple(imported(self.nodes))


Rule = Callable[[Module], Iterator[object]]
RULES: dict[str, Rule] = {}
"""What each module has to keep: yields where it does not."""


def rule(keeps: Rule) -> Rule:
    RULES[keeps.__name__] = keeps
    return keeps


@cache
def paths() -> dict[str, Path]:
    found = {}
    for folder in ("store", "outbox", "migrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def looked_at() -> tuple[Sequence[tuple[str, str, int]], Mapping[str, Sequence[str]]]:
    """Parse one module after the other; return the imports of all, and by rule what breaks it."""
    imports, wrong = [], defaultdict[str, list[str]](list)
    for name, path in paths().items():
        source = path.read_text(encoding="utf-8")
        module = Module(name=name, source=source, tree=ast.parse(source))
        imports += [(name, *one) for one in module.imports]
        for told, keeps in RULES.items():
            wrong[told] += [f"{name}: {found}" for found in keeps(module)]
    return imports, wrong


def room_of(name: str) -> str:
    """The room of a module: the first part of its name below its package; empty for the front door."""
    return ".".join(name.split(".")[2:3])


def imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    """Each module that is imported, wherever the import stands, with its line."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (whole if whole in paths() else base), node.lineno


def imports_of(package: str) -> Iterator[tuple[str, str, int]]:
    """Each import by a module of a package of another one of the same package, with its line."""
    for name, target, line in looked_at()[0]:
        if target in paths() and all(f"{one}.".startswith(f"{package}.") for one in (name, target)):
            yield name, target, line


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_declared_and_imports_run_down(package: str) -> None:
    there = {room_of(name) for name in paths() if name.startswith(f"{package}.")}
    assert there == set(ROOMS[package]), "declare a new room in ROOMS, and take away the ones that are gone"

    door, graph = len(ROOMS[package]), TopologicalSorter[str]()
    floor = {room: index + door * (room in ABOVE_THE_DOOR) for index, room in enumerate(ROOMS[package])} | {"": door}
    assert not [found for found in imports_of(package) if floor[room_of(found[1])] > floor[room_of(found[0])]]
    for name, target, _ in imports_of(package):
        if room_of(name) == room_of(target) and target != name:
            graph.add(name, target)
    graph.prepare()  # no circle inside a room, at run time: a type may be named in both directions


@rule
def packages_import_one_way(module: Module) -> Iterator[object]:
    for target, line in module.imports:
        package = ".".join(target.split(".")[:2])
        if target.startswith((".", "letopis")) and package not in MAY_IMPORT[module.package] | {module.package}:
            yield f"{line} imports {target}"


OPERATED = ("letopis.ops", "letopis.store.ops")
"""What operators run. A bot embeds none of it, nor does the console's own library: see `docs/explanation/houses.md`."""
MAY_OPERATE = (*OPERATED, "letopis.console", "letopis.adapters.voxpersona", "letopis.examples")


@rule
def the_library_knows_nothing_of_what_operators_run(module: Module) -> Iterator[object]:
    """Not by a string either, and no adapter is named by the library."""
    if module.name.startswith(MAY_OPERATE):
        return
    adapters = ("letopis.adapters",) if module.package in BOTH else ()
    names = [(target, line) for target, line in module.imports]
    for node in module.nodes:
        if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names += [(arg.value, node.lineno) for arg in node.args if isinstance(arg, ast.Constant)]
    for target, line in names:
        if f"{target}.".startswith(tuple(f"{name}." for name in (*OPERATED, *adapters))):
            yield f"{line} imports {target}"


@rule
def what_is_private_to_a_room_stays_in_it(module: Module) -> Iterator[object]:
    """`_x.py` is for its own room; the front door alone may reach into one."""
    for target, line in module.imports:
        if (
            target in paths()
            and any(part.startswith("_") for part in target.split(".")[2:])
            and module.name != module.package
            and module.name.split(".")[1:3] != target.split(".")[1:3]
            and not (target.count(".") == 2 and module.package == ".".join(target.split(".")[:2]))
        ):
            yield f"{line} imports {target}"


@rule
def migrations_know_only_the_tables(module: Module) -> Iterator[object]:
    for target, line in module.imports if module.package == "letopis.migrations" else ():
        ours = target.startswith("letopis.") and not target.startswith("letopis.migrations")
        if ours and (target not in MIGRATIONS_MAY_IMPORT or ".versions." in module.name):
            yield f"{line} imports {target}"


@rule
def core_imports_its_declared_dependencies_only(module: Module) -> Iterator[object]:
    """A dependency of an extra is imported inside the function that needs it."""
    room = CORE_OF_ROOMS.get(f"{module.package}.{room_of(module.name)}", frozenset())
    declared = CORE | room | CORE_OF_PACKAGES.get(module.package, frozenset()) | {"letopis"} | sys.stdlib_module_names
    for node in module.tree.body:
        for target, line in imported((node,)) if isinstance(node, ast.Import | ast.ImportFrom) else ():
            if target.split(".")[0] not in declared:
                yield f"{line} imports {target}"


@rule
def no_module_is_longer_than_can_be_read(module: Module) -> Iterator[object]:
    if (lines := len(module.source.splitlines())) > LONGEST:
        yield lines


@rule
def every_module_says_its_one_job_in_one_sentence(module: Module) -> Iterator[object]:
    first = " ".join((ast.get_docstring(module.tree) or "").split("\n\n")[0].split())
    if not first.endswith((".", "::")) or re.search(r"[.!?] [A-Z]", first):
        yield first


@rule
def names_say_what_a_module_holds(module: Module) -> Iterator[object]:
    yield from NO_NAMES & set(re.split(r"[._]", module.name))


@rule
def no_insert_swallows_a_conflict_it_did_not_name(module: Module) -> Iterator[object]:
    """An unnamed conflict target would hide a real loss: the row that was refused for another reason."""
    yield from (found.group() for found in SWALLOWING_SQL.finditer(module.source))
    for node in module.nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="on_conflict_do_nothing"), args=args, keywords=keywords):
                if not args and not {"index_elements", "constraint"} & {word.arg for word in keywords}:
                    yield node.lineno
            case ast.Call(func=ast.Attribute(attr="prefix_with"), args=args):
                if any(isinstance(one, ast.Constant) and "IGNORE" in str(one.value).upper() for one in args):
                    yield node.lineno


@rule
def no_page_is_found_by_counting_rows(module: Module) -> Iterator[object]:
    """An offset reads all that it skips, and repeats or misses rows while others write."""
    yield from re.findall(r"\.offset\(|\bOFFSET\b", module.source)


@rule
def a_broad_except_gives_its_reason_and_does_something(module: Module) -> Iterator[object]:
    """One that raises at its end swallows nothing, and needs no comment."""
    lines = module.source.splitlines()
    for node in module.nodes:
        if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
            continue
        broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in BROAD)
        idle = all(isinstance(child, ast.Pass | ast.Continue) for child in node.body)
        reason = any("#" in line for line in lines[node.lineno - 1 : node.end_lineno])
        if broad and (idle or not reason):
            yield node.lineno


@rule
def no_module_of_the_library_is_marked_private(module: Module) -> Iterator[object]:
    """The front door says what is public; the name of a module says what is in it."""
    if module.name.startswith(("letopis.store.", "letopis.outbox.")):
        yield from re.findall(r"\._[a-z]\w*", module.name)


@rule
def nothing_unfinished_is_left(module: Module) -> Iterator[object]:
    yield from re.findall(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", module.source)


@pytest.mark.parametrize("name", RULES)
def test_every_module_keeps_the_rule(name: str) -> None:
    assert set(MAY_IMPORT) <= paths().keys()  # a rule would hold for an empty list, too
    assert not looked_at()[1][name], RULES[name].__doc__


@pytest.mark.parametrize("package", ["letopis.store", "letopis.outbox"])
def test_the_front_door_lists_exactly_the_public_names(package: str) -> None:
    """Whether it imports them at once or when they are asked for."""
    brought = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(paths()[package].read_text(encoding="utf-8")))
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


def test_the_top_package_offers_the_names_of_both() -> None:
    doors = (letopis.store, letopis.outbox)
    found = {name: getattr(letopis, name) for name in letopis.__all__}

    assert set(found) == {name for door in doors for name in door.__all__}
    assert not [name for name, it in found.items() if not any(getattr(door, name, None) is it for door in doors)]
    assert dir(letopis) == sorted({*found, "__version__"})
    assert letopis.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Histroy'"):
        letopis.Histroy  # noqa: B018


def test_every_error_that_a_docstring_names_comes_from_the_top_package() -> None:
    """And every name that a guide uses: see ``DOORS`` in the tests of the documentation."""
    library = [path for name, path in paths().items() if name.startswith(("letopis.store", "letopis.outbox"))]
    named = {error for path in library for error in re.findall(r":raises (\w+):", path.read_text(encoding="utf-8"))}

    assert len(named) > 15
    assert {name for name in named - set(letopis.__all__) if not hasattr(builtins, name)} == set()


@pytest.mark.parametrize("package", [letopis.store, letopis.outbox], ids=lambda package: package.__name__)
def test_type_checkers_see_the_names_that_are_loaded(package: typing.Any) -> None:
    seen = re.findall(
        rf"    from {package.__name__}\.([\w.]+) import (\w+) as \2\n", Path(package.__file__).read_text()
    )

    assert {name: module for module, name in seen} == package.ROOMS


def test_a_public_name_says_where_it_is_imported_from() -> None:
    assert repr(letopis.History) == "<class 'letopis.outbox.History'>"
    assert {getattr(letopis.outbox, name).__module__ for name in letopis.outbox.__all__} == {"letopis.outbox"}
    bounds = letopis.outbox.Bounds(max_events=3)
    assert pickle.loads(pickle.dumps(bounds)) == bounds  # noqa: S301


# What a program imports, and what it is to come without: only few need that, or it comes with the first history.
CONSOLE = "jinja2 letopis.console markupsafe starlette uvicorn"
LATE = {
    "import letopis; from letopis import ConversationStore, History, Message, Retention": (
        "letopis.ops letopis.store.ops"
    ),
    "from letopis.outbox import History": "alembic apprise filelock letopis.store.transfer opentelemetry"
    " prometheus_client snowballstemmer sqlalchemy.dialects.mysql sqlalchemy.dialects.postgresql",
    "from letopis import History, Message": f"{CONSOLE} aiosqlite alembic anyio._backends apprise filelock"
    " letopis.outbox.alerting letopis.outbox.drafts letopis.outbox.file.writer letopis.outbox.history.opening"
    " letopis.outbox.operations letopis.outbox.pending_reads letopis.outbox.relay letopis.store.runtime"
    " letopis.store.database.schema letopis.store.read.reader letopis.store.search letopis.store.write"
    " sqlalchemy.dialects.sqlite",
    "import letopis, letopis.outbox, letopis.ops.cli": f"{CONSOLE} sqlalchemy",
    "import letopis.ops.cli.relay": CONSOLE,
}
MOST_OF_OURS = 67  # imported by each program that names `History`: what is above is imported where it is used


@pytest.mark.parametrize("statement", LATE)
def test_a_program_starts_without_what_few_need(statement: str) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = done.stdout.split()

    assert not {*LATE[statement].split()} & {*loaded}
    if statement.startswith("from letopis import"):
        assert sum(name.startswith("letopis.") for name in loaded) <= MOST_OF_OURS
