"""Measure row 3: what an append adds to a transaction of the caller's own."""

from __future__ import annotations

import time

import sqlalchemy as sa

from benchmarks.figures import Durability, Figure, percentile
from benchmarks.letopis_subject import objections_to
from benchmarks.parts import Bench
from benchmarks.subjects import TEXT
from benchmarks.witness import Witness, watching
from letopis.outbox import History
from letopis.store import Message

_CREDITS = sa.table("credits", sa.column("owner", sa.Text), sa.column("amount", sa.Integer))
_SPEND = sa.insert(_CREDITS).values(owner=sa.bindparam("owner"), amount=1)


async def transaction(bench: Bench) -> None:
    """Measure the same transaction with the append and without it, in turns, on one file."""
    rounds, count = bench.scale.rounds, bench.scale.count(400, least=10)
    folder = bench.new_folder()
    path = folder / "bot.outbox.db"
    waits: dict[bool, list[float]] = {True: [], False: []}
    tails: dict[bool, list[float]] = {True: [], False: []}
    with watching() as add:
        witness = Witness(folder)
        add(witness)
        async with History(path, relay=False, watch=False) as history:
            objections = await objections_to(history, path)
            async with history.transaction() as tx:
                await tx.execute(sa.text("CREATE TABLE credits (id INTEGER PRIMARY KEY, owner TEXT, amount INTEGER)"))

            async def once(number: int, *, appends: bool) -> float:
                begun = time.perf_counter()
                async with history.transaction() as tx:
                    await tx.execute(_SPEND, {"owner": f"owner-{number}"})
                    if appends:
                        await tx.append(f"chat-{number % 64}", Message.user(TEXT))
                return time.perf_counter() - begun

            for appends in (True, False):
                for number in range(5):
                    await once(number, appends=appends)
            for _ in range(rounds):
                found: dict[bool, list[float]] = {True: [], False: []}
                for number in range(count):  # one and one, so that a slow disk is slow for both
                    for appends in (True, False) if number % 2 else (False, True):
                        found[appends].append(await once(number, appends=appends))
                for appends, seconds in found.items():
                    waits[appends].append(percentile(seconds, 0.5) * 1000)
                    tails[appends].append(percentile(seconds, 0.99) * 1000)
            durability: Durability | None = witness.durability()
    for appends, key, name in (
        (True, "transaction.with", "own transaction with an append"),
        (False, "transaction.without", "the same without it"),
    ):
        bench.add(
            Figure(
                key=key,
                name=name,
                unit="ms",
                samples=tuple(waits[appends]),
                more_is_better=False,
                durability=durability,
                objections=objections if appends else (),
                details={"p99 ms": percentile(tails[appends], 0.5)},
            )
        )
