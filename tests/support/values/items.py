"""List what tools and models give to frameworks: each kind must come back as the framework's own backend gives it."""

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

TOKEN: Final = "s3cret-t0ken-of-a-person"


@dataclass(frozen=True, slots=True)
class Kind:
    """Something that a tool returns, or a whole item of the Responses API."""

    name: str
    value: Any
    odd: bool = False

    @property
    def output(self) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": f"call-{self.name}", "output": self.value}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


_BYTES: Final = Random(23).randbytes(2_300_000)  # bytes that nothing compresses

VALUES: Final[Sequence[Kind]] = (
    Kind("text", "It is 21 degrees."),
    Kind("empty", ""),
    Kind("emoji", "👩‍👩‍👧‍👦 👍🏽 🇦🇲"),
    Kind("right-to-left", "תاريخ\u202e!"),
    Kind("controls", "\x01\t\r\n\x1b[31m\x7f\x85"),
    Kind("floats", [0.1, -0.0, 5e-324, 1.7976931348623157e308]),
    Kind("key-order", {"b": 1, "a": {"d": [None, True], "c": 2}}),
    Kind("long", "words " * 20_000),
    Kind("1.1-mb", "слово " * 100_000 + "\"\\'" * 10_000),
    Kind("3-mb", b64encode(_BYTES[:2_250_000]).decode()),
    Kind(
        "image",
        [{"type": "input_image", "image_url": f"data:image/png;base64,{b64encode(_BYTES[:1_125_000]).decode()}"}],
    ),
    Kind("nul", f"a\0b {TOKEN}", odd=True),
    Kind("nul-in-key", {"a\0b": {"c": 1}}, odd=True),
    Kind("nul-in-list", ["a", "\0"], odd=True),
    Kind("surrogate", "a\ud800b", odd=True),
    Kind("nan", {"share": math.nan}, odd=True),
    Kind("infinity", [math.inf, -math.inf], odd=True),
    Kind("64-bits", [2**63, 2**64 - 1], odd=True),
    Kind("10**30", 10**30, odd=True),
    Kind("depth-300", nested(300), odd=True),
    Kind("depth-900", nested(900), odd=True),
)

ITEMS: Final[Sequence[Kind]] = (
    Kind("content-none", {"role": "user", "content": None}),
    Kind("bare", {"note": "neither type nor role"}),
    Kind("unknown-role", {"role": "critic", "content": "Not bad."}),
    Kind("encrypted", {"__enc__": 1, "v": 1, "kid": "hkdf-v1", "payload": "gAAAAABk"}),
    Kind("hosted-tool", {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}),
    Kind("in-our-shape", {"type": "tool_result", "call_id": "c", "output": None}),
    Kind("reasoning", {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA" * 9}),
)
"""Whole items of the Responses API."""
