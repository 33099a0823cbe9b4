"""Give two owners nearly the same id: neither reads, counts, exports or erases the other's data."""

from __future__ import annotations

import asyncio
import io
import logging
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.relay.relay import Relay
from letopis.outbox.telemetry.logging import JsonFormatter, TextFormatter
from letopis.outbox.transfer.exporter import Exporter
from letopis.store import ConversationStore, InvalidInput, LetopisError, Message
from letopis.store.database.engines import create_store_engine
from letopis.store.database.schema import conversations, events, messages, owners
from letopis.store.testing.identifiers import HOSTILE
from tests.proof.harness import Tally
from tests.proof.inputs.running import BLOCK_AT_ONCE
from tests.support.relays import POISON, ToldStore
from tests.support.values.hostile import SQL, kinds

SIGNS: Final = "\r\x1b\x9b\x00\x07\u202e\u2028\u2029\x85"  # what no line of a log may hold; a line feed ends it


async def rows_of(url: str, owner: str) -> dict[str, Any]:
    """Return every row of an owner, table by table, read beside Letopis."""
    engine = create_store_engine(url)
    try:
        async with engine.connect() as connection:
            names = sa.select(conversations.c.conversation_id).where(conversations.c.owner_id == owner)
            held: dict[str, Any] = {}
            for table in (conversations, events, messages):
                found = await connection.execute(
                    sa.select(table).where(table.c.conversation_id.in_(names)).order_by(*table.primary_key.columns)
                )
                held[table.name] = [tuple(row) for row in found]
            found = await connection.execute(sa.select(owners).where(owners.c.owner_id == owner))
            held[owners.name] = [tuple(row) for row in found]
            return held
    finally:
        await engine.dispose()


async def injected(url: str, folder: Path, ids: Sequence[str], *, random: Random, each: int) -> Tally:
    """Give every call hostile ids, some calls an id; compare another owner's rows before and after."""
    came = Tally()
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History(folder / "injected.outbox.db", store=store, policy=BLOCK_AT_ONCE) as history,
    ):
        for number in range(5):
            await history.append(f"victim-{number}", Message.user("secret"), Message.assistant("kept"), owner="victim")
        await history.chat("victim-0").activate()
        await history.drained(timeout=20)
        before = await rows_of(url, "victim")
        taken = 0
        for name in ids:
            came.count += 1
            for call in [_append, *random.sample(CALLS, each)]:
                came.figures["calls"] += 1
                try:
                    await call(history, store, name)
                    taken += call is _append
                except LetopisError as error:
                    came.refused += 1
                    if not isinstance(error, InvalidInput) or not str(error).isprintable():
                        came.problems.append(f"{name!a:.60}: {type(error).__name__} {error!a:.120}")
        if not await history.drained(timeout=60):
            came.problems.append(f"not everything is delivered: {(await history.status()).lanes}")
        after = await rows_of(url, "victim")
        changed = [table for table in before if before[table] != after[table]]
        came.problems += [f"rows of somebody else changed in {table}" for table in changed]
        listed = await _all(store)
        if len(listed) != taken + 5:
            came.problems.append(f"{taken + 5} conversations were said, and {len(listed)} are there")
    return came


async def _all(store: ConversationStore) -> set[str]:
    names: set[str] = set()
    place: str | None = None
    while True:
        page = await store.conversations(after=place, limit=500, states=("active", "archived", "deleted"))
        names |= {one.conversation_id for one in page}
        if (place := page.next) is None:
            return names


async def _append(history: History, store: ConversationStore, name: str) -> Any:
    return await history.append(name, Message.user("words"), owner=name)


Call = Callable[[History, ConversationStore, str], Awaitable[Any]]
CALLS: Final[Sequence[Call]] = (
    lambda history, store, name: history.messages(name, last=None),
    lambda history, store, name: history.chat(name).conversation(),
    lambda history, store, name: history.chat(name).events(),
    lambda history, store, name: history.chat(name).transcript(),
    lambda history, store, name: history.context(name, last=5),
    lambda history, store, name: history.conversations(owner=name),
    lambda history, store, name: history.active(name, create=False),
    lambda history, store, name: history.conversations(owner=name),
    lambda history, store, name: history.search("secret", owner=name),
    lambda history, store, name: history.search("secret", conversation=name),
    lambda history, store, name: history.search(name),
    lambda history, store, name: history.statistics(owner=name),
    lambda history, store, name: history.statistics(by=name),
    lambda history, store, name: history.unconfirmed(owner=name),
    lambda history, store, name: history.messages(name, after=name, last=None),
    lambda history, store, name: history.chat(name).rename(name),
    lambda history, store, name: history.chat(name).annotate({name: name}),
    lambda history, store, name: history.chat(name).sent(name),
    lambda history, store, name: history.chat(name).rewind(to=None),
    lambda history, store, name: store.messages(name),
    lambda history, store, name: store.conversation(name),
    lambda history, store, name: store.events(name),
    lambda history, store, name: store.active(name),
    lambda history, store, name: store.conversations(owner=name),
    lambda history, store, name: store.statistics(owner=name),
    lambda history, store, name: store.outbox_access.path_of(name, [name]),
    lambda history, store, name: store.conversations(after=name),
)


