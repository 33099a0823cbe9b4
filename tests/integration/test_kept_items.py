"""What a tool returns is kept, whatever it is: through every adapter and store, as the framework's own backend does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from letopis.outbox import History
from tests.support.kept_items import ADAPTERS, kinds_of, tried

UNFIT = {"depth-300", "depth-900"}
"""What a framework's own serializer may refuse, before any backend sees it."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("framework", ADAPTERS)
async def test_each_kind_comes_back_as_the_framework_itself_gives_it(
    framework: str, tmp_path: Path, store_url: str
) -> None:
    package, adapter = ADAPTERS[framework]
    pytest.importorskip(package, reason=f"needs {package}: install the group adapters")
    subject = adapter(tmp_path)
    subject.url = store_url
    theirs = await tried(framework, subject.own)

    async with History.open(tmp_path / "a.outbox.db", store=store_url, own_thread=True) as history:
        written = await tried(framework, lambda kind: subject.write(history, kind))
        assert await history.drained(timeout=120)
    async with History.open(tmp_path / "b.outbox.db", store=store_url, relay=False, own_thread=True) as history:
        found = await tried(framework, lambda kind: subject.read(history, kind))

    if hasattr(subject, "close"):
        await asyncio.to_thread(subject.close)
    refused = {name for name, outcome in written.items() if outcome.startswith("raises")}
    assert refused <= UNFIT & {name for name, outcome in theirs.items() if outcome.startswith("raises")}, written
    for kind in kinds_of(framework):
        if not theirs[kind.name].startswith("raises"):
            assert found[kind.name] == theirs[kind.name], kind.name
