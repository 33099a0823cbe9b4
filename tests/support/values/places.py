"""List the places where a caller can put a hostile value, each with values.

Each value says whether it may be kept. What may be kept must come back equal from every store; what may not must be
refused with an error that names the field, and leave nothing behind.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from letopis.store.model.parts import Data, File, Reasoning, Text, ToolCall, ToolResult
from tests.support.values.types import (
    KEPT_JSON,
    KINDS_OF_NO_TEXT,
    MOMENTS,
    NO_OBJECTS,
    REFUSED_JSON,
    TEXTS,
    Colour,
    Level,
)

Place = str
"""One of those that `tests.proof.inputs.corpus.ATTEMPTS` tries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    place: Place
    name: str
    value: Any
    kept: bool
    field: str = ""

    @property
    def label(self) -> str:
        return f"{self.place} {self.name}"


def table(*, kept: Mapping[str, Any], refused: Mapping[str, Any]) -> Sequence[tuple[str, Any, bool]]:
    """Return values with their names, and True for those that may be kept."""
    return [*((*one, True) for one in kept.items()), *((*one, False) for one in refused.items())]


TYPES: Final = table(
    kept=(
        {"plain": "custom.payment", "dotted": "custom.payment.taken", "digits": "custom.4711"}
        | {"underscore": "custom._x_", "unknown": "poll.opened", "unknown-of-ours": "message.pinned"}
        | {"characters-64": "custom." + "x" * 57}
    ),
    refused=(
        {"characters-65": "custom." + "x" * 58, "no-dot": "custom", "empty": "", "ends-with-dot": "custom."}
        | {"two-dots": "custom..x", "upper": "custom.Payment", "space": "custom.a b"}
        | {"line-feed": "custom.a\n", "nul": "custom.a\x00", "russian": "custom.оплата"}
        | {"full-width-digit": "custom.\uff11", "surrogate": "custom.\ud800", "sql": "custom.x'; --"}
        | {"percent": "custom.%", "none": None, "integer": 1, "bytes": b"custom.x"}
    ),
)

VERSIONS: Final = table(
    kept={"one": 1, "two": 2, "largest": 32_767},
    refused=(
        {"zero": 0, "negative": -1, "too-large": 32_768, "beyond-64-bits": 2**64, "true": True, "float": 1.0}
        | {"string": "1", "none": None}
    ),
)

TOKENS: Final = table(
    kept={"none": None, "zero": 0, "one": 1, "beyond-32-bits": 2**40, "largest": 2**63 - 1, "enum": Level.HIGH},
    refused=(
        {"beyond-64-bits": 2**63, "negative": -1, "true": True, "float": 1.0, "nan": math.nan, "string": "7"}
        | {"list": [7]}
    ),
)

ROLES: Final = table(
    kept={role: role for role in ("system", "developer", "user", "assistant", "tool")},
    refused=(
        {"upper": "User", "space": "user ", "unknown": "critic", "empty": "", "nul": "user\x00"}
        | {"none": None, "integer": 1, "list": ["user"], "object": {"role": "user"}}
    ),
)

PARTS: Final = table(
    kept=(
        {"none-at-all": (), "one-text": (Text("abc"),), "empty-text": (Text(""),)}
        | {"all-kinds": (Text("a"), Reasoning("b"), File("c"), ToolCall("d", "e"), ToolResult("d"), Data(1))}
        | {"a-list": [Text("abc")], "file-in-full": (File("s3://a/b?c=d", "text/plain", "имя.txt"),)}
        | {"call-with-object": (ToolCall("1", "search", {"q": ["a", 1, None]}),)}
        | {"call-with-raw-text": (ToolCall("1", "search", '{"q": broken'),)}
        | {"result-with-list": (ToolResult("1", [1, 2], "error"),), "data-false": (Data(False),)}
        | {"data-empty": (Data({}), Data([]), Data(""))}
        | {"many": tuple(Text(str(number)) for number in range(300))}
    ),
    refused=(
        {"nul-in-text": (Text("a"), Text("b\x00")), "surrogate-in-reasoning": (Reasoning("\ud800"),)}
        | {"nan-in-arguments": (ToolCall("1", "x", {"y": math.nan}),)}
        | {"huge-in-output": (ToolResult("1", 2**64),), "bytes-in-data": (Data(b"abc"),)}
        | {"number-in-text": (Text(7),), "none-in-text": (Text(None),), "number-in-uri": (File(7),)}
        | {"a-string": ("abc",), "a-number": (1,), "none": None, "bytes": b"abc", "integer": 7}
        | {"object": {"type": "text", "text": "abc"}}
    ),
)

