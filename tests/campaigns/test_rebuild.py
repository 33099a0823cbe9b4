"""The three ways to read a conversation agree, on a sample of the corpus and some random operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.campaigns.operations import Operations
from tests.campaigns.rebuild import Campaign
from tests.conftest import STORES


@pytest.mark.parametrize("kind", STORES)
async def test_fold_inline_and_rebuilt_are_the_same(kind: str, new_store_url: Callable[[str], str]) -> None:
    tally = await Campaign(new_store_url(kind), sample=0.001, operations=1_500, seed=3).run()

    assert tally.problems == []
    assert tally.figures["damaged"] == 12, "the control: what was damaged is found"
    assert tally.figures["damage that a reader sees"] > 0
    assert tally.count > 30
    assert tally.figures["events"] > 1_500


def test_the_seed_decides_the_operations() -> None:
    def made(seed: int) -> list[object]:
        operations = Operations(seed)
        for _ in range(300):
            operations.make()
        return [
            (name, [replace(event, salt=None, digest=b"") for event in lane])
            for outbox in operations.outboxes
            for name, lane in outbox.lanes.items()
        ]

    assert made(5) == made(5)
    assert made(5) != made(6)
