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
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.outbox.concurrency.clock import Clock, RetryTimers
from letopis.outbox.diagnostics.integrity import record_problems as outbox_problems
from letopis.outbox.event_log.acknowledge import acknowledge, rewind_lane
from letopis.outbox.event_log.lanes import next_batch
from letopis.store import ConversationStore, LetopisError
from letopis.store.rules.apply_plan import LaneBatch
from tests.model.reads import Wrong
from tests.model.record_lanes import RecordModel
from tests.support.defects import FOREIGN_LANES, HOLLOWED_TOO_SOON, RECORDS_TWICE, planted
from tests.support.pruning import prune
from tests.support.relays import sql
from tests.support.sayings import problems
from tests.support.sqlite_rows import rows

BOX = "bot"
SEEDS = 8
STEPS = 70


@dataclass
class Run:
    """One history: the program under test, and what it should hold."""

    bot: History
    store: ConversationStore
    path: Path
    draw: random.Random
    forget: bool = False
    model: RecordModel = field(default_factory=lambda: RecordModel("app"))
    flying: list[LaneBatch] | None = None
    backup: Path | None = None

    @property
    def file(self) -> Path:
        return self.path / "store.db"

    async def change(self) -> None:
        a, b, c = (self.draw.randrange(10_000) for _ in range(3))
        await self.model.change(BOX, self.bot, a, b, c, down=False)

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
            with closing(sqlite3.connect(self.file)) as raw, raw:
                raw.execute("DELETE FROM letopis_record_ledger")
        result = await self.store.apply(self.bot.outbox.origin, batches)
        if result.refused:
            raise Wrong("refused", result.refused)
        if any(one.superseded for one in result.applied):
            raise Wrong("superseded", "a condition that held")
        if self.draw.random() < 0.6:
            heads = {one.conversation_id: one.head for one in result.applied}
            now = self.bot.outbox.now_us()
            await self.bot.outbox.write(lambda connection: acknowledge(connection, heads, now_us=now))

    async def prune(self) -> None:
        await prune(self.bot, keep_last=self.draw.choice((0, 2, 5)))

    async def back_up(self) -> None:
        self.backup = self.path / "backup.db"
        _copy(self.file, self.backup)

    async def restore(self) -> None:
        """Put the store back, if what it then lacks is still in the outbox; otherwise that is lost, and told."""
        if self.backup is None:
            return
        held = dict(rows(self.backup, "SELECT conversation_id, sequence FROM letopis_lanes"))
        lanes = await sql(self.bot.outbox, "SELECT conversation_id, pruned FROM letopis_outbox_lanes")
        if any(pruned > held.get(name, 0) for name, pruned in lanes):
            return
        self.flying = None
        _copy(self.backup, self.file)
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
        limit, reverse = self.draw.choice((1, 2, 100)), self.draw.random() < 0.5
        if wrong := await self.model.compare(BOX, self.bot, limit=limit, reverse=reverse):
            raise Wrong("records", wrong)

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
        found = await problems(self.store)
        found += await self.bot.outbox.read(lambda connection: list(outbox_problems(connection)))
        if found:
            raise Wrong("problems", found)
        [(held,)] = rows(self.file, "SELECT count(*) FROM letopis_records")
        if held != len(self.model.read(BOX)):
            raise Wrong("stored", f"the store holds {held} records, the model {len(self.model.read(BOX))}")


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other, one, other:
        one.backup(other)


async def run(path: Path, seed: int, *, forget: bool = False, steps: int = STEPS) -> None:
    draw = random.Random(seed)
    path.mkdir()
    async with (
        ConversationStore.open(path / "store.db") as store,
        History(path / "bot.db", store=store, relay=False, watch=False) as bot,
    ):
        one = Run(bot, store, path, draw, forget=forget)
        actions: list[Callable[[], Any]] = [one.prune, one.back_up, one.restore]
        actions += [*[one.change] * 10, *[one.take] * 3, *[one.land] * 3]
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
