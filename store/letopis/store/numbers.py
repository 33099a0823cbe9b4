"""Numbers: whether a setting is one that can be compared at all, and if not, which."""

from __future__ import annotations

from letopis.store.errors import InvalidInput


def check_number(value: object, field: str, *, whole: bool = False) -> None:
    """Make sure that a setting is a number; what else it has to be, the caller looks at.

    :raises InvalidInput: it is something else, or not a number in floating point's sense.
    """
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or value != value:  # NaN
        wanted = "a whole number" if whole else "a number"
        raise InvalidInput(field, f"must be {wanted}, not {type(value).__name__}")
