"""The guide to Google ADK is right: its code runs in ADK's runner."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis.store import Message
from tests.acceptance.test_howto_adapters import code_of, names_of, nothing

pytest.importorskip("google.adk", reason="needs google-adk: pip install 'letopis[google-adk]'")

PAGE = "google-adk.md"


async def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.bots.google_adk import FakeModel

    monkeypatch.chdir(tmp_path)
    names = names_of(PAGE)
    history, model = names["history"], FakeModel(model="fake", thinks=nothing)
    # A slow machine takes longer to create a history store than a read waits.
    await history.append("warm-up", Message.user("hello"))
    assert await history.drained(timeout=60)

    assert await names["answer"](model, "42", "chat-1", "What is tea?") == "answer to What is tea?"
    await names["answer"](model, "42", "chat-1", "And coffee?")

    assert [one.text for one in await history.messages("adk/shop/42/chat-1")] == [
        "What is tea?",
        "answer to What is tea?",
        "And coffee?",
        "answer to And coffee?",
    ]
    exec(compile(code_of(PAGE, 2), PAGE, "exec"), names)  # noqa: S102 - our own page
    assert await names["newest_sessions"]("42") == (["chat-1"], None)
    exec(compile(code_of(PAGE, 1), PAGE, "exec"), names)  # noqa: S102 - our own page
    await names["by_chat"].create_session(
        app_name="shop", user_id="42", session_id="chat-2", state={"user:name": "Ada"}
    )
    assert [chat.conversation_id for chat in await history.conversations(owner="shop:42")] == ["chat-2"]
    space = history.records(space="google_adk.user/shop/42")
    assert len(await space.list()) == 1
    await space.erase()
    assert await names["service"].get_user_state(app_name="shop", user_id="42") == {}
    await history.close()
