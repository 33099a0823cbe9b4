"""List ids made to break out of a statement or a log line, or to be mistaken for another owner's."""

from __future__ import annotations

from typing import Final

from tests.conformance.test_identifiers import HOSTILE
from tests.support.values.hostile import SQL, kinds

TWINS: Final = (
    ("case", "Chat", "chat"),
    ("case beyond ASCII", "ЁЛКА", "ёлка"),
    ("trailing space", "chat", "chat "),
    ("leading space", "chat", " chat"),
    ("no-break space", "chat", "chat\u00a0"),
    ("accent", "cafe", "café"),
    ("NFC and NFD", "caf\u00e9", "cafe\u0301"),
    ("hangul, NFC and NFD", "\ud55c", "\u1112\u1161\u11ab"),
    ("width", "abc", "\uff41\uff42\uff43"),
    ("ligature", "fi", "\ufb01"),
    ("sharp s", "strasse", "straße"),
    ("dotless i", "i", "ı"),
    ("Cyrillic letter", "a", "\u0430"),
    ("zero width", "chat", "cha\u200bt"),
    ("right to left", "chat", "chat\u202e"),
    ("pattern", "a%", "ab"),
    ("pattern of one", "a_", "ab"),
    ("number", "1", "01"),
    ("number as float", "1", "1.0"),
    ("backslash", "a\\b", "a\\\\b"),
    ("quote", "a'b", "a''b"),
    ("null", "null", "NULL"),
    ("emoji and its skin", "👍", "👍🏽"),
    ("beyond the 191st character", "x" * 250 + "a", "x" * 250 + "b"),
)
"""Two ids that are two owners, and what one of them would be taken for by a careless collation."""


def hostile() -> list[str]:
    """Return ids, those too that are no ids at all."""
    found = [str(one.value) for one in kinds()[0] if type(one.value) is str and len(one.value) < 2_100]
    shapes = ("victim-0{}", "victim{}", "{} victim-0", "'{}'", '"{}"')
    aimed = [shape.replace("{}", one) for one in SQL for shape in shapes]
    return list(dict.fromkeys([*HOSTILE, *found, *aimed]))
