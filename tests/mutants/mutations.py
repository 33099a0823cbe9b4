"""Make mutants of a module, each with one small change of its Python or of its SQL; and the controls."""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

from tests.support.reports import ROOT

OUTBOX: Final = Path("outbox/letopis/outbox")
STORE: Final = Path("store/letopis/store")
ROOMS: Final = {
    **{name: OUTBOX / name for name in ("event_log", "relay", "retry", "pending_reads")},
    **{name: STORE / name for name in ("write", "rules")},
}
"""The rooms whose modules are mutated."""
PLANTED: Final = (
    (OUTBOX / "event_log/acknowledge.py", "WHEN state = 'paused' THEN 'paused' ", ""),
    (OUTBOX / "pending_reads/lineage.py", "s.sequence IS NULL AND ", ""),
    (STORE / "rules/apply_plan.py", "if self.deleted:", "if False:"),
    (OUTBOX / "relay/lease.py", "if _sign_of_life(connection) == sign else 0", "if True else 0"),
    (OUTBOX / "retry/circuit_breaker.py", "if self.state is BreakerState.OPEN:", "if False:"),
    (STORE / "write/redaction.py", "await connection.execute(self._remove_reactions, span)", "pass"),
)
"""The controls: defects that tests are known to catch, one change each. A run that misses one fails."""
_PAIRS: Final = (
    *((ast.Lt, "<", ast.LtE, "<="), (ast.Gt, ">", ast.GtE, ">="), (ast.Eq, "==", ast.NotEq, "!=")),
    *((ast.Is, "is", ast.IsNot, "is not"), (ast.In, "in", ast.NotIn, "not in")),
    *((ast.And, "and", ast.Or, "or"), (ast.Add, "+", ast.Sub, "-")),
)
_PYTHON_WORDS: Final = {
    kind: words for one, old, other, new in _PAIRS for kind, words in ((one, (old, new)), (other, (new, old)))
}
_OTHER_CALL: Final = {
    old: new
    for pair in (("min", "max"), ("any", "all"), ("is_", "is_not"), ("and_", "or_"))
    for old, new in (pair, pair[::-1])
}
_TERM: Final = r"[^()\"']+?"
_SQL: Final = (
    (r"<=", "<"),
    (r">=", ">"),
    (r"(?<![<>])<(?![=>])", "<="),
    (r"(?<![<>-])>(?![=])", ">="),
    (r"\bIS NULL\b", "IS NOT NULL"),
    (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bNOT EXISTS\b", "EXISTS"),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r" DESC\b", ""),
    (r"\+ 1\b", "+ 2"),
    (r"\bAND\b", "OR"),
    (r"\bOR\b(?! (?:IGNORE|REPLACE|ROLLBACK|ABORT|FAIL))", "AND"),
    (rf" AND {_TERM}(?= AND |\)| ORDER | GROUP | LIMIT | RETURNING |[\"'])", ""),
    (rf"(?<=WHERE ){_TERM} AND ", ""),
    (rf" WHEN {_TERM} THEN {_TERM}(?= WHEN | ELSE )", ""),
    (r"(?<=[a-z]) = (?=\w+\.\w+)", " <> "),
)
_IS_SQL: Final = re.compile(r"\b(SELECT|UPDATE|INSERT|DELETE|WHERE|AND|CASE|WHEN|ORDER BY)\b")
_LOGS: Final = re.compile(r"_?(log|logger)\.")
_NEUTRAL: Final = ("compare", "nullable", "repr")  # arguments that no write and no read of the code depends on
_LARGEST: Final = 50  # what is larger is a size, a time or a factor: nobody notices one more


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One small change of a module, at offsets in characters, and the first and last line of its statement."""

    path: str
    start: int
    end: int
    new: str
    lines: tuple[int, int]

    def source(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    def diff(self, text: str) -> str:
        """Return the lines that change, without their indentation."""
        old, new = text.splitlines(), self.source(text).splitlines()
        changed = difflib.unified_diff(old, new, n=0, lineterm="")
        return "\n".join(f"{line[0]} {line[1:].strip()}" for line in list(changed)[3:])

    def line(self, text: str) -> int:
        return text.count("\n", 0, self.start) + 1


def mutants_of(path: str, text: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of their places."""
    found = {(one.start, one.end, one.new): one for one in _Finder(path, text).all()}
    return [found[key] for key in sorted(found)]


def mutants_of_room(name: str) -> list[Mutant]:
    paths = sorted((ROOT / ROOMS[name]).rglob("*.py"))
    return [one for path in paths for one in mutants_of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))]


