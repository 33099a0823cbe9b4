"""Statistics count what is pending, and heed what pending events erase."""

from __future__ import annotations

from pathlib import Path

from letopis.outbox import History
from letopis.store import Message
from tests.support.relays import deliver_all


async def test_a_pending_redaction_erases_in_its_own_conversation_only(tmp_path: Path) -> None:
    async with History(tmp_path / "b.outbox.db", store=tmp_path / "h.db", relay=False, watch=False) as bot:
        for name in ("a", "b"):
            await bot.append(name, Message(role="user", content="hi", id="m", metadata={"k": "v"}))
        await deliver_all(bot)
        await bot.chat("a").redact("m")
        await bot.append("b", Message(role="user", content="hi", id="n", metadata={"k": "w"}))

        found = await bot.statistics(by="k")
        assert {value: figures.messages for value, figures in found.by.items()} == {None: 1, "v": 1, "w": 1}


async def test_the_last_of_several_pending_resets_counts(tmp_path: Path) -> None:
    async with History(tmp_path / "b.outbox.db", store=tmp_path / "h.db", relay=False, watch=False) as bot:
        for number in range(2):
            await bot.append("a", Message(role="user", content="hi", id=f"m{number}", metadata={"k": "v"}))
            await deliver_all(bot)
        for number in range(2, 4):
            await bot.append("a", Message(role="user", content="hi", id=f"m{number}", metadata={"k": "v"}))
            await bot.chat("a").reset()
        await bot.append("a", Message(role="user", content="hi", id="m4", metadata={"k": "w"}))

        found = await bot.statistics(by="k")
        assert {value: figures.messages for value, figures in found.by.items()} == {None: 4, "w": 1}
