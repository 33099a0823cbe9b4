"""A cursor comes back as it was, and every other text is refused in one way."""

from base64 import urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis.store import InvalidInput
from letopis.store.read.paging import CursorCodec, conversations_cursor, read_conversations_cursor

PLACES = CursorCodec("places", "things")


def read(cursor: object) -> tuple[Any, ...]:
    return PLACES.decode(cursor, lambda *values: values)


@given(st.lists(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(), max_size=5))
def test_a_cursor_comes_back_as_it_was(values: list[Any]) -> None:
    cursor = PLACES.encode(*values)
    assert read(cursor) == tuple(values)
    assert cursor.isascii() and "=" not in cursor


@given(st.text() | st.binary() | st.none() | st.integers())
def test_what_is_no_cursor_is_refused(cursor: object) -> None:
    with pytest.raises(InvalidInput, match=r"^after: must be the `next` of a page of things$"):
        read(cursor)


@given(st.data())
def test_a_cursor_that_was_changed_is_refused(data: st.DataObject) -> None:
    cursor = PLACES.encode("place", 17, None)
    # The bits of the last character beyond the last byte say nothing.
    at = data.draw(st.integers(0, len(cursor) - 2))
    other = data.draw(st.sampled_from("ABCdef019-_!= é").filter(lambda one: one != cursor[at]))
    for changed in (cursor[:at] + other + cursor[at + 1 :], cursor[: at + 1]):
        with pytest.raises(InvalidInput):
            read(changed)


@pytest.mark.parametrize(
    "cursor",
    [
        CursorCodec("others", "things").encode("place"),  # of another kind of page
        *(PLACES.encode("0" * many) for many in (300_000, 10_000_000)),  # longer than any place, decompressed
        "A" * 50_000,
        PLACES.encode("place") + "AAAA",
        urlsafe_b64encode(b'[1,"places","place"]').decode(),  # not compressed
    ],
)
def test_another_kind_of_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidInput):
        read(cursor)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("letopis.store.read.paging.FORMAT_VERSION", 2)
        later = PLACES.encode("place")
    with pytest.raises(InvalidInput):
        read(later)


@pytest.mark.parametrize("values", [(), (1,), (1, ""), (1, 2), ("1", "c"), (True, "c"), (2**63, "c"), (1, "c", 0)])
def test_what_is_no_place_of_a_conversation_is_refused(values: tuple[Any, ...]) -> None:
    assert read_conversations_cursor(conversations_cursor(-5, "c")) == (-5, "c")
    with pytest.raises(InvalidInput, match="of a page of conversations"):
        read_conversations_cursor(CursorCodec("conversations", "conversations").encode(*values))