@contextmanager
def heard() -> Any:
    """Record every record of `letopis`, as text, as JSON, and as the plainest formatter shows it."""
    streams = [io.StringIO() for _ in range(3)]
    formatters = (TextFormatter(), JsonFormatter(), logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("letopis")
    level, handlers = logger.level, []
    for stream, formatter in zip(streams, formatters, strict=True):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        handlers.append(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield streams
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)


def raw_signs(text: str) -> list[str]:
    """Return the lines of a log that hold what forges lines or moves cursors."""
    return [line for line in text.split("\n") if any(sign in line for sign in SIGNS)]


async def logged(folder: Path, ids: Sequence[str]) -> tuple[int, list[str]]:
    """Have every id blocked by the store, so that the relay tells of it; return lines, and those that are wrong."""
    # One success beside each makes it the event's fault; a store that refuses everything blocks no conversation.
    sound = "a sound conversation"
    refusing = ToldStore(lambda batch: POISON if any(one.conversation_id in ids for one in batch) else None)
    with heard() as streams:
        async with History(folder / "logged.outbox.db", relay=False, watch=False) as history:
            relay = Relay(history.outbox, refusing, policy=BLOCK_AT_ONCE)  # type: ignore[arg-type]
            for name in ids:
                try:
                    await history.append(name, Message.user("words"), owner=name)
                except InvalidInput:
                    logging.getLogger("letopis").debug("refused")
                await history.append(sound, Message.user("words"))
                await asyncio.wait_for(relay.drain_once(), 60)
    text, as_json, plain = (stream.getvalue() for stream in streams)
    wrong = [f"{line!a:.160}" for told in (text, as_json, plain) for line in raw_signs(told)]
    return sum(told.count("\n") for told in (text, as_json, plain)), wrong


def logged_raw(ids: Sequence[str]) -> list[str]:
    """The control: what a logger shows that is given an id with %s."""
    with heard() as streams:
        for name in ids:
            logging.getLogger("letopis.control").warning("blocked: %s", name)
    return raw_signs(streams[2].getvalue())


async def built_by_hand(url: str, ids: Sequence[str]) -> list[str]:
    """The control: a select whose statement is put together of the id; return the ids that reached others' rows."""
    engine = create_store_engine(url)
    reached = []
    async with engine.connect() as connection:
        for name in ids:
            statement = f"SELECT conversation_id FROM letopis_messages WHERE conversation_id = '{name}'"
            with suppress(Exception):  # broken SQL reaches nothing
                found = (await connection.exec_driver_sql(statement)).scalars().all()
                if any(one.startswith("victim") for one in found):
                    reached.append(name)
    await engine.dispose()
    return reached


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


async def isolated(url: str, folder: Path, *, fold: Fold = exact, pairs: int | None = None) -> Tally:
    """Let both owners of every pair say something, look as one of them, erase as one of them, and look at the rows."""
    came = Tally()
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
                    came.count += 1
                    seen = list(await look(history, store, owner, owner))
                    if any(_words(other, number) in one for one in seen):
                        came.problems.append(f"{kind}: {name} of one shows the other: {seen!a:.120}")
                    if name == "statistics" and any("1 messages of 1 " not in one for one in seen):
                        came.problems.append(f"{kind}: counts: {seen}")
        if fold is exact:
            await _erased(url, history, came, pairs)
    return came


async def _erased(url: str, history: History, came: Tally, pairs: int | None) -> None:
    for number, (kind, one, other) in enumerate(TWINS[:pairs]):
        mine, theirs = f"{number}-{one}", f"{number}-{other}"
        before = await rows_of(url, theirs)
        await history.chat(mine).redact("m-a")
        await history.chat(mine).archive()
        await history.chat(mine).delete()
        await history.drained(timeout=20)
        came.count += 3
        if not before["letopis_messages"] or before != await rows_of(url, theirs):
            came.problems.append(f"{kind}: erasing one changed rows of the other")
        if any(row for row in (await rows_of(url, mine))["letopis_events"] if "said" in str(row)):
            came.problems.append(f"{kind}: what was erased is there still")
