"""The guide to Microsoft Agent Framework is right: its code runs through the framework's own runner."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

pytest.importorskip("agent_framework", reason="needs agent-framework-core: pip install 'letopis[agent-framework]'")

from tests.acceptance.test_howto_adapters import code_of, names_of, nothing
from tests.support.bots.agent_framework import FakeModel

PAGE = "agent-framework.md"


async def test_agent_framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = names_of(PAGE)
    model, history = FakeModel(nothing), names["history"]
    agent = names["agent_of"](model)

    assert await names["answer"](agent, "chat-1", "What is tea?") == "answer to What is tea?"
    await names["answer"](agent, "chat-1", "And coffee?")

    assert [one.text for one in await history.messages("chat-1")] == [
        "What is tea?",
        "answer to What is tea?",
        "And coffee?",
        "answer to And coffee?",
    ]
    assert [one.text for one in model.asked[1]][-3:] == ["What is tea?", "answer to What is tea?", "And coffee?"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        exec(compile(code_of(PAGE, 1), PAGE, "exec"), names)  # noqa: S102 - our own page
    assert await names["answer_with_state"](agent, "chat-1", "And milk?") == "answer to And milk?"
    session = await names["sessions"].get("chat-1")
    assert session.session_id == "chat-1" and len(await history.messages("chat-1")) == 6

    exec(compile(code_of(PAGE, 2), PAGE, "exec"), names)  # noqa: S102 - our own page
    assert await names["storage"].get_latest(workflow_name="flow") is None
    await history.close()
