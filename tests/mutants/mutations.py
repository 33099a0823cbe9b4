"""Make mutants of a module, each with one small change of its Python or of its SQL; and the controls."""

import ast
import difflib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.reports import ROOT

OUTBOX: Final = Path("outbox/letopis/outbox")
STORE: Final = Path("store/letopis/store")
ROOMS: Final = {name: OUTBOX / name for name in ("event_log", "relay", "retry", "pending_reads")} | {
    name: STORE / name for name in ("write", "rules")
}
"""The rooms whose modules are mutated."""
PLANTED: Final = (
    (OUTBOX / "event_log/acknowledge.py", "WHEN state = 'paused' THEN 'paused' ", ""),
    (OUTBOX / "pending_reads/lineage.py", "s.sequence IS NULL AND ", ""),
    (STORE / "rules/apply_plan.py", "if self.deleted:", "if False:"),
    (OUTBOX / "relay/lease.py", "if _sign_of_life(connection) == sign else 0", "if True else 0"),
    (OUTBOX / "retry/circuit_breaker.py", "if self.state is BreakerState.OPEN:", "if False:"),
    (STORE / "write/erasing.py", "await connection.execute(self._remove_reactions, span)", "pass"),
)
"""The controls: defects that tests are known to catch, one change each. A run that misses one fails."""
_PAIRS: Final = (
    *((ast.Lt, "<", ast.LtE, "<="), (ast.Gt, ">", ast.GtE, ">="), (ast.Eq, "==", ast.NotEq, "!=")),
    *((ast.Is, "is", ast.IsNot, "is not"), (ast.In, "in", ast.NotIn, "not in")),
    *((ast.And, "and", ast.Or, "or"), (ast.Add, "+", ast.Sub, "-")),
)
_PYTHON_WORDS: Final = {one: (old, new) for one, old, _, new in _PAIRS} | {
    other: (new, old) for _, old, other, new in _PAIRS
}
_CALLS: Final = {"min": "max", "any": "all", "is_": "is_not", "and_": "or_"}
_OTHER_CALL: Final = _CALLS | {new: old for old, new in _CALLS.items()}
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


class Mutant(NamedTuple):
    """One small change of a module, at offsets in characters, and the first and last line of its statement."""

    path: str
    text: str
    start: int
    end: int
    new: str
    lines: tuple[int, int]

    @property
    def source(self) -> str:
        return self.text[: self.start] + self.new + self.text[self.end :]

    @property
    def diff(self) -> str:
        """The lines that change, without their indentation."""
        changed = difflib.unified_diff(self.text.splitlines(), self.source.splitlines(), n=0, lineterm="")
        return "\n".join(f"{line[0]} {line[1:].strip()}" for line in list(changed)[3:])

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.start) + 1


def mutants_of(path: Path | str, text: str | None = None) -> list[Mutant]:
    text = (ROOT / path).read_text(encoding="utf-8") if text is None else text
    return sorted(set(_Finder(text).mutants(str(path))))


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
        found.append(Mutant(str(path), text, start, start + len(old), new, (line, line)))
    return found


def sample(rooms: Mapping[str, Sequence[Mutant]], count: int, seed: int) -> list[Mutant]:
    """Draw mutants, one of each room in turn while it has some, so that the first of them are a sample, too."""
    chance = random.Random(seed)
    queues = [chance.sample(found, len(found)) for _, found in sorted(rooms.items())]
    rounds = (queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue))
    return list(islice(rounds, count))


class _Finder:
    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]

    def mutants(self, path: str) -> Iterator[Mutant]:
        for lines, (start, end, new) in self._visit(ast.parse(self._text), (1, 1)):
            yield Mutant(path, self._text, start, end, new, lines)

    def _visit(self, node: ast.AST, lines: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[int, int, str]]]:
        if isinstance(node, ast.stmt | ast.excepthandler):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else (node.end_lineno or node.lineno)
            lines = node.lineno, max(last, node.lineno)
        yield from ((lines, change) for change in self._changes(node))
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
                if not any(_is_text(one) or isinstance(one, ast.List | ast.Tuple) for one in (left, right)):
                    yield from self._between(left, right, operator)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._span(node)[0], self._span(operand)[0], ""
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
            case ast.expr() if _is_text(node):
                yield from self._sql(*self._span(node))

    def _between(self, before: ast.expr, after: ast.expr, operator: ast.AST) -> Iterator[tuple[int, int, str]]:
        old, new = _PYTHON_WORDS[type(operator)]
        start, end = self._span(before)[1], self._span(after)[0]
        pattern = rf"\b{old.replace(' ', chr(92) + 's+')}\b" if old[0].isalpha() else re.escape(old)
        for found in re.finditer(pattern, self._text[start:end]):
            yield start + found.start(), start + found.end(), new

    def _sql(self, start: int, end: int) -> Iterator[tuple[int, int, str]]:
        text = self._text[start:end]
        if _IS_SQL.search(text):
            for pattern, new in _SQL:
                for found in re.finditer(pattern, text):
                    yield start + found.start(), start + found.end(), new

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


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
