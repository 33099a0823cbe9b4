"""Unchecked: the control: what is looked at before an append is not looked at, so that the store has to find it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from letopis.outbox import History
from letopis.store import ConversationRenamed, ConversationStore, codec
from tests.proof.inputs.running import AT_ONCE, blocked


@contextmanager
def unchecked() -> Iterator[None]:
    """Take the validation of text away."""
    before = codec._check, codec._check_object

    def nothing(value: object, field: str, depth: int) -> None:
        """Look at nothing."""

    codec._check = codec._check_object = nothing
    try:
        yield
    finally:
        codec._check, codec._check_object = before


async def blocked_at_delivery(url: str, folder: Path) -> list[str]:
    """Give titles with NUL in them, deliver them, and return what is blocked."""
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History.open(folder / "unchecked.outbox.db", store=store, policy=AT_ONCE) as history,
    ):
        with unchecked():
            for number in range(5):
                await history.append(f"nul-{number}", ConversationRenamed(title=f"a\0{number}"))
        await history.drained(timeout=10)
        return await history.outbox.read(blocked)
