"""Histories on two outboxes and a plain model of them stay equal, whatever is done, delivered, cut off and moved."""

import pytest

from tests.campaigns.model import Campaign
from tests.support.defects import (
    ASIDE_COUNTED,
    IDS_KEPT,
    LATE_TAKEN,
    REDACTION_LOST,
    RESET_KEEPS,
    REWIND_SHORT,
    planted,
)

SEEDS = {"sqlite": range(6), "postgresql": range(2), "mariadb": range(2)}
SEEDS_OF_A_CONTROL = range(20)  # one after another, to the first that finds it


@pytest.mark.parametrize("kind", SEEDS)
async def test_random_programs_do_what_a_plain_model_does(kind: str, request: pytest.FixtureRequest) -> None:
    if kind != "sqlite":
        request.getfixturevalue(f"{kind}_server")
    campaign = Campaign(kind)

    await campaign.run(SEEDS[kind])

    assert not campaign.failures, "\n".join(map(str, campaign.failures))
    assert campaign.done == len(SEEDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("defect", [ASIDE_COUNTED, LATE_TAKEN, IDS_KEPT, REDACTION_LOST, RESET_KEEPS, REWIND_SHORT])
async def test_the_campaign_finds_a_defect(defect: str) -> None:
    campaign = Campaign("sqlite", enough=1)

    with planted(defect):
        await campaign.run(SEEDS_OF_A_CONTROL)

    assert campaign.failures
