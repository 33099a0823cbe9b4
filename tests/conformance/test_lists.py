"""Lists of conversations with the last message of each, pending ones included, from each store."""

from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from letopis.outbox import History
from letopis.store import ConversationStore, Message, Text
from tests.support.relays import deliver_all


async def test_a_list_holds_the_last_message_of_each(
    store: ConversationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 300_000
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False) as history:

        async def last(**of: str) -> dict[str, tuple[str, bool] | None]:
            page = await history.conversations(**of, last_message=True)
            ends = {item.conversation_id: item.last_message for item in page}
            return {name: end and (end.text, end.redacted) for name, end in ends.items()}

        for name in ("plain", "undone", "edited", "gone", "large", "pending"):
            await history.append(name, Message.user(f"{name}?", id=f"{name}-1"), owner="42")
            await history.append(name, Message.assistant([Text(f"{name}!")], id=f"{name}-2"), owner="42")
        await history.append("large", Message.user(long), owner="42")
        await history.chat("undone").pop()
        await history.chat("edited").edit("edited-2", "better")
        await history.chat("gone").redact("gone-2")
        await history.start("42", conversation_id="empty")
        await history.chat("plain").fork("fork")
        await history.append("other", Message.user("of another"), owner="43")
        expected = {
            "plain": ("plain!", False),
            "undone": ("undone?", False),
            "edited": ("better", False),
            "gone": ("", True),
            "large": (long, False),
            "pending": ("pending!", False),
            "empty": None,
            "fork": ("plain!", False),
        }
        assert await last(owner="42") == expected, "all pending"
        await deliver_all(history)
        assert await last(owner="42") == expected, "all in the store"
        assert await last() == {**expected, "other": ("of another", False)}
        alone = AsyncMock(wraps=history._parts.reader.messages)
        monkeypatch.setattr(history._parts.reader, "messages", alone)
        assert await last(owner="42") == expected
        assert [call.args for call in alone.await_args_list] == [("fork",)], "the others by one select"
        await history.append("pending", Message.user("late"), owner="42")
        assert (await last(owner="42"))["pending"] == ("late", False)
        [first] = await history.conversations(owner="43")
        assert first.last_message is None, "it was not asked for"
