"""Make histories of millions of messages in the database itself from one message that was really applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from benchmarks.backlogs import Backlog
from benchmarks.parts import Bench
from benchmarks.raw_rows import names_of
from benchmarks.subjects import TEXT
from letopis.outbox.event_log.append_encoding import Prepared, prepare
from letopis.store import ConversationStore, Message
from letopis.store.database.schema import conversations, events, log_heads, messages

SLICE: Final = 100_000
"""Messages made by one statement, so that it ends within the time that a store gives one."""
EACH: Final = 100
"""Messages in each conversation that is there only to make the history long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A store filled with ``total`` more messages, and named conversations of given lengths."""

    url: str
    store: ConversationStore
    total: int
    named: dict[str, int]


async def fill(bench: Bench, kind: str, *, total: int, named: dict[str, int]) -> Filled:
    """Make a store with conversations of 100 small messages each, and some with messages of 1 KB."""
    url = bench.new_store(kind)
    backlog = await Backlog.open(bench.new_folder() / "template.outbox.db", url)
    await backlog.owe(conversations=1, each=1)  # chat-0: a message of 1 KB
    await backlog.outbox.append(_small())
    await backlog.drain()
    position = await backlog.position()
    await backlog.outbox.close()
    store = backlog.store
    for name, count in named.items():
        position = await _copy(store, "chat-0", f"'{name}'", position=position, count=count, each=count)
    if total:
        prefix = {"mariadb": "concat('fill-', ({n} - 1) DIV {each})"}.get(kind, "'fill-' || (({n} - 1) / {each})")
        await _copy(store, "small", prefix, position=position, count=total, each=EACH)
    await _settle(store)
    return Filled(url=url, store=store, total=total + sum(named.values()), named=named)


def _small() -> Prepared:
    return prepare("small", [Message.user(TEXT[:100])])


async def _copy(store: ConversationStore, template: str, name: str, *, position: int, count: int, each: int) -> int:
    """Copy the message of a conversation ``count`` times; return the last position of the log then."""
    for start in range(0, count, SLICE):
        last = min(start + SLICE, count)
        await _copy_slice(store, template, name, position=position, numbers=(start + 1, last), each=each)
    return position + count


def _numbers(kind: str, first: int, last: int) -> str:
    """Return what to select from for the numbers ``s.n`` from one to another, both included."""
    match kind:
        case "postgresql":
            return f"generate_series({first}, {last}) AS s(n)"
        case "sqlite":
            more = f"SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last}"
            return f"(WITH RECURSIVE s(n) AS ({more}) SELECT n FROM s) AS s"
        case _:
            return f"(SELECT seq AS n FROM seq_{first}_to_{last}) AS s"


async def _copy_slice(
    store: ConversationStore, template: str, name: str, *, position: int, numbers: tuple[int, int], each: int
) -> None:
    kind = store.url.get_backend_name()
    first_number, last_number = numbers
    event_id, quote = {
        "postgresql": ("lpad(to_hex({at}), 32, '0')::uuid", '"'),
        "sqlite": ("CAST(printf('%016d', {at}) AS BLOB)", '"'),
    }.get(kind, ("CAST(lpad({at}, 16, '0') AS BINARY(16))", "`"))
    divide = "DIV" if kind not in ("postgresql", "sqlite") else "/"
    named = name.format(n="s.n", each=each)
    # Whole numbers: in MariaDB DIV, for its / makes fractions.
    version = f"((s.n - 1) - ((s.n - 1) {divide} {each}) * {each}) + 1"
    at = f"({position} + s.n)"

    def select(table: sa.Table, changed: dict[str, str], where: str) -> str:
        columns = ", ".join(f"{quote}{one}{quote}" for one in names_of(table))
        values = ", ".join(changed.get(one, f"t.{quote}{one}{quote}") for one in names_of(table))
        return f"INSERT INTO {table.name} ({columns}) SELECT {values} FROM {table.name} AS t, {where}"

    source = f"t.conversation_id = '{template}'"
    whole = _numbers(kind, first_number, last_number)
    per_conversation = _numbers(kind, (first_number - 1) // each + 1, max(1, last_number // each))
    first = name.format(n=f"((s.n - 1) * {each} + 1)", each=each)
    statements = [
        select(
            events,
            {
                "conversation_id": named,
                "version": version,
                "sequence": version,
                "position": at,
                "event_id": event_id.format(at=at),
            },
            f"{whole} WHERE {source} AND t.type = 'message.appended'",
        ),
        select(
            messages,
            {"conversation_id": named, "version": version, "content_version": version},
            f"{whole} WHERE {source}",
        ),
        select(
            conversations,
            {
                "conversation_id": first,
                "version": str(each),
                "message_count": str(each),
                "updated_at": "t.updated_at - s.n",
            },
            f"{per_conversation} WHERE {source}",
        ),
        f"UPDATE {log_heads.name} SET position = {position + last_number}",
    ]
    async with store.runtime.callers_engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(
                statement.replace("%", "%%") if kind not in ("postgresql", "sqlite") else statement
            )


async def _settle(store: ConversationStore) -> None:
    """Have the planner know the tables, as it does of any that were not made a moment ago."""
    kind = store.url.get_backend_name()
    if kind == "postgresql":
        import asyncpg

        address = store.url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)
        connection = await asyncpg.connect(address)
        try:
            for table in (events, messages, conversations):
                await connection.execute(f"VACUUM (ANALYZE) {table.name}")
        finally:
            await connection.close()
    elif kind != "sqlite":
        async with store.runtime.callers_engine.begin() as opened:
            for table in (events, messages, conversations):
                await opened.exec_driver_sql(f"ANALYZE TABLE {table.name}")
