"""Give two owners nearly the same id: neither reads, counts, exports or erases the other's data."""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from letopis.outbox import History
from letopis.outbox.transfer.exporter import Exporter
from letopis.store import ConversationStore, Message
from tests.conformance.test_identifiers import HOSTILE
from tests.proof.inputs.running import BLOCK_AT_ONCE
from tests.proof.security.injection import rows_of
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


Fold = Callable[[str], str]


@dataclass(slots=True)
class Isolated:
    """The result of the matrix."""

    looks: int = 0
    problems: list[str] = field(default_factory=list)


def exact(name: str) -> str:
    """An id is its bytes."""
    return name


def careless(name: str) -> str:
    """What a collation without case, accents, width and trailing spaces makes of an id."""
    plain = unicodedata.normalize("NFKD", name.casefold()).rstrip()
    return "".join(one for one in plain if not unicodedata.combining(one) and one.isprintable())


def _words(who: str, number: int) -> str:
    return f"said{who}{number}"


Look = Callable[[History, ConversationStore, str, str], Awaitable[Iterable[str]]]


async def _found(history: History, store: ConversationStore, owner: str, name: str) -> Iterable[str]:
    hits = [*await history.search("common", owner=owner), *await store.search("common", owner=owner)]
    return [one.message.text for one in hits]


async def _exported(history: History, store: ConversationStore, owner: str, name: str) -> Iterable[str]:
    return [line.decode() async for line in Exporter(history).of_all(owner=owner)]


async def _listed(history: History, store: ConversationStore, owner: str, name: str) -> Iterable[str]:
    pages = [
        await history.conversations(owner=owner),
        await history.conversations(owner=owner),
        await store.conversations(owner=owner),
    ]
    return [one.title or "" for page in pages for one in page]


async def _active(history: History, store: ConversationStore, owner: str, name: str) -> Iterable[str]:
    found = [await history.active(owner, create=False), await store.active(owner)]
    return [one.title or "" for one in found if one is not None]


async def _counted(history: History, store: ConversationStore, owner: str, name: str) -> Iterable[str]:
    counts = [await history.statistics(owner=owner), await store.statistics(owner=owner)]
    return [f"{one.messages} messages of {one.conversations} conversations" for one in counts]


async def _read(history: History, store: ConversationStore, owner: str, name: str) -> Iterable[str]:
    pages = [await history.messages(name, last=None), await store.messages(name)]
    return [one.text for page in pages for one in page] + [await history.chat(name).transcript()]


async def _events(history: History, store: ConversationStore, owner: str, name: str) -> Iterable[str]:
    return [str(one.data) for page in (await history.chat(name).events(), await store.events(name)) for one in page]


LOOKS: Final[Mapping[str, Look]] = {
    "search": _found,
    "export": _exported,
    "list": _listed,
    "active": _active,
    "statistics": _counted,
    "messages": _read,
    "events": _events,
}


async def isolated(url: str, folder: Path, *, fold: Fold = exact, pairs: int | None = None) -> Isolated:
    """Let both owners of every pair say something, look as one of them, erase as one of them, and look at the rows."""
    came = Isolated()
    some = TWINS[:pairs]
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History(folder / "isolated.outbox.db", store=store, policy=BLOCK_AT_ONCE) as history,
    ):
        for number, (_, *twins) in enumerate(some):
            for who, twin in zip("ab", twins, strict=True):
                owner = fold(f"{number}-{twin}")
                await history.start(owner, conversation_id=owner, title=_words(who, number))
                await history.append(owner, Message.user(f"common {_words(who, number)}", id=f"m-{who}"))
        await history.drained(timeout=60)
        for number, (kind, *twins) in enumerate(some):
            for other, twin in (("b", twins[0]), ("a", twins[1])):
                owner = fold(f"{number}-{twin}")
                for name, look in LOOKS.items():
                    came.looks += 1
                    seen = list(await look(history, store, owner, owner))
                    if any(_words(other, number) in one for one in seen):
                        came.problems.append(f"{kind}: {name} of one shows the other: {seen!a:.120}")
                    if name == "statistics" and any("1 messages of 1 " not in one for one in seen):
                        came.problems.append(f"{kind}: counts: {seen}")
        if fold is exact:
            await _erased(url, history, came, pairs)
    return came


async def _erased(url: str, history: History, came: Isolated, pairs: int | None) -> None:
    for number, (kind, one, other) in enumerate(TWINS[:pairs]):
        mine, theirs = f"{number}-{one}", f"{number}-{other}"
        before = await rows_of(url, theirs)
        await history.chat(mine).redact("m-a")
        await history.chat(mine).archive()
        await history.chat(mine).delete()
        await history.drained(timeout=20)
        came.looks += 3
        if not before["letopis_messages"] or before != await rows_of(url, theirs):
            came.problems.append(f"{kind}: erasing one changed rows of the other")
        if any(row for row in (await rows_of(url, mine))["letopis_events"] if "said" in str(row)):
            came.problems.append(f"{kind}: what was erased is there still")
