"""Give two owners nearly the same id: neither reads, counts, exports or erases the other's data."""

import asyncio
import io
import logging
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from random import Random
from typing import Any, Final
from unittest.mock import patch

import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.history.exporter import Exporter
from letopis.outbox.relay.relay import Relay
from letopis.outbox.telemetry.logging import JsonFormatter, TextFormatter
from letopis.store import ConversationStore, InvalidInput, LetopisError, Message
from letopis.store.database.schema import conversations, events, messages, owners
from letopis.store.read.reader import Reader
from letopis.store.testing.identifiers import HOSTILE
from tests.proof.harness import Setting, Tally
from tests.proof.inputs.running import BLOCK_AT_ONCE, opened
from tests.support.moves import run_sql
from tests.support.relays import POISON, ToldStore
from tests.support.sayings import all_pages
from tests.support.values.hostile import SQL, kinds

SIGNS: Final = "\r\x1b\x9b\x00\x07\u202e\u2028\u2029\x85"  # what no line of a log may hold; a line feed ends it


async def rows_of(url: str, owner: str) -> dict[str, Any]:
    """Return every row of an owner, table by table, read beside Letopis."""
    names = sa.select(conversations.c.conversation_id).where(conversations.c.owner_id == owner)
    found = {
        table: sa.select(table).where(table.c.conversation_id.in_(names)) for table in (conversations, events, messages)
    }
    found[owners] = sa.select(owners).where(owners.c.owner_id == owner)
    return {table.name: await run_sql(url, rows.order_by(*table.primary_key.columns)) for table, rows in found.items()}


async def _say_as_the_victim(history: History) -> None:
    for number in range(5):
        await history.append(f"victim-{number}", Message.user("secret"), Message.assistant("kept"), owner="victim")
    await history.chat("victim-0").activate()
    await history.drained(timeout=20)


async def injected(setting: Setting) -> Tally:
    """Give every call hostile ids, some calls an id; compare another owner's rows before and after."""
    came, url, random = Tally(), setting.url, Random(setting.seed)
    ids = hostile()
    async with opened(setting) as (history, store):
        await _say_as_the_victim(history)
        before = await rows_of(url, "victim")
        taken = 0
        for name in random.sample(ids, setting.many(len(ids), 30)):
            came.count += 1
            for call in [_append, random.choice(CALLS)]:
                came.figures["calls"] += 1
                try:
                    await call(history, store, name)
                    taken += call is _append
                except LetopisError as error:
                    came.refused += 1
                    if not isinstance(error, InvalidInput) or not str(error).isprintable():
                        came.problems.append(f"{name!a:.60}: {type(error).__name__} {error!a:.120}")
        came.require(
            await history.drained(timeout=60), f"not everything is delivered: {(await history.status()).lanes}"
        )
        after = await rows_of(url, "victim")
        changed = [table for table in before if before[table] != after[table]]
        came.blame(f"rows of somebody else changed in {table}" for table in changed)
        pages = partial(store.conversations, limit=500, states=("active", "archived", "deleted"))
        listed = {one.conversation_id for one in await all_pages(pages)}
        came.require(len(listed) == taken + 5, f"{taken + 5} conversations were said, and {len(listed)} are there")
    came.notes = f"{came.figures['calls']:,} calls, {came.refused:,} refused"
    return came


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
    lambda history, store, name: store.runtime.read(Reader.path_of, name, [name]),
    lambda history, store, name: store.conversations(after=name),
)


