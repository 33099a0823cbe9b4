"""Check that whatever Letopis writes is for its owner alone, under any umask."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from letopis.outbox import History
from letopis.store import Message
from tests.proof.inputs.commands import here

UMASKS: Final = (0o000, 0o022, 0o077)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the mask of this process for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def looked_at(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files of a folder, and those that others may read or write."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    loose = [
        f"{path.name} has mode {stat.S_IMODE(path.stat().st_mode):04o}"
        for path in files
        if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    return [path.name for path in files], loose


def written(folder: Path, mask: int) -> tuple[set[str], list[str]]:
    """Write all that Letopis writes, under a mask; return the names of the files, and what others may read."""
    place = folder / f"mask-{mask:03o}"
    place.mkdir(mode=0o700)
    before = Path.cwd()
    os.chdir(place)
    try:
        with umask(mask):
            names, loose = asyncio.run(_said(place))
            for words in (
                ("init", "--config", "letopis.toml"),
                ("init",),
                ("history", "export", "jsonl", "export.jsonl"),
                ("outbox", "export", "--file", "pending.jsonl"),
                ("outbox", "salvage", "salvaged.db"),
            ):
                here(words)
        more, also = looked_at(place)
        return {*names, *more}, [f"umask {mask:03o}: {one}" for one in dict.fromkeys([*loose, *also])]
    finally:
        os.chdir(before)


async def _said(place: Path) -> tuple[set[str], list[str]]:
    async with History(place / "bot.outbox.db", watch=False) as history:
        for number in range(3):
            await history.append("chat", Message.user(f"words {number}"))
        await history.drained(timeout=20)
        async with history.reply("chat") as reply:
            await reply.add("words")
        # While it is open, with the files of the log beside it.
        names, loose = looked_at(place)
    async with History(place / "bot.outbox.db", relay=False, watch=False) as history:
        await history.append("chat", Message.user("pending"))
    return set(names), loose


def unguarded(folder: Path) -> list[str]:
    """The control: a file that is just opened, under a mask that takes nothing away."""
    place = folder / "unguarded"
    place.mkdir()
    with umask(0o000):
        (place / "plain.db").write_bytes(b"")
    return looked_at(place)[1]
