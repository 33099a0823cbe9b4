"""Grow thousands of trees over three stores, and show that an earlier, wrong rule would be noticed."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import sqlalchemy as sa

from letopis import ConversationStore
from letopis.store.database.schema import conversations
from letopis.store.read.descendants import ALL_VERSIONS, Descendants, Needed
from letopis.store.testing.outbox import Outbox
from tests.proof.forks.trees import STEPS, Growing, lose_rows
from tests.proof.harness import Experiment, Setting, Tally
from tests.proof.stores import fresh

TREES: Final = {"sqlite": (7_000, 8), "postgresql": (500, 2), "mariadb": (500, 2)}
"""Of each kind of store, in the whole proof and in the short one; a quarter as many again in steps."""
GROUP: Final = 20  # trees that grow in one store at once, and are delivered together
IN_ONE_STORE: Final = 500
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder with an unpredictable name is made in it


async def grow(url: str, trees: int, seed: int, *, tally: Tally, steps: bool = False) -> Tally:
    """Let trees grow, a group at a time; the rows of every second group are lost in the end, and rebuilt."""
    chance = random.Random(seed)
    first = tally.count
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
                await _check(store, group, tally)
            for growing in group:
                growing.end()
            if outbox.pending():
                await outbox.deliver(store)
            await _check(store, group, tally)
            if start // GROUP % 2:
                await lose_rows(store, [name for growing in group for name in growing.plain.chats])
                await _check(store, group, tally)
            tally.count += len(group)
            for growing in group:
                needed = growing.plain.needed()
                tally.figures["conversations"] += len(growing.plain.chats)
                tally.figures["deleted ones kept for forks"] += sum(growing.plain.chats[one].deleted for one in needed)
    return tally


async def _check(store: ConversationStore, group: list[Growing], tally: Tally) -> None:
    if (await store.pending_tasks()).tasks:
        for growing in group:
            tally.problems += await growing.differences(store, kept=False)
        while await store.run_pending_tasks():
            pass
    for growing in group:
        tally.problems += await growing.differences(store)


async def grow_all(setting: Setting, *, steps: bool = False) -> Tally:
    """Let trees grow in one store after the other, until there are enough."""
    tally, (whole, short) = Tally(), TREES[setting.kind]
    wanted = setting.many(whole // 4 if steps else whole, short)
    with _in_steps() if steps else ExitStack():
        while tally.count < wanted:
            here = min(IN_ONE_STORE, wanted - tally.count)
            with _in_memory(setting) as url:
                await grow(url, here, setting.seed + steps, tally=tally, steps=steps)
    tally.notes = tally.told()
    return tally


async def grow_wrong(setting: Setting) -> Tally:
    """Leave of what is wrong what a reader of a fork has lost."""
    with patch.object(Descendants, "read_up_to", _once):
        tally = await grow(setting.url, 40, setting.seed, tally=Tally())
    tally.problems = [problem for problem in tally.problems if " reads [" in problem]
    return tally


@contextmanager
def _in_steps() -> Iterator[None]:
    """Have everything marked, and carried out two versions at a time."""
    with ExitStack() as stack:
        for module in ("write.loading", "write.erasing"):
            stack.enter_context(patch(f"letopis.store.{module}.MAX_ROWS_PER_TRANSACTION", 0))
        stack.enter_context(patch("letopis.store.maintenance.task_steps.STEP_SECONDS", 0.0))
        stack.enter_context(patch("letopis.store.maintenance.task_steps.PIECE_VERSIONS", 2))
        yield


@contextmanager
def _in_memory(setting: Setting) -> Iterator[str]:
    place = MEMORY if setting.kind == "sqlite" and MEMORY.is_dir() else setting.folder
    with tempfile.TemporaryDirectory(dir=place) as folder, fresh(setting.kind, Path(folder), "forks") as store:
        yield store.url


async def _once(
    self: Descendants, connection: Any, partition: int, conversation_id: str, *, new: Any = (), kept: int = 0
) -> Needed:
    """The rule of the first release: a fork that was cleared, or keeps nothing, hands down nothing."""
    held, points = conversations.c, [one.point for one in new if one.point.conversation_id == conversation_id]
    forks = sa.select(held.forked_from_version).where(
        held.forked_from_id == conversation_id, sa.or_(held.inherits == 1, held.retained > 0)
    )
    versions = [*(await connection.execute(forks)).scalars(), *(point.version for point in points)]
    upto = max((ALL_VERSIONS if version is None else version for version in versions), default=0)
    return Needed(upto=upto, whole=0, content=0)


WHAT: Final = "random trees of forks, rewinds, deletions and redactions: each reads what it would as a copy"
IN_STEPS: Final = "the same, where every rewind and deletion is marked, and carried out in steps, some at a time"
CONTROL: Final = "the same, where what is kept follows from the parent's own forks alone"
TABLE: Final = (
    Experiment(WHAT, grow_all, "trees", {kind: whole for kind, (whole, _) in TREES.items()}),
    Experiment(
        IN_STEPS, partial(grow_all, steps=True), "trees", {kind: whole // 4 for kind, (whole, _) in TREES.items()}
    ),
    Experiment(CONTROL, grow_wrong, "trees", on=("sqlite",), control=True),
)
