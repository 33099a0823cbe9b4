"""What every adapter promises, whatever the framework: nothing is lost, mixed up or cut off."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from letopis import History, InvalidInput
from tests.support.adapters import ADAPTERS, Subject, differences, refusing
from tests.support.values.items import VALUES

TEXT = VALUES[0]
AT_ONCE = ["openai_agents", "agent_framework", "langchain", "llama_index"]
"""Those that keep an item with one call; the others make or read a session first."""
PAIRS = [("openai_agents", "sqlite"), ("openai_agents", "mariadb"), *((name, "postgresql") for name in ADAPTERS)]
"""Adapters share the envelope that stores are to keep: one is tried on each, and all on the strictest about text."""


@pytest.fixture
def subject(framework: str, tmp_path: Path) -> Subject:
    package, made = ADAPTERS[framework]
    pytest.importorskip(package, reason=f"needs {package}: install the group adapters")
    return made(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("subject")
@pytest.mark.parametrize(("framework", "store_url"), PAIRS, indirect=["store_url"])
async def test_each_kind_comes_back_as_the_framework_itself_gives_it(
    framework: str, tmp_path: Path, store_url: str
) -> None:
    assert await differences(framework, tmp_path, store_url) == []


@pytest.mark.usefixtures("subject")
@pytest.mark.parametrize("framework", ["openai_agents"])
async def test_differences_are_seen(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the text in the envelope, the odd ones are refused."""
    monkeypatch.setattr("letopis.adapters.formats._native.seal", refusing)
    found = await differences(framework, tmp_path, f"sqlite:///{tmp_path / 'store.db'}")
    assert len(found) == sum(kind.odd for kind in VALUES)


# Haystack's opens a blocking history of its own, and its own tests say what it wants.
@pytest.mark.parametrize("framework", [name for name in ADAPTERS if name != "haystack"])
def test_what_is_no_history_is_refused(subject: Subject) -> None:
    wrong: Any = "bot.outbox.db"
    with pytest.raises(InvalidInput, match="history"):
        subject.ours(wrong, "chat-1")


@pytest.mark.parametrize("framework", AT_ONCE)
async def test_a_cancelled_caller_does_not_interrupt_what_is_kept(subject: Subject, history: History) -> None:
    writing = asyncio.ensure_future(subject.write(history, TEXT))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await subject.read(history, TEXT) == await subject.own(TEXT)
