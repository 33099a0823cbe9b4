"""The tutorials on agents are right: each of their programs and commands is run, and prints what they show."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.paths import ROOT

TUTORIALS = ROOT / "docs" / "tutorial"


@pytest.mark.parametrize(
    ("page", "needs"),
    [
        ("agent-openai-agents.md", "agents"),
        ("agent-langgraph.md", "langgraph.graph"),
        ("agent-llama-index.md", "llama_index.core"),
    ],
)
def test_it_shows_what_is_seen(page: str, needs: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(needs.partition(".")[0]) is None:
        pytest.skip("needs langgraph: pip install --group adapters")
    pytest.importorskip(needs, reason="needs langgraph: pip install --group adapters")

    steps = list(pages.follow(TUTORIALS / page, tmp_path))

    assert len(steps) >= 4
    assert [str(step) for step in steps if not step.holds] == []
