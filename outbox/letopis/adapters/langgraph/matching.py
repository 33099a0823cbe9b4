"""Match items against filters and namespaces against patterns, in one place, since databases differ in both."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def is_match(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Return True if an item matches a filter.

    :raises ValueError: the filter has an unknown operator.
    """
    return all(_meets(value.get(key), expected) for key, expected in (wanted or {}).items())


def _meets(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Mapping):
        return bool(found == (list(expected) if isinstance(expected, tuple) else expected))
    if any(str(key).startswith("$") for key in expected):
        return all(_holds(found, name, operand) for name, operand in expected.items())
    return isinstance(found, Mapping) and is_match(found, expected)


def _holds(found: Any, name: str, operand: Any) -> bool:
    if name == "$eq":
        return bool(found == operand)
    if name == "$ne":
        return bool(found != operand)
    if name not in _ORDER:
        raise ValueError(f"a filter has no operator {name}: use $eq, $ne, $gt, $gte, $lt or $lte")
    numbers = isinstance(found, int | float) and isinstance(operand, int | float)
    texts = isinstance(found, str) and isinstance(operand, str)
    return (numbers or texts) and _ORDER[name](found, operand)


def matches_pattern(namespace: Sequence[str], path: Sequence[str], *, suffix: bool = False) -> bool:
    """Return True if a namespace begins, or ends, with a path in which ``*`` matches any label."""
    if len(path) > len(namespace):
        return False
    part = namespace[len(namespace) - len(path) :] if suffix else namespace[: len(path)]
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))
