"""The saver passes LangGraph's own suite, extended capabilities included, on three stores."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from letopis.outbox import History

WHY = "pip install --group adapters"
conformance = pytest.importorskip("langgraph.checkpoint.conformance", reason=f"needs langgraph: {WHY}")

from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES  # noqa: E402

from letopis.adapters.langgraph import LetopisSaver  # noqa: E402

TESTS = 81
"""What version 0.0.2 of the suite holds: one that is skipped is noticed."""


@pytest.mark.parametrize("relay", [True, False], ids=["delivering", "pending"])
async def test_the_whole_suite_passes(store_url: str, tmp_path: Path, relay: bool) -> None:
    async with History(tmp_path / "bot.outbox.db", store=store_url, relay=relay) as history:

        @conformance.checkpointer_test(name="LetopisSaver")
        async def saver() -> AsyncIterator[LetopisSaver]:
            yield LetopisSaver(history)

        report = await conformance.validate(saver)
    failures = [failure for result in report.results.values() for failure in result.failures]
    assert failures == []
    assert set(report.results) == {one.value for one in ALL_CAPABILITIES}
    assert sum(result.tests_passed for result in report.results.values()) >= TESTS
