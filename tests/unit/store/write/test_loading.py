"""A rewind of more messages than one transaction changes counts them on either side of where it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from letopis.store import ConversationRewound, ConversationStore, Message
from letopis.store.testing.outbox import Outbox

LONG = 20


@pytest.mark.parametrize("left", [4, 15])
async def test_long_rewind_leaves_the_right_count(left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.store.write.loading.MAX_ROWS_PER_TRANSACTION", 2)
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("c", *(Message.user("words", id=f"m{number}") for number in range(1, LONG + 1)))
        await outbox.deliver(store)
        outbox.append("c", ConversationRewound(to_message_id=f"m{left}"))
        await outbox.deliver(store)
        found = await store.conversation("c")

        assert (await store.pending_tasks()).tasks == 1
    assert found is not None
    assert found.message_count == left
