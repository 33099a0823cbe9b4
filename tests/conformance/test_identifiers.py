"""An id is its bytes: nothing is folded, trimmed, normalised or taken for a pattern, in any column."""

from __future__ import annotations

from letopis.store.testing.identifiers import HOSTILE, IdentifierConformance


class TestIdentifiers(IdentifierConformance):
    """The published contract."""


def test_the_list_holds_no_id_twice() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE)
