"""Grow thousands of trees over three stores, and show that an earlier, wrong rule would be noticed."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import sqlalchemy as sa

from letopis.store import ConversationStore
from letopis.store.database.schema import conversations
from letopis.store.read.descendants import ALL_VERSIONS, Descendants
from letopis.store.testing.outbox import Outbox
from tests.proof.forks.trees import STEPS, Growing, lose_rows
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import Fresh, fresh

WHAT: Final = "random trees of forks, rewinds, deletions and redactions: each reads what it would as a copy"
IN_STEPS: Final = "the same, where every rewind and deletion is marked, and carried out in steps, some at a time"
CONTROL: Final = "the same, where what is kept follows from the parent's own forks alone"
TREES: Final = {"sqlite": (7_000, 20), "postgresql": (500, 5), "mariadb": (500, 5)}
"""Of each kind of store, in the whole proof and in the short one; a quarter as many again in steps."""
GROUP: Final = 20  # trees that grow in one store at once, and are delivered together
IN_ONE_STORE: Final = 500
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder with an unpredictable name is made in it


@dataclass(slots=True)
class Found:
    """The result of a number of trees."""

    trees: int = 0
    conversations: int = 0
    kept: int = 0
    steps: int = 0
    problems: list[str] = field(default_factory=list)


async def grow(url: str, trees: int, seed: int, *, found: Found, steps: bool = False) -> Found:
    """Let trees grow, a group at a time; the rows of every second group are lost in the end, and rebuilt."""
    chance = random.Random(seed)
    first = found.trees
    async with ConversationStore.open(url, migrate=True) as store:
        for start in range(first, first + trees, GROUP):
            outbox = Outbox()
            group = [Growing(number, seed, outbox) for number in range(start, min(start + GROUP, first + trees))]
            for _ in range(STEPS):
                for growing in group:
                    growing.step()
                    if growing.chance.random() < 0.3:
                        growing.step()  # of the same delivery
                await outbox.deliver(store)
                for _ in range(chance.randrange(6) if steps else 0):
                    await store.run_pending_tasks()
            if start // GROUP % 4 == 0:
                await _check(store, group, found)
            for growing in group:
                growing.end()
            if outbox.pending():
                await outbox.deliver(store)
            await _check(store, group, found)
            if start // GROUP % 2:
                await lose_rows(store, [name for growing in group for name in growing.plain.chats])
                await _check(store, group, found)
            found.trees += len(group)
            found.conversations += sum(len(growing.plain.chats) for growing in group)
            found.kept += sum(growing.plain.chats[name].deleted for growing in group for name in growing.plain.needed())
    return found


async def _check(store: ConversationStore, group: list[Growing], found: Found) -> None:
    if (await store.pending_tasks()).tasks:
        for growing in group:
            found.problems += await growing.differences(store, kept=False)
        while await store.run_pending_tasks():
            found.steps += 1
    for growing in group:
        found.problems += await growing.differences(store)


def prove(options: Options) -> Iterator[Row]:
    """Yield two rows for each kind of store, and the control."""
    for kind, (whole, short) in TREES.items():
        yield _row(options, kind, whole, short)
        with _in_steps():
            yield _row(options, kind, whole // 4, short, steps=True)
    with _store("sqlite", options.folder, "control") as one, patch.object(Descendants, "read_up_to", _once):
        found = asyncio.run(grow(one.url, 40, options.seed, found=Found()))
    lost = [problem for problem in found.problems if " reads [" in problem]
    yield row_of(CONTROL, "sqlite", count=found.trees, unit="trees", problems=lost, control=True)


def _row(options: Options, kind: str, whole: int, short: int, *, steps: bool = False) -> Row:
    found, wanted, what = Found(), options.many(whole, short), IN_STEPS if steps else WHAT
    while found.trees < wanted:
        with _store(kind, options.folder, f"forks{found.trees}") as one:
            if one.missing:
                return Row(what=what, where=kind, missing=one.missing)
            here = min(IN_ONE_STORE, wanted - found.trees)
            asyncio.run(grow(one.url, here, options.seed + steps, found=found, steps=steps))
    notes = f"{found.conversations:,} conversations, {found.kept:,} deleted ones kept for forks"
    return row_of(what, kind, found.trees, whole, "trees", found.problems, notes)


@contextmanager
def _in_steps() -> Iterator[None]:
    """Have everything marked, and carried out two versions at a time."""
    with ExitStack() as stack:
        for module in ("write.loading", "write.redaction"):
            stack.enter_context(patch(f"letopis.store.{module}.MAX_ROWS_PER_TRANSACTION", 0))
        stack.enter_context(patch("letopis.store.maintenance.task_steps.STEP_SECONDS", 0.0))
        stack.enter_context(patch("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 2))
        yield


@contextmanager
def _store(kind: str, folder: Path, name: str) -> Iterator[Fresh]:
    place = MEMORY if kind == "sqlite" and MEMORY.is_dir() else folder
    with tempfile.TemporaryDirectory(dir=place) as own, fresh(kind, Path(own), name) as one:
        yield one


async def _once(
    self: Descendants, connection: Any, partition: int, conversation_id: str, *, new: Any = (), kept: int = 0
) -> int:
    """The rule of the first release: a fork that was cleared, or keeps nothing, hands down nothing."""
    forks = await connection.execute(
        sa.select(conversations.c.forked_from_version).where(
            conversations.c.forked_from_id == conversation_id,
            sa.or_(conversations.c.inherits == 1, conversations.c.retained > 0),
        )
    )
    versions = [*forks.scalars(), *(one.point.version for one in new if one.point.conversation_id == conversation_id)]
    return max((ALL_VERSIONS if version is None else version for version in versions), default=0)
