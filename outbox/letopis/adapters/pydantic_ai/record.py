# pyright: reportMissingImports=false
"""Store Pydantic AI's conversation record in a record of the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_ai.conversation_store import ConversationRecord
from pydantic_core import to_jsonable_python

from letopis.adapters._values import from_record, to_record
from letopis.store.model.records import MAX_TAG_BYTES, Tag

NAMESPACE: Final = ("pydantic_ai",)
KEY: Final = "record"
_KIND: Final = "pydantic_ai"
_SCOPE: Final = "pydantic_ai.scope"


@cache
def _adapter() -> TypeAdapter[ConversationRecord]:
    return TypeAdapter(ConversationRecord)


def to_json(record: ConversationRecord) -> Any:
    """Return a record in its stored form."""
    dumped = _adapter().dump_python(record, mode="json")
    return to_record(to_jsonable_python(dumped, inf_nan_mode="null"))


def from_json(value: Any) -> ConversationRecord:
    """Return the record that :func:`to_json` converted."""
    return _adapter().validate_python(from_record(value))


def tags_of(scope: str | None) -> Mapping[str, Tag]:
    """Return the tags that find the records of a scope, or of all scopes for ``None``."""
    return {_KIND: KEY} if scope is None else {_KIND: KEY, _SCOPE: _short(scope)}


def _short(scope: str) -> str:
    """Return a scope as a tag; for a long one, its digest."""
    encoded = scope.encode()
    return scope if len(encoded) < MAX_TAG_BYTES // 2 else f"#{sha256(encoded).hexdigest()}"
