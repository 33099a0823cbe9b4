"""Fill a disk to the last byte: what was acknowledged is kept, and everything continues once there is room."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History, Relay
from letopis.outbox.file.limits import reserve_path
from letopis.store import ConversationStore, Message
from letopis.store.errors import LetopisError, OutboxFull, OutboxUnavailable
from tests.campaigns.invariants import check
from tests.campaigns.states import Ack
from tests.proof.power.cuts import NotHere, run
from tests.support.child import call
from tests.support.daemons import letopis
from tests.support.fix_disk import fill
from tests.support.victim import HISTORY, OUTBOX

MEBIBYTES: Final = 16
TIMEOUT_SECONDS: Final = 60.0
COMMANDS: Final = (("status",), ("relay", "--once"), ("doctor",), ("outbox", "list"))
WORKED: Final = (0, 3)  # exit codes of a command that did its work: 3 is that there was nothing to show
BEFORE: Final = 40  # messages that are there before the disk is filled
GROWTH: Final = 400_000  # bytes by which the files may grow where there is a limit for them


@dataclass(slots=True)
class Filled:
    """The result."""

    acknowledged: int = 0
    refused: int = 0
    delivered: int = 0
    problems: list[str] = field(default_factory=list)


class _Bot:
    """Appends until it is refused, and notes what it was promised."""

    def __init__(self, history: History, filled: Filled) -> None:
        self._history = history
        self._filled = filled
        self.acks: list[Ack] = []

    async def append(self, number: int) -> bool:
        name = f"chat-{number % 5}"
        try:
            receipt = await self._history.append(name, Message.user("x" * 8_000))
        except (OutboxFull, OutboxUnavailable):
            self._filled.refused += 1
            return False
        self.acks.append(Ack(name, receipt.event_ids[-1], receipt.sequence))
        self._filled.acknowledged += 1
        return True

    async def credit(self) -> bool:
        try:
            async with self._history.transaction() as transaction:
                receipt = await transaction.append("till", Message.user("x" * 8_000))
        except (OutboxFull, OutboxUnavailable):
            self._filled.refused += 1
            return False
        self.acks.append(Ack("till", receipt.event_ids[-1], receipt.sequence))
        self._filled.acknowledged += 1
        return True

    async def until_refused(self) -> None:
        number = 0
        while await self.append(number):
            number += 1

    async def readable(self) -> None:
        """Look whether what was acknowledged can be read, with the disk still full."""
        read = await self._history.messages("chat-0", last=5)
        if not read:
            self._filled.problems.append("nothing can be read on the full disk")


async def on_a_full_disk(folder: Path, commands: Sequence[tuple[str, ...]]) -> Filled:
    """Fill a small file system under a bot, deliver while it is full, make room, and continue in the same process."""
    if os.name == "nt" or os.geteuid() != 0:
        raise NotHere("needs root, to mount a small file system")
    folder.mkdir()
    disk, store = folder / "disk", f"sqlite:///{(folder / HISTORY).as_posix()}"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", disk)
    try:
        filled = Filled()
        async with History(disk / OUTBOX, store=store, relay=False, min_free_bytes=None) as history:
            bot = _Bot(history, filled)
            await history.outbox.maintain()
            if not reserve_path(disk / OUTBOX).exists():
                filled.problems.append("there is no ballast")
            for number in range(BEFORE):
                await bot.append(number)
            hog = fill(disk)
            await bot.until_refused()
            if await bot.credit() or await bot.append(1):
                filled.problems.append("an append was taken with no space for it")
            await bot.readable()
            await _deliver(history, store, filled)
            hog.unlink()
            if not (await bot.append(2) and await bot.credit()):
                filled.problems.append("appends are refused though there is room again")
            await _deliver(history, store, filled)
        filled.problems += (await check([disk / OUTBOX], store, acknowledged=bot.acks, drained=True)).problems
        fill(disk)
        filled.problems += await asyncio.to_thread(_explain_themselves, disk, store, commands)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False, capture_output=True, timeout=TIMEOUT_SECONDS)
    return filled


async def _deliver(history: History, store: str, filled: Filled) -> None:
    async with ConversationStore.open(store) as opened:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                filled.delivered += await Relay(history.outbox, opened).drain()
        except LetopisError as error:
            filled.problems.append(f"the relay cannot write off what it delivered: {error}")
    if (left := (await history.status()).pending) != 0:
        filled.problems.append(f"{left} events are still pending")


def _explain_themselves(disk: Path, store: str, commands: Sequence[tuple[str, ...]]) -> list[str]:
    reserve_path(disk / OUTBOX).unlink(missing_ok=True)
    fill(disk)
    problems = []
    for words in commands:
        done = letopis(*words, folder=disk, LETOPIS_OUTBOX=str(disk / OUTBOX), LETOPIS_STORE=store, NO_COLOR="1")
        said = done.stdout + done.stderr
        explained = done.returncode in WORKED or any(one in said for one in ("full", "free", "space"))
        if "Traceback" in said or not explained:
            problems.append(f"`letopis {' '.join(words)}` does not say that the disk is full: {said[-200:]!r}")
    return problems


def under_a_limit(folder: Path) -> Filled:
    """Have a bot live whose files may not grow beyond a limit, which is lifted later."""
    folder.mkdir()
    return Filled(**call(limited, folder, timeout=TIMEOUT_SECONDS))


async def limited(place: str) -> dict[str, Any]:
    """Be the bot, and return what came of it."""
    import resource

    def limit(size: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    folder = Path(place)
    store = f"sqlite:///{(folder / HISTORY).as_posix()}"
    filled = Filled()
    async with History(folder / OUTBOX, store=store, relay=False, min_free_bytes=None) as history:
        bot = _Bot(history, filled)
        await bot.append(0)
        limit(max(one.stat().st_size for one in folder.iterdir()) + GROWTH)
        await bot.until_refused()
        if await bot.credit():
            filled.problems.append("a transaction was taken with no space for it")
        await bot.readable()
        limit(resource.RLIM_INFINITY)
        if not (await bot.append(2) and await bot.credit()):
            filled.problems.append("appends are refused though there is room again")
        await _deliver(history, store, filled)
    filled.problems += (await check([folder / OUTBOX], store, acknowledged=bot.acks, drained=True)).problems
    with closing(sqlite3.connect(folder / OUTBOX)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            filled.problems.append("the file is damaged")
    return asdict(filled)
