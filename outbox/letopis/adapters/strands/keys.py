"""Map Strands' storage keys, which contain slashes, to records."""

from __future__ import annotations

from typing import Final

ROOT: Final = "strands"
_DEEPEST: Final = 2
"""How many labels of a key form its namespace. Records of one namespace, as of a session, are delivered in order."""

Place = tuple[tuple[str, ...], str]
"""Namespace and key of a record."""


def place_of(key: str) -> Place:
    """Return the place of a key. Slashes are interpreted as in Strands' own storages.

    :raises ValueError: the key is empty, or contains a backslash or ``..``.
    """
    labels = [label for label in _checked(key).split("/") if label]
    if not labels:
        raise ValueError("the key is empty")
    deep = min(_DEEPEST, len(labels) - 1)
    return (ROOT, *labels[:deep]), "/".join(labels[deep:])


def key_at(place: Place) -> str:
    """Return the key of a place."""
    namespace, key = place
    return "/".join((*namespace[1:], key))


def range_of(prefix: str) -> tuple[tuple[str, ...], str]:
    """Return the namespace that contains all keys with a prefix, and the prefix in its normal form.

    :raises ValueError: the prefix contains a backslash or ``..``.
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
