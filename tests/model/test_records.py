"""Random histories of records over a real outbox and a real store, against a plain model, with defects planted.

One outbox writes. Batches in flight are applied late, acknowledgements are lost, delivered changes are pruned, and the
store is put back to a backup. After every step each record reads as the model says, and no condition that held when it
was given is ever reported as superseded.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from letopis.outbox import History, Retention
from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.diagnostics.integrity import record_problems as outbox_problems
from letopis.outbox.event_log.acknowledge import acknowledge, rewind_lane
from letopis.outbox.event_log.lanes import next_batch
from letopis.outbox.event_log.retention import Pruner
from letopis.store import ABSENT, ConversationStore, LetopisError
from letopis.store.database.engines import create_store_engine
from letopis.store.maintenance.record_problems import record_problems
from letopis.store.rules.apply_plan import LaneBatch
from tests.support.defects import FOREIGN_LANES, HOLLOWED_TOO_SOON, RECORDS_TWICE, planted

KEYS = [(("a",), "1"), (("a",), "2"), (("a", "b"), "1"), (("c",), "1")]
PREFIXES: list[tuple[str, ...]] = [(), ("a",), ("a", "b")]

SEEDS = 8
STEPS = 70
HOUR = timedelta(hours=1)


class Wrong(AssertionError):
    """What was read is not what the model says."""


@dataclass
class Run:
    """One history: the program under test, and what it should hold."""

    bot: History
    store: ConversationStore
    path: Path
    draw: random.Random
    forget: bool = False
    model: dict[tuple[tuple[str, ...], str], tuple[int, UUID]] = field(default_factory=dict)
    flying: list[LaneBatch] | None = None
    backup: Path | None = None
    number: int = 0

    @property
    def records(self) -> Any:
        return self.bot.records(space="app")

    async def put(self) -> None:
        place = self.draw.choice(KEYS)
        self.number += 1
        expected: Any = {}
        if self.draw.random() < 0.4:
            held = self.model.get(place)
            expected = {"expected": ABSENT if held is None else held[1]}
        receipt = await self.records.put(*place, self.number, **expected)
        self.model[place] = (self.number, receipt.revision)

    async def delete(self) -> None:
        place = self.draw.choice(KEYS)
        await self.records.delete(*place)
        self.model.pop(place, None)

    async def clear(self) -> None:
        prefix = self.draw.choice(PREFIXES)
        await self.records.delete_where(prefix)
        for place in [one for one in self.model if one[0][: len(prefix)] == prefix]:
            del self.model[place]

    async def take(self) -> None:
        if self.flying is None:
            due = await self.bot.outbox.read(
                lambda connection: next_batch(connection, waits=RetryTimers(Clock(), longest=1.0))
            )
            self.flying = list(due.batches)

    async def land(self) -> None:
        batches, self.flying = self.flying, None
        if not batches:
            return
        if self.forget:
            with closing(sqlite3.connect(str(self.store.url.database))) as raw, raw:
                raw.execute("DELETE FROM letopis_record_ledger")
        result = await self.store.apply(self.bot.outbox.origin, batches)
        if result.refused:
            raise Wrong(result.refused)
        if any(one.superseded for one in result.applied):
            raise Wrong("a condition that held was superseded")
        if self.draw.random() < 0.6:
            heads = {one.conversation_id: one.head for one in result.applied}
            now = self.bot.outbox.now_us()
            await self.bot.outbox.write(lambda connection: acknowledge(connection, heads, now_us=now))

    async def prune(self) -> None:
        retention = Retention(keep_last=self.draw.choice((0, 2, 5)), keep_for=timedelta(0))
        pruner = Pruner(retention, lambda: self.bot.outbox.now_us() + 1_000_000)
        while await self.bot.outbox.write(pruner):
            pass

    async def back_up(self) -> None:
        self.backup = self.path / "backup.db"
        _copy(Path(str(self.store.url.database)), self.backup)

    async def restore(self) -> None:
        """Put the store back, if what it then lacks is still in the outbox; otherwise that is lost, and told."""
        if self.backup is None:
            return
        with closing(sqlite3.connect(self.backup)) as raw, raw:
            held = dict(raw.execute("SELECT conversation_id, sequence FROM letopis_lanes").fetchall())
        lanes = await self.bot.outbox.read(
            lambda connection: connection.exec_driver_sql(
                "SELECT conversation_id, pruned FROM letopis_outbox_lanes"
            ).all()
        )
        if any(pruned > held.get(name, 0) for name, pruned in lanes):
            return
        self.flying = None
        _copy(self.backup, Path(str(self.store.url.database)))
        if self.draw.random() < 0.5:
            await self.check()  # before anybody noticed
        heads = await self.store.lane_heads(self.bot.outbox.origin.origin_id, [name for name, _ in lanes])
        now = self.bot.outbox.now_us()
        for name, _ in lanes:
            head = heads.get(name, 0)
            await self.bot.outbox.write(
                lambda connection, name=name, head=head: rewind_lane(connection, name, head, now_us=now)  # type: ignore[misc]
            )

    async def check(self) -> None:
        found = await self.records.get_many(KEYS)
        for place, one in zip(KEYS, found, strict=True):
            held = self.model.get(place)
            if (None if one is None else (one.value, one.revision)) != held:
                raise Wrong(f"{place} reads {one}, the model holds {held}")
        page = await self.records.list(limit=self.draw.choice((1, 2, 100)), reverse=self.draw.random() < 0.5)
        listed = [((one.namespace, one.key), (one.value, one.revision)) for one in page]
        for place, value in listed:
            if self.model.get(place) != value:
                raise Wrong(f"{place} is listed as {value}, the model holds {self.model.get(place)}")
        if page.next is None and len(listed) != len(self.model):
            raise Wrong(f"{len(listed)} records are listed, the model holds {len(self.model)}")

    async def settle(self) -> None:
        """Deliver everything, and compare the store with the model, without the outbox."""
        for _ in range(200):
            self.flying = None
            await self.take()
            if not self.flying:
                break
            await self.land()
        await self.prune()
        await self.check()
        engine = create_store_engine(self.store.url)
        async with engine.connect() as connection:
            problems = [one async for one in record_problems(connection)]
        await engine.dispose()
        problems += await self.bot.outbox.read(lambda connection: list(outbox_problems(connection)))
        if problems:
            raise Wrong(problems)
        with closing(sqlite3.connect(str(self.store.url.database))) as raw, raw:
            [(held,)] = raw.execute("SELECT count(*) FROM letopis_records").fetchall()
        if held != len(self.model):
            raise Wrong(f"the store holds {held} records, the model {len(self.model)}")


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other, one, other:
        one.backup(other)
    one.close()
    other.close()


async def run(path: Path, seed: int, *, forget: bool = False, steps: int = STEPS) -> None:
    draw = random.Random(seed)
    path.mkdir()
    async with (
        ConversationStore.open(path / "store.db") as store,
        History(path / "bot.db", store=store, relay=False, watch=False) as bot,
    ):
        one = Run(bot, store, path, draw, forget=forget)
        actions: list[Callable[[], Any]] = [one.delete, one.clear, one.prune, one.back_up, one.restore]
        actions += [*[one.put] * 8, *[one.take] * 3, *[one.land] * 3]
        for _ in range(steps):
            await draw.choice(actions)()
            await one.check()
        await one.settle()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_random_history_reads_as_its_model(tmp_path: Path, seed: int) -> None:
    await run(tmp_path / "run", seed)


@pytest.mark.parametrize("defect", [RECORDS_TWICE, FOREIGN_LANES, HOLLOWED_TOO_SOON])
async def test_the_check_sees_a_defect(tmp_path: Path, defect: str) -> None:
    with planted(defect):
        for seed in range(20):
            try:
                await run(tmp_path / f"run-{seed}", seed, forget=defect is RECORDS_TWICE)
            except (Wrong, LetopisError):
                return
    pytest.fail("no history shows the defect")