@contextmanager
def heard() -> Any:
    """Record every record of `letopis`, as text, as JSON, and as the plainest formatter shows it."""
    streams = [io.StringIO() for _ in range(3)]
    formatters = (TextFormatter(), JsonFormatter(), logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("letopis")
    handlers = [logging.StreamHandler(stream) for stream in streams]
    for handler, formatter in zip(handlers, formatters, strict=True):
        handler.setFormatter(formatter)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with patch.object(logger, "handlers", [*logger.handlers, *handlers]):
            yield streams
    finally:
        logger.setLevel(level)


def raw_signs(text: str) -> list[str]:
    """Return the lines of a log that hold what forges lines or moves cursors."""
    return [f"{line!a:.160}" for line in text.split("\n") if any(sign in line for sign in SIGNS)]


async def logged(setting: Setting) -> Tally:
    """Have every id blocked by the store, so that the relay tells of it."""
    ids = hostile()[: setting.many(10_000, 60)]
    # One success beside each makes it the event's fault; a store that refuses everything blocks no conversation.
    refusing = ToldStore(lambda batch: POISON if any(one.conversation_id in ids for one in batch) else None)
    with heard() as streams:
        async with History(setting.folder / "logged.outbox.db", relay=False, watch=False) as history:
            relay = Relay(history.outbox, refusing, policy=BLOCK_AT_ONCE)  # type: ignore[arg-type]
            for name in ids:
                try:
                    await history.append(name, Message.user("words"), owner=name)
                except InvalidInput:
                    logging.getLogger("letopis").debug("refused")
                await history.append("a sound conversation", Message.user("words"))
                await asyncio.wait_for(relay.drain_once(), 60)
    told = "".join(stream.getvalue() for stream in streams)
    return Tally(told.count("\n"), problems=raw_signs(told))


def logged_raw(setting: Setting) -> Tally:
    """The control: what a logger shows that is given an id with %s."""
    ids = hostile()[: setting.many(10_000, 60)]
    with heard() as streams:
        for name in ids:
            logging.getLogger("letopis.control").warning("blocked: %s", name)
    return Tally(len(ids), problems=raw_signs(streams[2].getvalue()))


async def built_by_hand(setting: Setting) -> Tally:
    """The control: a select whose statement is put together of the id; some ids reach others' rows."""
    ids, came = hostile(), Tally()
    async with opened(setting) as (history, store):
        await _say_as_the_victim(history)
        async with store.runtime.callers_engine.connect() as connection:
            for name in ids:
                came.count += 1
                statement = f"SELECT conversation_id FROM letopis_messages WHERE conversation_id = '{name}'"
                with suppress(Exception):  # broken SQL reaches nothing
                    found = (await connection.exec_driver_sql(statement)).scalars().all()
                    came.require(not any(one.startswith("victim") for one in found), f"{name!a} reaches them")
    return came


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


def careless(name: str) -> str:
    """What a collation without case, accents, width and trailing spaces makes of an id."""
    plain = unicodedata.normalize("NFKD", name.casefold()).rstrip()
    return "".join(one for one in plain if not unicodedata.combining(one) and one.isprintable())


async def _exported(history: History, owner: str) -> list[bytes]:
    return [line async for line in Exporter(history).of_all(owner=owner)]


Look = Callable[[History, ConversationStore, str], Iterable[Awaitable[Any]]]
LOOKS: Final[Mapping[str, Look]] = {
    "search": lambda history, store, owner: [one.search("common", owner=owner) for one in (history, store)],
    "export": lambda history, store, owner: [_exported(history, owner)],
    "list": lambda history, store, owner: [one.conversations(owner=owner) for one in (history, store)],
    "active": lambda history, store, owner: [history.active(owner, create=False), store.active(owner)],
    "statistics": lambda history, store, owner: [one.statistics(owner=owner) for one in (history, store)],
    "messages": lambda history, store, owner: [
        *(history.messages(owner, last=None), store.messages(owner), history.chat(owner).transcript())
    ],
    "events": lambda history, store, owner: [history.chat(owner).events(), store.events(owner)],
}


async def isolated(setting: Setting) -> Tally:
    """Let both owners of every pair say something, look as one of them, erase as one of them, and look at the rows."""
    came, fold = Tally(), careless if setting.control else str
    some = TWINS[: setting.many(len(TWINS), 3)]
    async with opened(setting) as (history, store):
        for number, (_, *twins) in enumerate(some):
            for who, twin in zip("ab", twins, strict=True):
                owner = fold(f"{number}-{twin}")
                await history.start(owner, conversation_id=owner, title=f"said{who}{number}")
                await history.append(owner, Message.user(f"common said{who}{number}", id=f"m-{who}"))
        await history.drained(timeout=60)
        for number, (kind, *twins) in enumerate(some):
            for other, twin in (("b", twins[0]), ("a", twins[1])):
                owner = fold(f"{number}-{twin}")
                for name, look in LOOKS.items():
                    came.count += 1
                    seen = [await one for one in look(history, store, owner)]
                    shown = f"said{other}{number}" in repr(seen)
                    came.require(not shown, f"{kind}: {name} of one shows the other: {seen!a:.120}")
                    if name == "statistics":
                        counts = [(one.messages, one.conversations) for one in seen]
                        came.require(counts == [(1, 1)] * 2, f"{kind}: counts: {counts}")
        if not setting.control:
            await _erased(setting.url, history, came, some)
    return came


async def _erased(url: str, history: History, came: Tally, some: Sequence[tuple[str, str, str]]) -> None:
    for number, (kind, one, other) in enumerate(some):
        mine, theirs = f"{number}-{one}", f"{number}-{other}"
        before = await rows_of(url, theirs)
        await history.chat(mine).redact("m-a")
        await history.chat(mine).archive()
        await history.chat(mine).delete()
        await history.drained(timeout=20)
        came.count += 3
        same = bool(before["letopis_messages"]) and before == await rows_of(url, theirs)
        came.require(same, f"{kind}: erasing one changed rows of the other")
        left = "said" in str((await rows_of(url, mine))["letopis_events"])
        came.require(not left, f"{kind}: what was erased is there still")
