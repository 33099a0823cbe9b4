"""What the proof of corruption does to a file is what it says: one bit, one page, an end, and never nothing."""

from __future__ import annotations

import os
from random import Random

import pytest

from tests.proof.corruption.files import DAMAGES, PAGE, flipped


@pytest.mark.parametrize("seed", range(20))
def test_a_flip_changes_one_bit(seed: int) -> None:
    data = os.urandom(3 * PAGE)
    damaged = flipped(data, Random(seed))

    assert sum((one ^ two).bit_count() for one, two in zip(data, damaged, strict=True)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_other_damages_change_whole_pages(seed: int) -> None:
    data = os.urandom(6 * PAGE)
    changed = {
        what: [
            place
            for place in range(6)
            if damage(data, Random(seed))[place * PAGE : (place + 1) * PAGE] != data[place * PAGE : (place + 1) * PAGE]
        ]
        for what, damage in DAMAGES.items()
    }

    assert len(changed["page zeroed"]) == 1
    assert len(changed["two pages swapped"]) == 2
    assert changed["end cut off"][-1] == 5
