"""Name the records that hold what Strands stores under keys with slashes."""

from __future__ import annotations

from typing import Final

ROOT: Final = "strands"
_DEEPEST: Final = 2
"""How many labels of a key are its namespace: records of one are delivered in order, such as those of a session."""

Place = tuple[tuple[str, ...], str]
"""Namespace and key of a record."""


def place_of(key: str) -> Place:
    """Return where a key is kept. Slashes are read as Strands' own storages read them.

    :raises ValueError: the key is empty, or has a backslash or a ``..`` in it.
    """
    labels = [label for label in _checked(key).split("/") if label]
    if not labels:
        raise ValueError("the key is empty")
    deep = min(_DEEPEST, len(labels) - 1)
    return (ROOT, *labels[:deep]), "/".join(labels[deep:])


def key_at(place: Place) -> str:
    """Return the key that is kept at a place."""
    namespace, key = place
    return "/".join((*namespace[1:], key))


def range_of(prefix: str) -> tuple[tuple[str, ...], str]:
    """Return the namespace below which all keys with a prefix are, and the prefix as the keys are written.

    :raises ValueError: the prefix has a backslash or a ``..`` in it.
    """
    labels = _checked(prefix).split("/")
    whole = [label for label in labels[:-1] if label]
    return (ROOT, *whole[:_DEEPEST]), "/".join((*whole, labels[-1]))


def _checked(text: str) -> str:
    if "\\" in text:
        raise ValueError("a key has no backslashes")
    if ".." in text.split("/"):
        raise ValueError("a key has no segment that is '..'")
    return text
