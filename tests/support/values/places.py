"""List the places where a caller can put a hostile value, each with values.

Each value says whether it may be kept. What may be kept must come back equal from every store; what may not must be
refused with an error that names the field, and leave nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from letopis.store.model.parts import Data, File, Reasoning, Text, ToolCall, ToolResult
from tests.support.values.texts import TEXTS
from tests.support.values.types import KEPT_JSON, KINDS_OF_NO_TEXT, MOMENTS, NO_OBJECTS, REFUSED_JSON, Colour, Level

Place = Literal[
    "conversation_id",
    "owner",
    "message_id",
    "role",
    "content",
    "part_text",
    "parts",
    "name",
    "tokens",
    "usage",
    "external_ids",
    "metadata",
    "metadata_key",
    "event_metadata",
    "event_id",
    "type",
    "schema_version",
    "data",
    "data_key",
    "occurred_at",
    "title",
    "platform_id",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    place: Place
    name: str
    value: Any
    kept: bool
    field: str = ""


TYPES: Final[Sequence[tuple[str, Any, bool]]] = (
    ("plain", "custom.payment", True),
    ("dotted", "custom.payment.taken", True),
    ("digits", "custom.4711", True),
    ("underscore", "custom._x_", True),
    ("unknown", "poll.opened", True),
    ("unknown-of-ours", "message.pinned", True),
    ("characters-64", "custom." + "x" * 57, True),
    ("characters-65", "custom." + "x" * 58, False),
    ("no-dot", "custom", False),
    ("empty", "", False),
    ("ends-with-dot", "custom.", False),
    ("two-dots", "custom..x", False),
    ("upper", "custom.Payment", False),
    ("space", "custom.a b", False),
    ("line-feed", "custom.a\n", False),
    ("nul", "custom.a\x00", False),
    ("russian", "custom.оплата", False),
    ("full-width-digit", "custom.\uff11", False),
    ("surrogate", "custom.\ud800", False),
    ("sql", "custom.x'; --", False),
    ("percent", "custom.%", False),
    ("none", None, False),
    ("integer", 1, False),
    ("bytes", b"custom.x", False),
)

VERSIONS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("one", 1, True),
    ("two", 2, True),
    ("largest", 32_767, True),
    ("zero", 0, False),
    ("negative", -1, False),
    ("too-large", 32_768, False),
    ("beyond-64-bits", 2**64, False),
    ("true", True, False),
    ("float", 1.0, False),
    ("string", "1", False),
    ("none", None, False),
)

TOKENS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("none", None, True),
    ("zero", 0, True),
    ("one", 1, True),
    ("beyond-32-bits", 2**40, True),
    ("largest", 2**63 - 1, True),
    ("beyond-64-bits", 2**63, False),
    ("negative", -1, False),
    ("true", True, False),
    ("float", 1.0, False),
    ("nan", math.nan, False),
    ("string", "7", False),
    ("enum", Level.HIGH, True),
    ("list", [7], False),
)

ROLES: Final[Sequence[tuple[str, Any, bool]]] = (
    ("system", "system", True),
    ("developer", "developer", True),
    ("user", "user", True),
    ("assistant", "assistant", True),
    ("tool", "tool", True),
    ("upper", "User", False),
    ("space", "user ", False),
    ("unknown", "critic", False),
    ("empty", "", False),
    ("nul", "user\x00", False),
    ("none", None, False),
    ("integer", 1, False),
    ("list", ["user"], False),
    ("object", {"role": "user"}, False),
)

PARTS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("none-at-all", (), True),
    ("one-text", (Text("abc"),), True),
    ("empty-text", (Text(""),), True),
    ("all-kinds", (Text("a"), Reasoning("b"), File("c"), ToolCall("d", "e"), ToolResult("d"), Data(1)), True),
    ("a-list", [Text("abc")], True),
    ("file-in-full", (File("s3://a/b?c=d", "text/plain", "имя.txt"),), True),
    ("call-with-object", (ToolCall("1", "search", {"q": ["a", 1, None]}),), True),
    ("call-with-raw-text", (ToolCall("1", "search", '{"q": broken'),), True),
    ("result-with-list", (ToolResult("1", [1, 2], "error"),), True),
    ("data-false", (Data(False),), True),
    ("data-empty", (Data({}), Data([]), Data("")), True),
    ("many", tuple(Text(str(number)) for number in range(300)), True),
    ("nul-in-text", (Text("a"), Text("b\x00")), False),
    ("surrogate-in-reasoning", (Reasoning("\ud800"),), False),
    ("nan-in-arguments", (ToolCall("1", "x", {"y": math.nan}),), False),
    ("huge-in-output", (ToolResult("1", 2**64),), False),
    ("bytes-in-data", (Data(b"abc"),), False),
    ("number-in-text", (Text(7),), False),  # type: ignore[arg-type]
    ("none-in-text", (Text(None),), False),  # type: ignore[arg-type]
    ("number-in-uri", (File(7),), False),  # type: ignore[arg-type]
    ("a-string", ("abc",), False),
    ("a-number", (1,), False),
    ("none", None, False),
    ("bytes", b"abc", False),
    ("integer", 7, False),
    ("object", {"type": "text", "text": "abc"}, False),
)

EVENT_IDS: Final[Sequence[tuple[str, Any, bool]]] = (
    ("nil", UUID(int=0), True),
    ("max", UUID(int=2**128 - 1), True),
    ("version-4", UUID("6f1b6a52-9a0e-4c39-8a53-0a1c7be5b3a1"), True),
    ("string", "6f1b6a52-9a0e-4c39-8a53-0a1c7be5b3a2", False),
    ("bytes", b"\x01" * 16, False),
    ("none", None, False),
    ("integer", 7, False),
)

MAX_DEPTH: Final = 64


def nested(depth: int) -> dict[str, Any]:
    """Return objects ``depth`` deep."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def cases() -> Iterator[Case]:
    """Yield every case; names are unique within a place."""
    yield from _texts()
    yield from _json()
    yield from _rest()


def _texts() -> Iterator[Case]:
    identifiers: Sequence[tuple[Place, str]] = (
        ("conversation_id", "conversation_id"),
        ("owner", "owner"),
        ("message_id", "id"),
    )
    texts: Sequence[tuple[Place, str]] = (
        ("content", "data.content"),
        ("part_text", "data.content"),
        ("name", "data.name"),
        ("title", "data.title"),
        ("metadata", "data.metadata"),
        ("metadata_key", "data.metadata"),
        ("event_metadata", "metadata"),
        ("data", "data"),
        ("data_key", "data"),
        ("platform_id", "data.platform_ids"),
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
    objects: Sequence[tuple[Place, str]] = (
        ("usage", "data.usage"),
        ("external_ids", "data.external_ids"),
        ("metadata", "data.metadata"),
        ("event_metadata", "metadata"),
        ("data", "data"),
    )
    for place, field in objects:
        for name, value in KEPT_JSON:
            if name != "deep-but-allowed":
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
    tables: Sequence[tuple[Place, str, Sequence[tuple[str, Any, bool]]]] = (
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