def planted() -> list[Mutant]:
    """Return the controls.

    :raises ValueError: the code has changed, and a defect has no place in it, or several.
    """
    found = []
    for path, old, new in PLANTED:
        text = (ROOT / path).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{path} has {text.count(old)} places for the control {old!r}")
        start = text.index(old)
        line = text.count("\n", 0, start) + 1
        found.append(Mutant(path=str(path), start=start, end=start + len(old), new=new, lines=(line, line)))
    return found


def sample(rooms: Mapping[str, Sequence[Mutant]], count: int, seed: int) -> list[Mutant]:
    """Draw mutants, one of each room in turn while it has some, so that the first of them are a sample, too."""
    chance = random.Random(seed)
    queues = [chance.sample(found, len(found)) for _, found in sorted(rooms.items())]
    rounds = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return list(islice(rounds, count))


class _Finder:
    def __init__(self, path: str, text: str) -> None:
        self._path, self._text = path, text
        self._tree = ast.parse(text)
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def all(self) -> Iterator[Mutant]:
        yield from self._visit(self._tree, (1, 1))

    def _visit(self, node: ast.AST, lines: tuple[int, int]) -> Iterator[Mutant]:
        if isinstance(node, ast.stmt | ast.excepthandler):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else (node.end_lineno or node.lineno)
            lines = node.lineno, max(last, node.lineno)
        for start, end, new in self._changes(node):
            yield Mutant(path=self._path, start=start, end=end, new=new, lines=lines)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise):
                continue  # what an error says is read by people
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_for_readers(child):
                    yield from self._visit(child, lines)

    def _changes(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                for before, operator, after in zip([left, *comparators], ops, comparators, strict=False):
                    yield from self._between(before, after, operator)
            case ast.BoolOp(op=operator, values=values):
                for before, after in pairwise(values):
                    yield from self._between(before, after, operator)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as operator, right=right):
                if not any(
                    isinstance(one, ast.JoinedStr | ast.List | ast.Tuple) or _is_text(one) for one in (left, right)
                ):
                    yield from self._between(left, right, operator)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._start(node), self._start(operand), ""
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                yield from (
                    (*self._span(test), word) for word in ("True", "False") if not isinstance(test, ast.Constant)
                )
            case ast.comprehension(ifs=ifs):
                yield from ((*self._span(test), "True") for test in ifs)
            case (
                ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete()
            ):
                yield *self._span(node), "pass"
            case ast.Constant(value=bool(value)):
                yield *self._span(node), str(not value)
            case ast.Constant(value=int(value)) if value <= _LARGEST:
                yield *self._span(node), str(value + 1)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name) as called) if name in _OTHER_CALL:
                end = self._span(called)[1]
                yield end - len(name), end, _OTHER_CALL[name]
            case ast.Constant(value=str()) | ast.JoinedStr():
                yield from self._sql(*self._span(node))

    def _between(self, before: ast.expr, after: ast.expr, operator: ast.AST) -> Iterator[tuple[int, int, str]]:
        old, new = _PYTHON_WORDS[type(operator)]
        start, end = self._span(before)[1], self._start(after)
        pattern = rf"\b{old.replace(' ', chr(92) + 's+')}\b" if old[0].isalpha() else re.escape(old)
        for found in re.finditer(pattern, self._text[start:end]):
            yield start + found.start(), start + found.end(), new

    def _sql(self, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        text = self._text[start:end]
        if _IS_SQL.search(text):
            for pattern, new in _SQL:
                for found in re.finditer(pattern, text):
                    yield start + found.start(), start + found.end(), new

    def _start(self, node: ast.expr) -> int:
        return self._span(node)[0]

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno or 0, node.end_col_offset or 0)

    def _at(self, line: int, octets: int) -> int:
        start = self._starts[line - 1]
        return start + len(self._text[start : self._starts[line]].encode()[:octets].decode())


def _is_for_readers(node: ast.AST) -> bool:
    """Return True for docstrings, logs, what type checkers alone see, and arguments that change nothing."""
    if isinstance(node, ast.keyword):
        return node.arg in _NEUTRAL
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or bool(_LOGS.match(ast.unparse(node)))
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
