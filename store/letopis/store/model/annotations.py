"""Distinguish a null that an annotation stores from the removal of a key."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from letopis.store.errors import InvalidInput


class Null(Enum):
    """The type of :data:`NULL`."""

    NULL = "null"


NULL: Final = Null.NULL
"""A value of an annotation that is stored as ``null``; ``None`` removes the key."""


def annotation_to_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of ``conversation.annotated``; ``nulls`` names the keys whose ``null`` is stored."""
    nulls = [key for key, item in metadata.items() if item is NULL]
    if not nulls:
        return {"metadata": metadata}
    return {"metadata": {key: None if item is NULL else item for key, item in metadata.items()}, "nulls": nulls}


def annotation_from_data(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return data of ``conversation.annotated`` with :data:`NULL` in its metadata for each key that ``nulls`` names.

    :raises InvalidInput: ``nulls`` is not a list of keys whose value is ``null``.
    """
    metadata, nulls = data.get("metadata"), data.get("nulls")
    if nulls is None or not isinstance(metadata, Mapping):
        return data
    if not isinstance(nulls, list | tuple) or not all(isinstance(key, str) for key in nulls):
        raise InvalidInput("data.nulls", "must be a list of keys")
    for key in nulls:
        if metadata.get(key, NULL) is not None:
            raise InvalidInput("data.nulls", f"names {key!a}, which is not null in the metadata")
    return {**data, "metadata": {**metadata, **dict.fromkeys(nulls, NULL)}}
