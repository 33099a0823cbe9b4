"""The campaign fires its faults, and notices a store that was damaged behind its back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import dataset
from tests.campaigns.chitchat import SPARE, Campaign, differences, gather, open_target, schedule
from tests.campaigns.processes import Place

LINES = [{"conversation_id": "a", "role": "user", "content": f"words {one}", "id": f"{one}"} for one in range(4)]


@pytest.mark.slow
def test_a_campaign_fires_its_faults_and_fails_for_a_damaged_store(tmp_path: Path) -> None:
    """That an undamaged one passes, and catches its own controls, is what the short form in `.ci/run` shows."""
    pytest.importorskip("chitchat_dataset", reason="needs chitchat-dataset: the group pages")
    source = tmp_path / "source.jsonl"
    messages = dataset.write(source, sample=0.001, seed=1)
    with open_target("sqlite", tmp_path) as target:
        place = Place(folder=tmp_path, outbox=tmp_path / "bot.outbox.db", store=target.url)
        tally, _ = Campaign(target, place, source, seed=1).run({"kill": 2, "cut": 2}, damaged="swap")

    assert (tally.figures["kill"], tally.figures["cut"]) == (2, 2)
    assert (tally.figures["conversations"], tally.figures["messages"]) == (7, messages)
    assert list(dict.fromkeys(problem.split(":")[0] for problem in tally.problems)) == [
        "the export differs from the import",
        "the logs break their invariants",
    ]


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


@pytest.mark.parametrize(("lines", "waves"), [(258_145, 1), (2_800, 21 + SPARE), (199, 21 + SPARE)])
def test_the_schedule_fires_what_was_asked_for_and_a_small_input_comes_in_waves(
    lines: int, waves: int, tmp_path: Path
) -> None:
    source = tmp_path / "lines"
    source.write_bytes(b"\n" * lines)
    faults = {"kill": 20, "cut": 20, "outage": 1}
    planned = schedule(source, faults, 7)

    assert planned == schedule(source, faults, 7) != schedule(source, faults, 8)
    kinds = [fault.kind for _, some in planned for fault in some]
    assert {kind: kinds.count(kind) for kind in faults} == faults
    assert (len(planned), planned[-1][0]) == (waves, lines)
    assert [upto for upto, _ in planned] == sorted(upto for upto, _ in planned)
    assert schedule(source, {}, 1) == [(lines, [])]
