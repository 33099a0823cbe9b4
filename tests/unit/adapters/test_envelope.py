"""An item of a framework is sealed as text and comes back as it was, or is refused."""

from base64 import b64decode, b64encode
from typing import Any
from zlib import compress

import pytest

from letopis.adapters._envelope import seal, unseal
from letopis.store import InvalidInput
from letopis.store.model.large_content import MAX_ITEM_BYTES, packed_bytes


def nested(depth: int) -> Any:
    value: Any = "leaf"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "item",
    ["a\0b", "\ud800", {"n": float("inf")}, 10**30, nested(900), {"text": "чай" * 100_000}, "x" * (MAX_ITEM_BYTES - 2)],
    ids=["nul", "surrogate", "infinity", "integer", "depth", "long", "longest"],
)
def test_sealed_item_comes_back(item: Any) -> None:
    sealed = seal(item)
    assert unseal(sealed) == item
    assert all(text.isprintable() and "\0" not in text for text in sealed.values())


def test_item_beyond_the_limit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="store a reference"):
        seal("x" * (MAX_ITEM_BYTES - 1))


@pytest.mark.parametrize(
    "packed",
    ["", "no base64!", b64encode(b"no zlib").decode(), b64encode(compress(b'"cut')[:-2]).decode()],
)
def test_damaged_text_is_refused(packed: str) -> None:
    with pytest.raises(ValueError, match="damaged"):
        unseal({"packed": packed})


def test_text_that_stands_for_gigabytes_is_not_unpacked() -> None:
    bomb = b64encode(compress(b" " * (MAX_ITEM_BYTES + 1))).decode()
    assert len(b64decode(bomb)) < 100_000
    with pytest.raises(ValueError, match="larger than any item"):
        unseal({"packed": bomb})


@pytest.mark.parametrize(
    ("data", "size"),
    [
        ({"metadata": {"format": {"packed": "abcd"}}}, 4),
        ({"content": [{"type": "letopis.replaced_item", "packed": "ab"}]}, 2),
        ({"content": [{"type": "text", "packed": "ab"}]}, 0),
        ({"metadata": {"format": {"packed": 4}}}, 0),
        ({"metadata": [], "content": "packed"}, 0),
    ],
)
def test_packed_bytes_are_those_of_an_envelope(data: dict[str, Any], size: int) -> None:
    assert packed_bytes(data) == size
