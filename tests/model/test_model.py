"""A history and a plain model of it stay equal, whatever is done, delivered, cut off and restarted in between."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from letopis.store import ConversationStore
from tests.model.machine import Machine

EXAMPLES = int(os.environ.get("LETOPIS_MODEL_EXAMPLES", "6"))
STEPS = int(os.environ.get("LETOPIS_MODEL_STEPS", "25"))


@pytest.mark.timeout(900)
def test_a_history_does_what_a_plain_model_does(store_url: str) -> None:
    async def create() -> None:
        async with ConversationStore.open(store_url, migrate=True):
            pass

    asyncio.run(create())
    machine = type("Run", (Machine,), {"store_url": store_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
