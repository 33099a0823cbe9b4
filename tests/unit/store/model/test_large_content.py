"""Large strings go out of an event and come back as they were; a caller's own strings are no references."""

from random import Random
from typing import Any

import orjson
import pytest

from letopis.store import InvalidInput
from letopis.store.model.large_content import (
    LARGE_BYTES,
    extract,
    references_in,
    references_of,
    restored,
    without_references,
)

APPENDED = "message.appended"
NAME = "a" * 64
REFERENCE = f"\x01letopis:content:{NAME}:300000"
ODD = [
    *("", "\x01", "\x01letopis:", "\x01letopis:text:", "\x01letopis:content:", REFERENCE, f"{REFERENCE}0"),
    *(f'"{REFERENCE}"', f"\x01letopis:text:{REFERENCE[1:]}", f"\\{REFERENCE}", f'\\"{REFERENCE}"'),
    *("x" * (LARGE_BYTES + 1), "я" * LARGE_BYTES),
]


def value(chance: Random, depth: int = 0) -> Any:
    kind = chance.randrange(4 if depth < 3 else 2)
    if kind == 2:
        return [value(chance, depth + 1) for _ in range(3)]
    if kind == 3:
        return {chance.choice(ODD[:8]): value(chance, depth + 1) for _ in range(3)}
    return chance.choice(ODD) if kind else chance.choice([None, 1, 1.5, True])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_taken_out_comes_back(seed: int) -> None:
    given = {"message_id": "m", "content": value(Random(seed)), "metadata": {"a": value(Random(-seed - 1))}}
    taken = extract(given, "chat-1")
    left = orjson.dumps(taken.data).decode()
    assert restored(taken.data, taken.contents) == given
    assert references_in(APPENDED, left) == references_of(taken.data) == set(taken.contents)
    assert len(left) < LARGE_BYTES


def test_only_a_string_of_its_own_is_a_reference() -> None:
    for text in (REFERENCE, f'"{REFERENCE}"', f"\\{REFERENCE}", f"{REFERENCE}\n"):
        data = orjson.dumps({"content": f"x{text}", text: 1, "a": [{text: text + "x"}]}).decode()
        assert references_in(APPENDED, data) == set()
    data = orjson.dumps({"content": [REFERENCE, {"x": REFERENCE}]}).decode()
    assert references_in(APPENDED, data) == {NAME}
    assert references_in("custom.copy", data) == set()


def test_what_is_too_large_or_in_the_wrong_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.store.model.large_content.MAX_STRING_BYTES", 2 * LARGE_BYTES)
    monkeypatch.setattr("letopis.store.model.large_content.MAX_CONTENT_BYTES", 3 * LARGE_BYTES)
    two = ["x" * (LARGE_BYTES + 1), "y" * (2 * LARGE_BYTES)]
    large = {"content": two}, {"content": "я" * (LARGE_BYTES + 1)}
    for data in (*large, {"name": REFERENCE}, {"usage": {"a": REFERENCE}}):
        with pytest.raises(InvalidInput) as refused:
            extract(data, "c")
        assert NAME not in str(refused.value)
    once, elsewhere = (extract({"content": two[:1] * 10}, name).contents for name in ("c", "d"))
    assert len(once) == len(elsewhere) == 1 and once.keys().isdisjoint(elsewhere)


def test_a_string_of_64_mib_is_the_longest_and_a_packed_item_is_a_little_longer() -> None:
    longest = "x" * 64 * 1024**2
    assert len(extract({"content": longest}, "c").contents) == 1
    assert len(extract({"metadata": {"format": {"packed": longest + "x"}}}, "c").contents) == 1
    for data in ({"content": longest + "x"}, {"metadata": {"packed": longest + "x"}}):
        with pytest.raises(InvalidInput, match="the limit is 64 MiB"):
            extract(data, "c")


def test_lists_without_large_strings_are_not_copied() -> None:
    """A line of an import may hold millions of them."""
    rows: list[Any] = [[], [1, "x"], [[]]]
    large = ["x" * (LARGE_BYTES + 1)]
    data = extract({"metadata": {"rows": rows, "large": large}}, "chat-1").data
    [name] = references_of(data)
    assert data["metadata"]["rows"] is rows
    assert data["metadata"]["large"] == [f"\x01letopis:content:{name}:{LARGE_BYTES + 1}"] != large


def test_a_missing_string_is_told_and_the_text_that_is_searched_has_no_references() -> None:
    assert restored([REFERENCE], {}) == ["[300000 bytes of content cannot be read]"]
    assert without_references(f"a\n{REFERENCE}\nb") == "a\n\nb"
