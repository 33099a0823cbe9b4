"""Measure rows 10 and 11: the last 50 messages of short and long conversations in small and large histories."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from benchmarks.backlogs import Backlog
from benchmarks.bare_reads import bare_read
from benchmarks.figures import Figure, percentile
from benchmarks.filling import Filled, fill
from benchmarks.parts import Bench
from benchmarks.peers import PEERS
from benchmarks.subjects import TEXT, Missed, Subject
from benchmarks.witness import Witness, watching
from letopis.outbox import History
from letopis.store import Message
from tests.support.servers import ServerUnavailable

KINDS: Final = ("sqlite", "postgresql", "mariadb")
SIZES: Final = (1_000, 100_000, 1_000_000)
"""Messages in the history. `--whole` takes 1e7 for the last, which is made for minutes."""
SHORT, LONG = 100, 100_000
COUNT: Final = 50
PENDING: Final = 1_000

Ask = Callable[[], Awaitable[Any]]


async def read(bench: Bench) -> None:
    """Measure Letopis beside the bare driver on each store and size; then the peers, with a thousand messages."""
    for kind in KINDS:
        try:
            await _sizes(bench, kind)
        except ServerUnavailable as reason:
            bench.miss(f"reading {kind}", str(reason))
    await _peers(bench)


async def _sizes(bench: Bench, kind: str) -> None:
    sizes = [*SIZES[:-1], 10_000_000] if bench.scale.whole else list(SIZES)
    asks: dict[str, tuple[str, Ask]] = {}
    async with AsyncExitStack() as stack:
        for size in sizes:
            total = bench.scale.count(size, least=1_000)
            named = {"short": SHORT}
            if size >= LONG:
                named["long"] = bench.scale.count(LONG, least=SHORT * 5)
            filled = await fill(bench, kind, total=total, named=named)
            stack.push_async_callback(filled.store.close)
            bare = bare_read(kind, filled.url)
            await bare.open()
            stack.push_async_callback(bare.close)
            history = await stack.enter_async_context(
                History(
                    bench.new_folder() / "bot.outbox.db", store=filled.store, relay=False, watch=False, read_timeout=30
                )
            )
            for name in named:
                place = f"read.{kind}.{size}.{name}"
                what = f"{kind}, {filled.total:,} messages, {named[name]:,} in the conversation"
                asks[f"{place}.letopis"] = f"Letopis, {what}", _letopis(history, name)
                asks[f"{place}.store"] = f"its store alone, {what}", _store(filled, name)
                asks[f"{place}.bare"] = f"bare SELECT, {what}", _bare(bare, name)
        await _rounds(bench, asks, seconds=bench.scale.seconds(0.15))


async def overlay(bench: Bench) -> None:
    """Measure the same read where a thousand events of the conversation are pending, and where none is."""
    for kind in KINDS:
        try:
            await _overlay(bench, kind)
        except ServerUnavailable as reason:
            bench.miss(f"overlay on {kind}", str(reason))


async def _overlay(bench: Bench, kind: str) -> None:
    backlog = await Backlog.open(bench.new_folder() / "bot.outbox.db", bench.new_store(kind))
    try:
        await backlog.owe(conversations=2, each=200)
        await backlog.drain()
        async with History(
            backlog.outbox.path, store=backlog.store, relay=False, watch=False, read_timeout=30
        ) as history:
            for _ in range(PENDING // 50):
                await history.append("chat-1", *(Message.user(TEXT) for _ in range(50)))
            asks = {
                f"overlay.{kind}.none": (f"{kind}, nothing pending", _letopis(history, "chat-0")),
                f"overlay.{kind}.pending": (f"{kind}, {PENDING:,} events pending", _letopis(history, "chat-1")),
            }
            await _rounds(bench, asks, seconds=bench.scale.seconds(0.4))
    finally:
        await backlog.close()


async def _peers(bench: Bench) -> None:
    """Ask every subject for the last 50 of a thousand messages; they are written without waiting for the disk."""
    count = bench.scale.count(1_000, least=60)
    asks: dict[str, tuple[str, Ask]] = {}
    async with AsyncExitStack() as stack:
        add = stack.enter_context(watching())
        for peer in PEERS:
            if not peer.reads:
                continue
            folder = bench.new_folder()
            add(Witness(folder, force=("WAL", "OFF")))
            subject = peer()
            try:
                await subject.open(folder)
            except Missed as reason:
                bench.miss(f"{peer.title} (read)", str(reason))
                continue
            stack.push_async_callback(subject.close)
            for number in range(count):
                await subject.say("chat", f"{number} {TEXT}")
            wanted = [f"{number} {TEXT}" for number in range(count - COUNT, count)]
            if list(await subject.last("chat", COUNT)) != wanted:
                bench.miss(f"{peer.title} (read)", f"did not return the last {COUNT} messages")
                continue
            asks[f"read.peers.{peer.key}"] = peer.title, _subject(subject)
        backlog = await Backlog.open(bench.new_folder() / "bot.outbox.db", bench.new_store("sqlite"))
        stack.push_async_callback(backlog.close)
        await backlog.owe(conversations=1, each=count)
        await backlog.drain()
        history = await stack.enter_async_context(
            History(backlog.outbox.path, store=backlog.store, relay=False, watch=False)
        )
        asks["read.letopis"] = "Letopis", _letopis(history, "chat-0")
        await _rounds(bench, asks, seconds=bench.scale.seconds(0.3))


async def _rounds(bench: Bench, asks: dict[str, tuple[str, Ask]], *, seconds: float) -> None:
    """Ask all, one after the other in each round, in another order each time; a sample is the middle of a round."""
    middles: dict[str, list[float]] = {key: [] for key in asks}
    tails: dict[str, list[float]] = {key: [] for key in asks}
    for _, ask in asks.values():
        for _ in range(3):
            await ask()
    for _ in range(bench.scale.rounds):
        order = list(asks)
        bench.chance.shuffle(order)
        for key in order:
            waits = await _ask(asks[key][1], seconds)
            middles[key].append(percentile(waits, 0.5) * 1000)
            tails[key].append(percentile(waits, 0.99) * 1000)
    for key, (name, _) in asks.items():
        bench.add(
            Figure(
                key=key,
                name=name,
                unit="ms",
                samples=tuple(middles[key]),
                more_is_better=False,
                details={"p99 ms": percentile(tails[key], 0.5)},
            )
        )


async def _ask(ask: Ask, seconds: float) -> Sequence[float]:
    waits: list[float] = []
    clock = time.perf_counter
    until = clock() + seconds
    while (begun := clock()) < until or not waits:
        await ask()
        waits.append(clock() - begun)
    return waits


def _letopis(history: History, name: str) -> Ask:
    async def ask() -> None:
        page = await history.messages(name, last=COUNT)
        if len(page) != COUNT or not page.complete:
            raise RuntimeError(f"{len(page)} messages, complete: {page.complete}")
        for message in page:  # made when they are read: a bot builds its prompt from these two
            _ = message.role, message.text

    return ask


def _store(filled: Filled, name: str) -> Ask:
    async def ask() -> None:
        await filled.store.messages(name, last=COUNT)

    return ask


def _bare(bare: Any, name: str) -> Ask:
    async def ask() -> None:
        if len(found := await bare.last(name)) < COUNT:
            raise RuntimeError(f"{len(found)} messages")

    return ask


def _subject(subject: Subject) -> Ask:
    async def ask() -> None:
        await subject.last("chat", COUNT)

    return ask
