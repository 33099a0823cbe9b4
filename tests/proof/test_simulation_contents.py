"""Random changes of conversations read as a plain model says and leave no erased text in a row."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letopis.outbox import History, Receipt
from tests.conformance.talk import deliver
from tests.proof.simulation.contents import Erased
from tests.support.content_deeds import ContentKeeper

CHANGES = 60


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db", store=tmp_path / "history.db", relay=False) as history:
        yield history


async def test_random_changes_are_read_as_a_plain_model_says_and_leave_no_row(history: History, tmp_path: Path) -> None:
    erased, receipts = Erased(tmp_path / "bot.outbox.db", tmp_path / "history.db"), list[Receipt]()
    chance = random.Random(1)
    keeper = ContentKeeper(history, "content", chance=chance, keep=receipts.append, gone=erased.add)
    done = set[str]()
    for _ in range(CHANGES):
        done.add(await keeper.change())
        if chance.random() < 0.4:
            await deliver(history)
            erased.check({receipt.conversation_id: receipt.sequence for receipt in receipts}, drained=False)

    assert erased.all
    assert done - {""} == {"say", "fork", "redact", "reset", "delete"}
