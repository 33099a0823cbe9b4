"""Make a file system read-only under a running bot and before it starts."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from letopis.outbox import History
from letopis.store import Message
from letopis.store.errors import LetopisError
from tests.campaigns.invariants import check
from tests.campaigns.states import Ack
from tests.proof.io.full import Filled
from tests.proof.power.cuts import PATH, NotHere, mounted, run
from tests.support.victim import HISTORY, OUTBOX

MEBIBYTES: Final = 64
APPENDS: Final = 20
TIMEOUT_SECONDS: Final = 30.0


async def gone_read_only(folder: Path) -> Filled:
    """Have the kernel meet an error of the disk: ext4 then writes no more; mount it again, and restart."""
    if os.name == "nt" or os.geteuid() != 0 or shutil.which("mkfs.ext4", path=PATH) is None:
        raise NotHere("needs root and mkfs.ext4")
    folder.mkdir()
    image, disk, outcome = folder / "image", folder / "disk", Filled()
    store = f"sqlite:///{(folder / HISTORY).as_posix()}"
    with image.open("wb") as file:
        file.truncate(MEBIBYTES * 1024**2)
    run("mkfs.ext4", "-q", "-F", image)
    acks: list[Ack] = []
    with mounted(image, disk):
        async with History(disk / OUTBOX, store=store, relay=False, min_free_bytes=None) as history:
            await _append(history, outcome, acks)
            run("mount", "-o", "remount,abort", disk)  # as after an error of the disk
            before = len(acks)
            await _append(history, outcome, acks)
            if len(acks) > before:
                outcome.problems.append(f"{len(acks) - before} appends were taken on a file system that writes no more")
            await _ended(history, outcome)
    await _again(image, disk, store, acks, outcome)
    return outcome


async def read_only_at_start(folder: Path) -> Filled:
    """Start on a file system that is read-only, and once more, in the same process, when it is not."""
    if os.name == "nt" or os.geteuid() != 0:
        raise NotHere("needs root, to mount a file system")
    folder.mkdir()
    disk, outcome, acks = folder / "disk", Filled(), []
    store = f"sqlite:///{(folder / HISTORY).as_posix()}"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", disk)
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "--lazy", disk], check=False, capture_output=True)
        for _ in range(2):
            async with History(disk / OUTBOX, store=store, min_free_bytes=None) as history:
                await _append(history, outcome, acks)
            run("mount", "-o", "remount,ro", disk)
            try:
                async with History(disk / OUTBOX, store=store, min_free_bytes=None):
                    outcome.problems.append("was opened, and cannot be written")
            except LetopisError as error:
                outcome.refused += 1
                if "may not be written" not in str(error):
                    outcome.problems.append(f"does not say what is the matter: {error}")
            run("mount", "-o", "remount,rw", disk)
        async with History(disk / OUTBOX, store=store, min_free_bytes=None) as history:
            await _append(history, outcome, acks)
            if not await history.drained(TIMEOUT_SECONDS):
                outcome.problems.append("is not drained though it may be written again")
        outcome.problems += (await check([disk / OUTBOX], store, acknowledged=acks, drained=True)).problems
    return outcome


async def _append(history: History, outcome: Filled, acks: list[Ack]) -> None:
    for number in range(APPENDS):
        name = f"chat-{number % 3}"
        try:
            if number % 5 == 4:
                async with history.transaction() as transaction:
                    receipt = await transaction.append(name, Message.user(f"message {number}"))
            else:
                receipt = await history.append(name, Message.user(f"message {number}"))
        except LetopisError:
            outcome.refused += 1
        except Exception as error:  # anything else is not what the documentation names
            outcome.problems.append(f"raised {type(error).__module__}.{type(error).__name__}")
        else:
            acks.append(Ack(name, receipt.event_ids[-1], receipt.sequence))
            outcome.acknowledged += 1


async def _ended(history: History, outcome: Filled) -> None:
    try:
        if not await history.messages("chat-0", last=3):
            outcome.problems.append("nothing can be read")
    except LetopisError:
        outcome.refused += 1


async def _again(image: Path, disk: Path, store: str, acks: list[Ack], outcome: Filled) -> None:
    deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
    while True:  # an unmounted file system is released a moment later
        try:
            with mounted(image, disk):
                async with History(disk / OUTBOX, store=store, min_free_bytes=None) as history:
                    await _append(history, outcome, acks)
                    if not await history.drained(TIMEOUT_SECONDS):
                        outcome.problems.append("is not drained after it was mounted again")
                verdict = await check([disk / OUTBOX], store, acknowledged=acks, drained=True)
                outcome.problems += verdict.problems
        except NotHere:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            return
