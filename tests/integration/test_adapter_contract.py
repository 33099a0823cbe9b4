"""What every adapter promises, whatever the framework: nothing is lost, mixed up or cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from letopis import History, InvalidInput
from tests.support.adapters import ADAPTERS, Subject, differences, refusing
from tests.support.values.items import VALUES

TEXT, OBJECT = (kind for kind in VALUES if kind.name in ("text", "key-order"))
BLOCKING = {"haystack"}
"""It opens a blocking history of its own, and its own tests say what it wants."""
AT_ONCE = ["openai_agents", "agent_framework", "langchain", "llama_index", "pydantic_ai"]
"""Those that keep an item with one call; the others make or read a session first."""


@pytest.fixture
def subject(framework: str, tmp_path: Path) -> Subject:
    package, made = ADAPTERS[framework]
    pytest.importorskip(package, reason=f"needs {package}: install the group adapters")
    found = made(tmp_path)
    found.url = f"sqlite:///{tmp_path / 'store.db'}"
    return found


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db", relay=False, own_thread=True, read_timeout=60) as history:
        yield history


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("subject")
@pytest.mark.parametrize("framework", ADAPTERS)
async def test_each_kind_comes_back_as_the_framework_itself_gives_it(
    framework: str, tmp_path: Path, store_url: str
) -> None:
    assert await differences(framework, tmp_path, store_url) == []


@pytest.mark.parametrize("framework", ["openai_agents"])
async def test_differences_are_seen(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the text in the envelope, the odd ones are refused."""
    monkeypatch.setattr("letopis.adapters.formats._native.seal", refusing)
    found = await differences("openai_agents", tmp_path, subject.url)
    assert len(found) == sum(kind.odd for kind in VALUES)


@pytest.mark.parametrize("framework", ADAPTERS)
async def test_conversations_are_kept_apart(subject: Subject, served: History) -> None:
    wanted = [await subject.own(kind) for kind in (TEXT, OBJECT)]
    for kind in (TEXT, OBJECT):
        await subject.write(served, kind)
    assert [await subject.read(served, kind) for kind in (TEXT, OBJECT)] == wanted
    await subject.close()


@pytest.mark.parametrize("framework", [name for name in ADAPTERS if name not in BLOCKING])
def test_what_is_no_history_is_refused(subject: Subject) -> None:
    wrong: Any = "bot.outbox.db"
    with pytest.raises(InvalidInput, match="history"):
        subject.ours(wrong, "chat-1")


@pytest.mark.parametrize("framework", AT_ONCE)
async def test_a_cancelled_caller_does_not_interrupt_what_is_kept(subject: Subject, served: History) -> None:
    writing = asyncio.ensure_future(subject.write(served, TEXT))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await subject.read(served, TEXT) == await subject.own(TEXT)
