"""The guides to frameworks are right: their code runs through the framework's own runner, with a model of ours."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

HOWTO = ROOT / "docs" / "howto"
LINES = 20
"""How many lines a bot takes at most to get a history."""


def code_of(page: str, place: int = 0) -> str:
    """Return a block of code of a guide."""
    text = (HOWTO / page).read_text(encoding="utf-8")
    block: str = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[place]
    return block


def names_of(page: str) -> dict[str, Any]:
    """Run the first block of a guide, which is short, and return what it defines."""
    code = code_of(page)
    assert len([line for line in code.splitlines() if line.strip()]) < LINES
    names: dict[str, Any] = {}
    exec(compile(code, page, "exec"), names)  # noqa: S102 - our own page
    return names


async def nothing(_: str) -> None:
    """Think of nothing."""


async def test_openai_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("agents", reason="needs openai-agents: pip install 'letopis[openai-agents]'")
    from tests.support.bots.openai_agents import FakeModel

    monkeypatch.chdir(tmp_path)
    names = names_of("openai-agents.md")
    names["agent"].model = FakeModel(nothing)
    history = names["history"]

    assert await names["answer"]("chat-1", "42", "What is tea?") == "answer to What is tea?"
    await names["answer"]("chat-1", "42", "And coffee?")

    exec(compile(code_of("openai-agents.md", 1), "page", "exec"), names)  # noqa: S102 - our own page
    assert len(await names["session"].get_items()) == 4
    assert [chat.conversation_id for chat in await history.conversations(owner="42")] == ["chat-1"]
    await history.close()


async def test_langchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("langchain_core", reason="needs langchain-core: pip install 'letopis[langchain]'")
    from tests.support.bots.langchain import FakeModel

    monkeypatch.chdir(tmp_path)
    names = names_of("langchain.md")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        chain = names["chain_of"](FakeModel(thinks=nothing))
    asked = {"configurable": {"session_id": "chat-1"}}

    assert (await chain.ainvoke({"question": "What is tea?"}, asked)).content == "answer to What is tea?"
    await chain.ainvoke({"question": "And coffee?"}, asked)

    assert [message.text for message in await names["history"].messages("chat-1")] == [
        "What is tea?",
        "answer to What is tea?",
        "And coffee?",
        "answer to And coffee?",
    ]
    await names["history"].close()


async def test_llama_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_index.core", reason="needs llama-index-core: pip install 'letopis[llama-index]'")
    from tests.support.bots.llama_index import FakeModel

    monkeypatch.chdir(tmp_path)
    names = names_of("llama-index.md")

    assert await names["answer"](FakeModel(nothing), "chat-1", "What is tea?") == "answer to What is tea?"
    await names["answer"](FakeModel(nothing), "chat-1", "And coffee?")

    assert [message.content for message in await names["store"].get_messages("chat-1", limit=2)] == [
        "And coffee?",
        "answer to And coffee?",
    ]
    await names["history"].close()


def test_haystack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("haystack_experimental", reason="needs haystack-experimental, of the group adapters")
    from tests.support.bots.haystack import FakeModel

    monkeypatch.chdir(tmp_path)
    names = names_of("haystack.md")
    exec(compile(code_of("haystack.md", 1), "page", "exec"), names)  # noqa: S102 - our own page
    names["pipeline"] = names["pipeline_of"](FakeModel(lambda _: None))

    assert names["answer"](names["pipeline"], "chat-1", "What is tea?") == "answer to What is tea?"
    names["answer"](names["pipeline"], "chat-1", "And coffee?")

    assert [message.text for message in names["store"].retrieve_messages("chat-1", 1)] == [
        "And coffee?",
        "answer to And coffee?",
    ]
    names["store"].close()
