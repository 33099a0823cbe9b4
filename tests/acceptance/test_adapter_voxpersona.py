"""The guide for the seed's bot is right: its code runs in the bot's place, and its commands import its folders."""

import asyncio
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from letopis.adapters.voxpersona.__main__ import command
from tests.acceptance.test_howto_adapters import names_of
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "howto" / "voxpersona.md").read_text(encoding="utf-8")
CHAT = "0" * 36


@pytest.fixture
def bot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = ModuleType("config")
    config.CONVERSATIONS_DIR = "conversations"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "config", config)
    folder = tmp_path / "conversations" / "user_4711"
    folder.mkdir(parents=True)
    about = {"conversation_id": CHAT, "user_id": 4711, "username": "ada", "title": "Чай", "chat_number": 3}
    about |= {"created_at": "2025-11-01T09:00:00", "is_active": True, "message_count": 1}
    said = {"timestamp": "2025-11-01T10:00:00", "message_id": 7, "type": "user_question", "text": "Что такое чай?"}
    index = {"user_id": 4711, "username": "ada", "last_active_conversation_id": CHAT, "next_chat_number": 4}
    (folder / f"{CHAT}.json").write_text(json.dumps({"metadata": about, "messages": [said]}), encoding="utf-8")
    (folder / "index.json").write_text(json.dumps({**index, "conversations": [about]}), encoding="utf-8")
    return folder.parent


def test_the_bot_goes_on_with_its_imported_chats(bot: Path) -> None:
    page = PAGE.replace("\\\n", "")
    lines = re.findall(r"^python -m letopis\.adapters\.voxpersona (.*)$", page, re.MULTILINE)
    tried, done = (CliRunner().invoke(command, line.partition("--store")[0].split()) for line in lines)
    assert (tried.exit_code, done.exit_code) == (0, 0), (tried.output, done.output)
    assert "1 messages can be imported" in tried.output
    assert "1 messages imported, 0 already there" in done.output

    manager = names_of("voxpersona.md")["conversation_manager"]

    async def handler() -> str | None:
        """As in the bot: synchronous calls between asynchronous ones."""
        active: str = manager.get_active_conversation_id(4711)
        answer = {"timestamp": "2025-11-01T10:00:05", "message_id": 8, "type": "bot_answer", "text": "Лист."}
        assert await asyncio.to_thread(manager.add_message, 4711, active, {**answer, "tokens": 11})
        return active

    assert asyncio.run(handler()) == CHAT
    assert [one.text for one in manager.get_messages(4711, CHAT)] == ["Что такое чай?", "Лист."]
    assert manager.list_conversations(4711)[0].chat_number == 3
    assert manager.history.search("чай", owner=4711)
    # The way back: the bot's own code would read this.
    written = json.loads((bot / "user_4711" / f"{CHAT}.json").read_text(encoding="utf-8"))
    assert [one["text"] for one in written["messages"]] == ["Что такое чай?", "Лист."]
    manager.close()
