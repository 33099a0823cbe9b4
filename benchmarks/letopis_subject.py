"""Drive Letopis through its public API alone, and show that nothing was switched off."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path

from benchmarks.subjects import Subject
from letopis.outbox import History
from letopis.store import InvalidInput, Message
from letopis.store.model.codec import digest_of


class Letopis(Subject):
    """A history whose relay is elsewhere: what is measured is the append, and the read over what is pending."""

    title = "Letopis"
    key = "letopis"

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._objections: tuple[str, ...] = ()

    async def open(self, folder: Path) -> None:
        self.path = folder / "bot.outbox.db"
        self.history = await self._stack.enter_async_context(History(self.path, relay=False, watch=False))
        self._objections = await objections_to(self.history, self.path)

    async def say(self, chat: str, text: str) -> None:
        await self.history.append(chat, Message.user(text))

    async def last(self, chat: str, count: int) -> Sequence[str]:
        return [one.message.text for one in await self.history.messages(chat, last=count)]

    async def close(self) -> None:
        await self._stack.aclose()

    def objections(self) -> tuple[str, ...]:
        return self._objections


async def objections_to(history: History, path: Path) -> tuple[str, ...]:
    """Return what an append leaves out of what it promises: refusals, ids, digests; found out by trying."""
    found = []
    for what, text in (("NUL", "a\0b"), ("a lone surrogate", "a\ud800b")):
        try:
            await history.append("probe", Message.user(text))
        except InvalidInput:
            continue
        found.append(f"validation is switched off: {what} was taken")
    try:
        await history.append("probe", Message.user("x"), metadata={"nan": float("nan")})
    except InvalidInput:
        pass
    else:
        found.append("validation is switched off: NaN was taken")
    receipt = await history.append("probe", Message.user("kept"))
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT conversation_id, type, schema_version, data, metadata, salt, digest, sequence"
            " FROM letopis_outbox_log WHERE event_id = ?",
            (receipt.event_ids[-1].bytes,),
        ).fetchall()
    if len(rows) != 1:
        found.append("the event is not in the file under its id when append has returned")
    elif digest_of(*rows[0][:6]) != rows[0][6]:
        found.append("the digest is not that of the content")
    return tuple(found)
