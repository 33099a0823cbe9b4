"""Check the kinds of values that callers give."""

from __future__ import annotations

from typing import Any, TypeGuard

from letopis.store.errors import InvalidInput


def is_whole(value: object) -> TypeGuard[int]:
    """Return True if a value is a whole number; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(value: Any, field: str, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` if it is a whole number in a range, ends included.

    :raises InvalidInput: it is something else.
    """
    if not is_whole(value) or value < minimum or (maximum is not None and value > maximum):
        raise InvalidInput(
            field, f"must be a whole number from {minimum}" + ("" if maximum is None else f" to {maximum}")
        )
    return value


def check_number(value: object, field: str, *, whole: bool = False) -> None:
    """Check that a value is a number and not NaN. The caller checks the range.

    :raises InvalidInput: it is something else.
    """
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or value != value:  # NaN
        wanted = "a whole number" if whole else "a number"
        raise InvalidInput(field, f"must be {wanted}, not {type(value).__name__}")