EVENT_IDS: Final = table(
    kept=(
        {"nil": UUID(int=0), "max": UUID(int=2**128 - 1)} | {"version-4": UUID("6f1b6a52-9a0e-4c39-8a53-0a1c7be5b3a1")}
    ),
    refused={"string": "6f1b6a52-9a0e-4c39-8a53-0a1c7be5b3a2", "bytes": b"\x01" * 16, "none": None, "integer": 7},
)

MAX_DEPTH: Final = 64


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def cases() -> Iterator[Case]:
    yield from _texts()
    yield from _json()
    yield from _rest()


def _texts() -> Iterator[Case]:
    identifiers = (("conversation_id", "conversation_id"), ("owner", "owner"), ("message_id", "id"))
    texts = (
        *(("content", "data.content"), ("part_text", "data.content"), ("name", "data.name"), ("title", "data.title")),
        *(("metadata", "data.metadata"), ("metadata_key", "data.metadata"), ("event_metadata", "metadata")),
        *(("data", "data"), ("data_key", "data"), ("platform_id", "data.platform_ids")),
    )
    for words in TEXTS:
        for place, field in identifiers:
            # An empty message id asks for a new one.
            kept = words.as_id or (place == "message_id" and words.value == "")
            yield Case(place=place, name=words.name, value=words.value, kept=kept, field=field)
        for place, field in texts:
            value = {"a": words.value} if place in ("metadata", "event_metadata", "data") else words.value
            yield Case(place=place, name=words.name, value=value, kept=words.as_text, field=field)
    for name, value in KINDS_OF_NO_TEXT:
        for place, field in identifiers:
            kept = place == "owner" and (value is None or type(value) is int)  # none, or a platform's number
            yield Case(place=place, name=f"kind-{name}", value=value, kept=kept, field=field)
        yield Case(place="name", name=f"kind-{name}", value=value, kept=value is None, field="data.name")
        yield Case(place="title", name=f"kind-{name}", value=value, kept=False, field="data.title")
    yield Case(place="name", name="string-enum", value=Colour.RED, kept=True)
    yield Case(place="content", name="apart", value="x" * 1_100_000, kept=True)
    yield Case(place="content", name="large", value="я" * 400_000, kept=True)


def _json() -> Iterator[Case]:
    objects = (
        *(("usage", "data.usage"), ("external_ids", "data.external_ids"), ("metadata", "data.metadata")),
        *(("event_metadata", "metadata"), ("data", "data")),
    )
    for place, field in objects:
        for name, value in KEPT_JSON:
            yield Case(place=place, name=f"json-{name}", value={"value": value}, kept=True)
        for name, value in REFUSED_JSON:
            yield Case(place=place, name=f"json-{name}", value={"value": value}, kept=False, field=field)
        for name, value in NO_OBJECTS:
            # A message refuses it itself, before there is an event.
            own = place if place in ("usage", "external_ids", "metadata") else field
            yield Case(place=place, name=f"no-object-{name}", value=value, kept=False, field=own)
        # A message's objects lie one deeper, in the data of their event.
        room = MAX_DEPTH - (place in ("usage", "external_ids", "metadata"))
        yield Case(place=place, name="deepest", value=nested(room), kept=True)
        yield Case(place=place, name="too-deep", value=nested(room + 1), kept=False, field=field)
        yield Case(place=place, name="bomb", value=nested(900), kept=False, field=field)
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    yield Case(place="data", name="cycle", value=cycle, kept=False, field="data")
    yield Case(place="data", name="too-large", value={"a": ["x" * 1000] * 1100}, kept=False, field="data")
    yield Case(place="event_metadata", name="too-large", value={"a": "x" * 1_100_000}, kept=False, field="metadata")


def _rest() -> Iterator[Case]:
    tables: Sequence[tuple[str, str, Sequence[tuple[str, Any, bool]]]] = (
        ("occurred_at", "occurred_at", MOMENTS),
        ("type", "type", TYPES),
        ("schema_version", "schema_version", VERSIONS),
        ("tokens", "data.tokens", TOKENS),
        ("role", "role", ROLES),
        ("parts", "", PARTS),
        ("event_id", "event_id", EVENT_IDS),
    )
    for place, field, table in tables:
        for name, value, kept in table:
            yield Case(place=place, name=name, value=value, kept=kept, field=field)


def plain(value: Any) -> Any:
    """Return what JSON makes of a value: a tuple is a list, any mapping an object, a subclass its value."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind) and not isinstance(value, bool):
            return getattr(kind, f"__{kind.__name__}__")(value)
    return value
