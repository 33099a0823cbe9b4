"""What a tool returns is kept, whatever it is: through every adapter and store, as the framework's own backend does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kept_items import ADAPTERS, differences, refusing
from tests.support.values.items import VALUES


@pytest.mark.slow
@pytest.mark.parametrize("framework", ADAPTERS)
async def test_each_kind_comes_back_as_the_framework_itself_gives_it(
    framework: str, tmp_path: Path, store_url: str
) -> None:
    package, _ = ADAPTERS[framework]
    pytest.importorskip(package, reason=f"needs {package}: install the group adapters")

    assert await differences(framework, tmp_path, store_url) == []


async def test_differences_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the text in the envelope, the odd ones are refused."""
    pytest.importorskip("agents", reason="needs openai-agents: install the group adapters")
    monkeypatch.setattr("letopis.adapters.formats._native.seal", refusing)

    found = await differences("openai_agents", tmp_path, f"sqlite:///{tmp_path / 'store.db'}")

    assert len(found) == sum(kind.odd for kind in VALUES)
