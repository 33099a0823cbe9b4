"""Measure a bot's turn: the append of a question, and the read of the messages that a model is to answer from."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.backlogs import Backlog
from benchmarks.figures import Figure, percentile
from benchmarks.parts import Bench
from benchmarks.witness import Witness, watching
from letopis.outbox import History
from letopis.store import Message
from tests.support.servers import ServerUnavailable

COUNT: Final = 50
SESSION: Final = 40
"""Messages that a session's turn reads, before it adds two."""
BEFORE: Final = 1_000
"""Messages of the conversation before the first turn, all of them in the store."""
QUESTION: Final = "What did we say about the delivery of the second parcel, and who was to call whom?"

Step = Callable[[], Awaitable[Any]]


async def _nothing() -> None:
    """Leave the relay where it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One who takes turns: `first` and `second` are timed; `between` and `after`, the relay's work, are not."""

    key: str
    name: str
    first: Step
    second: Step
    between: Step = _nothing
    after: Step = _nothing


async def turn(bench: Bench) -> None:
    """Measure a turn on SQLite, then a session's on PostgreSQL, each beside the sessions of OpenAI Agents."""
    try:
        import agents  # noqa: F401 (a peer: only to be compared with)
    except ImportError as error:
        bench.miss("turns beside OpenAI Agents' sessions", f"openai-agents is not installed ({error})")
        return
    async with AsyncExitStack() as stack:
        await _rounds(bench, [*await _histories(bench, stack), await _sqlite_session(bench, stack)])
    async with AsyncExitStack() as stack:
        try:
            await _rounds(bench, await _sessions(bench, stack))
        except ServerUnavailable as reason:
            bench.miss("a session's turn on PostgreSQL", str(reason))


async def _filled(bench: Bench, stack: AsyncExitStack, kind: str) -> tuple[Backlog, History]:
    backlog = await Backlog.open(bench.new_folder() / "bot.outbox.db", bench.new_store(kind))
    stack.push_async_callback(backlog.close)
    await backlog.owe(conversations=1, each=bench.scale.count(BEFORE, least=100), text=QUESTION)
    await backlog.drain()
    return backlog, await stack.enter_async_context(
        History(backlog.outbox.path, store=backlog.store, relay=False, watch=False, read_timeout=30)
    )


async def _histories(bench: Bench, stack: AsyncExitStack) -> list[Turn]:
    turns = []
    for state in ("pending", "settled"):
        backlog, history = await _filled(bench, stack, "sqlite")

        async def append(history: History = history) -> None:
            await history.append("chat-0", Message.user(QUESTION))

        async def read(history: History = history) -> None:
            page = await history.messages("chat-0", last=COUNT)
            if len(page) != COUNT or not page.complete:
                raise RuntimeError(f"{len(page)} messages, complete: {page.complete}")
            for message in page:  # made when they are read: a bot builds its prompt from these two
                _ = message.role, message.text

        turns.append(
            Turn(
                key=f"sqlite.letopis.{state}",
                name=f"Letopis, the question {'is pending' if state == 'pending' else 'has been delivered'}",
                first=append,
                second=read,
                **{"after" if state == "pending" else "between": backlog.drain},
            )
        )
    return turns


async def _sqlite_session(bench: Bench, stack: AsyncExitStack) -> Turn:
    from agents import SQLiteSession

    stack.enter_context(watching())(Witness(folder := bench.new_folder(), force=("WAL", "FULL")))
    session = SQLiteSession("chat-0", folder / "agents.db")
    stack.callback(session.close)
    await session.add_items([_item() for _ in range(bench.scale.count(BEFORE, least=100))])

    async def read() -> None:
        if len(items := await session.get_items(limit=COUNT)) != COUNT:
            raise RuntimeError(f"{len(items)} items")

    return Turn(
        key="sqlite.openai",
        name="OpenAI Agents SQLiteSession, FULL",
        first=lambda: session.add_items([_item()]),
        second=read,
    )


async def _sessions(bench: Bench, stack: AsyncExitStack) -> list[Turn]:
    from agents.extensions.memory.sqlalchemy_session import SQLAlchemySession

    from letopis.adapters.openai_agents import LetopisSession

    backlog, history = await _filled(bench, stack, "postgresql")
    engine = create_async_engine(bench.new_store("postgresql"))
    stack.push_async_callback(engine.dispose)
    theirs = SQLAlchemySession("chat-0", engine=engine, create_tables=True)
    await theirs.add_items([_item() for _ in range(bench.scale.count(BEFORE, least=100))])
    turns = []
    for key, name, session, after in (
        ("letopis", "Letopis, LetopisSession", LetopisSession("chat-0", history), backlog.drain),
        ("openai", "OpenAI Agents SQLAlchemySession", theirs, _nothing),
    ):

        async def read(session: Any = session) -> None:
            if len(items := await session.get_items(limit=SESSION)) != SESSION:
                raise RuntimeError(f"{len(items)} items")

        async def add(session: Any = session) -> None:
            await session.add_items([_item(), _item("assistant")])

        turns.append(Turn(key=f"postgresql.{key}", name=name, first=read, second=add, after=after))
    return turns


def _item(role: str = "user") -> Any:
    return {"role": role, "content": QUESTION}


async def _rounds(bench: Bench, turns: list[Turn]) -> None:
    """Let all take a turn, one after the other and in another order each time; a sample is the middle of a round."""
    each = bench.scale.count(60, least=3)
    walls: dict[str, list[float]] = {taken.key: [] for taken in turns}
    cpus: dict[str, list[float]] = {taken.key: [] for taken in turns}
    for taken in turns:
        for _ in range(5):
            await _take(taken)
    for _ in range(bench.scale.rounds):
        costs: dict[str, list[tuple[float, float]]] = {taken.key: [] for taken in turns}
        for _ in range(each):
            bench.chance.shuffle(turns)
            for taken in turns:
                costs[taken.key].append(await _take(taken))
        for key, pairs in costs.items():
            walls[key].append(percentile([wall for wall, _ in pairs], 0.5))
            cpus[key].append(percentile([cpu for _, cpu in pairs], 0.5))
    for taken in turns:
        for measure, samples in (("wall", walls), ("cpu", cpus)):
            bench.add(
                Figure(
                    key=f"turn.{measure}.{taken.key}",
                    name=taken.name,
                    unit="ms" if measure == "wall" else "ms of processor time",
                    samples=tuple(samples[taken.key]),
                    more_is_better=False,
                )
            )


async def _take(taken: Turn) -> tuple[float, float]:
    """Take a turn; return its milliseconds by the clock, and of processor time in all threads of this process."""
    wall = cpu = 0.0
    for step, untimed in ((taken.first, taken.between), (taken.second, taken.after)):
        began, burnt = time.perf_counter(), time.process_time()
        await step()
        wall, cpu = wall + time.perf_counter() - began, cpu + time.process_time() - burnt
        await untimed()
    return wall * 1000, cpu * 1000
