"""The guide to Pydantic AI is right: its code runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis.store import Message
from tests.acceptance.test_howto_adapters import code_of, names_of, nothing

pytest.importorskip("pydantic_ai", reason="needs pydantic-ai-slim: pip install 'letopis[pydantic-ai]'")

PAGE = "pydantic-ai.md"


async def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.bots.pydantic_ai import fake_model

    monkeypatch.chdir(tmp_path)
    names = names_of(PAGE)
    history, model = names["history"], fake_model(nothing)
    # A slow machine takes longer to create a history store than a read waits.
    await history.append("warm-up", Message.user("hello"))
    assert await history.drained(timeout=60)

    assert await names["answer"](model, "chat-1", "42", "What is tea?") == "answer to What is tea?"
    await names["answer"](model, "chat-1", "42", "And coffee?")

    assert [one.text for one in await history.messages("chat-1")] == [
        "What is tea?",
        "answer to What is tea?",
        "And coffee?",
        "answer to And coffee?",
    ]
    assert [chat.conversation_id for chat in await history.conversations(owner="42")] == ["chat-1"]
    exec(compile(code_of(PAGE, 1), PAGE, "exec"), names)  # noqa: S102 - our own page
    branched = await names["regenerate"]("chat-1", 3)
    assert [message.parts[0].content for message in branched.messages][-1] == "And coffee?"
    assert len(await history.messages("chat-1")) == 3
    exec(compile(code_of(PAGE, 2), PAGE, "exec"), names)  # noqa: S102 - our own page
    assert await names["careful"].load("chat-1") == branched
    await history.close()
