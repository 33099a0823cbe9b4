"""Large content goes with the last event that shows it, however many others are shown before that."""

from pathlib import Path

import pytest

from letopis import ConversationStore, History, Message
from letopis.store.model.large_content import LARGE_BYTES
from letopis.store.write import contents
from tests.support.sayings import drain


async def test_a_sweep_looks_at_every_event_that_shows_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_EVENTS_PER_READ", 2)
    often, once, last = ("a" * LARGE_BYTES * 2, "b" * LARGE_BYTES * 2, "c" * LARGE_BYTES * 2)
    async with (
        ConversationStore.open(tmp_path / "history.db") as store,
        History(tmp_path / "bot.outbox.db", store=store, relay=False, watch=False) as history,
    ):
        await history.append("c", *(Message.user(often, id=f"m{number}") for number in range(4)))
        await history.append("c", Message.user(once, id="once"), Message.user(last, id="last"))
        await drain(history)
        await history.chat("c").redact("once")
        await drain(history)
        page = await store.messages("c")
    assert page.complete
    assert [message.text for message in page] == [often] * 4 + ["", last]
