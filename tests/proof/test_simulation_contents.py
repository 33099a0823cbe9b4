"""Random changes of conversations read as a plain model says and leave no erased text in a row."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letopis.outbox import History, Receipt
from tests.conformance.talk import deliver
from tests.proof.simulation.contents import Erased
from tests.support.content_deeds import ContentKeeper
from tests.support.defects import (
    DELETION_KEEPS,
    FORK_RUNS_ON,
    REDACTED_LATER,
    REDACTION_LOST,
    RESET_KEEPS,
    planted,
)
from tests.support.path_deeds import Broken

CHANGES = 60


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db", store=tmp_path / "history.db", relay=False) as history:
        yield history


async def change(history: History, folder: Path, *, seed: int) -> set[str]:
    """Change contents, deliver now and then, and look at the rows; return the verbs that were done."""
    erased, receipts = Erased(folder / "bot.outbox.db", folder / "history.db"), list[Receipt]()
    chance = random.Random(seed)
    keeper = ContentKeeper(history, "content", chance=chance, keep=receipts.append, gone=erased.add)
    done = set[str]()
    for _ in range(CHANGES):
        done.add(await keeper.change())
        if chance.random() < 0.4:
            await deliver(history)
            erased.check({receipt.conversation_id: receipt.sequence for receipt in receipts}, drained=False)
    assert erased.all
    return done


async def test_random_changes_are_read_as_a_plain_model_says_and_leave_no_row(history: History, tmp_path: Path) -> None:
    done = await change(history, tmp_path, seed=1)

    assert done - {""} == {"say", "fork", "redact", "reset", "delete"}


@pytest.mark.parametrize("defect", [REDACTION_LOST, REDACTED_LATER, RESET_KEEPS, DELETION_KEEPS, FORK_RUNS_ON])
async def test_a_defect_is_noticed(history: History, tmp_path: Path, defect: str) -> None:
    with planted(defect), pytest.raises(Broken):
        await change(history, tmp_path, seed=1)
