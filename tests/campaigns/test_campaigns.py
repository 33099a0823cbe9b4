"""The campaigns hold in small, on real servers, and what they judge by sees what it has to."""

import logging
import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import faults
from tests.campaigns.chitchat import FAULTS, SPARE, differences, gather, schedule
from tests.campaigns.operations import Operations
from tests.campaigns.outage import HERD, HERDED, draw, peak
from tests.proof.options import Options
from tests.support.required import missing

LINES = [{"conversation_id": "a", "role": "user", "content": f"words {one}", "id": f"{one}"} for one in range(4)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["faults", "outage", "rebuild"])
def test_a_campaign_holds_in_small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`chitchat` is a part of the short proof."""
    monkeypatch.setattr(logging, "disable", lambda: None)
    if name == "rebuild":
        pytest.importorskip("chitchat_dataset", reason="needs chitchat-dataset: the group pages")

    rows = list(import_module(f"tests.campaigns.{name}").prove(Options(short=True, seed=3, folder=tmp_path)))

    assert not [row for row in rows if not row.ok(short=True)]
    for row in rows:
        if row.missing:
            missing(row.where, row.missing)


@pytest.mark.parametrize(
    ("exported", "how"),
    [
        (LINES[:-1], "1 lacking, 0 too many"),
        ([], "4 lacking, 0 too many"),
        ([*LINES, LINES[3]], "0 lacking, 1 too many"),
        ([*LINES, {**LINES[3], "id": "5"}], "0 lacking, 1 too many"),
        ([LINES[1], LINES[0], *LINES[2:]], "out of order"),
        ([*LINES[:3], {**LINES[3], "content": "other words"}], "1 lacking, 1 too many"),
        ([*LINES[:3], {**LINES[3], "metadata": {"a": 1}}], "1 lacking, 1 too many"),
    ],
)
def test_each_difference_is_told(exported: list[dict[str, Any]], how: str) -> None:
    (problem,) = differences(gather(LINES), gather(exported))

    assert problem == f"'a': 4 in, {len(exported)} out: {how}"


def test_a_moment_counts_and_not_how_it_is_written_nor_the_order_between_conversations() -> None:
    other = {**LINES[0], "conversation_id": "b", "occurred_at": "2018-05-02T19:38:15Z", "metadata": {}}
    same = {**LINES[0], "conversation_id": "b", "occurred_at": "2018-05-02T21:38:15.000000+02:00"}

    assert differences(gather([*LINES, other]), gather([same, *LINES])) == []
    assert differences(gather([other]), gather([{**other, "occurred_at": "2018-05-02T19:38:15.000001Z"}]))


@pytest.mark.parametrize("lines", [258_145, 199])
def test_the_schedule_fires_what_was_asked_for_and_imports_everything(lines: int, tmp_path: Path) -> None:
    source = tmp_path / "lines"
    source.write_bytes(b"\n" * lines)
    planned = schedule(source, FAULTS, 7)

    assert planned == schedule(source, FAULTS, 7) != schedule(source, FAULTS, 8)
    kinds = [fault.kind for _, some in planned for fault in some]
    assert {kind: kinds.count(kind) for kind in FAULTS} == FAULTS
    assert (len(planned), planned[-1][0]) == (21 + SPARE, lines)
    assert [upto for upto, _ in planned] == sorted(upto for upto, _ in planned)


def test_a_row_of_the_fault_table_that_comes_out_otherwise_is_told() -> None:
    reaction = "sent the batch again; no attempt charged; all delivered"
    right = faults.Outcome(name="x", kind="sqlite", expected="conflict", found="conflict", code="c", reaction=reaction)
    others: tuple[dict[str, str], ...] = (
        {"found": "poison"},
        {"expected_code": "d"},
        {"reaction": "sent the batch again; 1 attempts charged; all delivered"},
        {"reaction": "breaker opened; no attempt charged; all delivered"},
        {"reaction": f"{reaction}; blocked its conversation"},
    )

    assert right.ok and replace(right, expected_code="c").ok
    assert not any(replace(right, **other).ok for other in others)
    assert "NOT conflict" in str(replace(right, found="poison"))


def test_relays_that_ask_by_themselves_stay_below_the_bound_and_whole_pools_do_not() -> None:
    chance = random.Random(1)

    assert peak([]) == 0 and peak([0.0, 0.5, 0.999, 1.0, 1.4]) == 4
    for outage in (20.0, 180.0):
        assert 4 <= max(draw(chance, outage=outage) for _ in range(200)) <= HERD * 3 // 4
    assert min(draw(chance, outage=60.0, attempts=HERDED) for _ in range(100)) > HERD


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
