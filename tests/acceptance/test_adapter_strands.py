"""The guide to Strands is right: its code runs through the framework's own agents."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("strands", reason="needs strands-agents: pip install 'letopis[strands]'")

from strands import session

from tests.acceptance.test_howto_adapters import code_of, names_of, nothing
from tests.support.bots.strands import FakeModel

PAGE = "strands.md"


def test_strands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = names_of(PAGE)
    model, history = FakeModel(nothing), names["history"]

    assert names["answer"](model, "chat-1", "What is tea?").strip() == "answer to What is tea?"
    names["answer"](model, "chat-1", "And coffee?")

    said = ["What is tea?", "answer to What is tea?", "And coffee?", "answer to And coffee?"]
    assert [one.text for one in asyncio.run(history.messages("chat-1"))] == said
    assert [one["content"][0]["text"] for one in model.asked[1]] == said[:3]

    if hasattr(session, "SnapshotSessionManager"):
        exec(compile(code_of(PAGE, 1), PAGE, "exec"), names)  # noqa: S102 - our own page
        names["answer_from_snapshot"](model, "chat-2", "What is tea?")
        names["answer_from_snapshot"](model, "chat-2", "And coffee?")
        assert [one["content"][0]["text"] for one in model.asked[3]] == said[:3]
    asyncio.run(history.close())
