"""Fill disks to the last byte and make them read-only: what was acknowledged is kept, and everything goes on later."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from letopis import ConversationStore, History, LetopisError
from letopis.outbox import Relay
from letopis.outbox.file.limits import reserve_path
from tests.proof.harness import Setting, Tally, World
from tests.support.child import call
from tests.support.daemons import letopis
from tests.support.fix_disk import NotHere, SmallDisk, fill, make_image, mounted, need, run
from tests.support.victim import url_of

MEBIBYTES: Final = 16  # of the disk that is filled; 64 of the others
TIMEOUT_SECONDS: Final = 60.0
COMMANDS: Final = (("status",), ("relay", "--once"), ("doctor",), ("outbox", "list"))
WORKED: Final = (0, 3)  # exit codes of a command that did its work: 3 is that there was nothing to show
BEFORE: Final = 40  # messages that are there before the disk is filled
GROWTH: Final = 400_000  # bytes by which the files may grow where there is a limit for them
APPENDS: Final = 20
LONG: Final = "x" * 8_000


async def on_a_full_disk(setting: Setting) -> Tally:
    """Fill a small file system under a bot, deliver while it is full, make room, and continue in the same process."""
    world = _world(setting)
    with closing(SmallDisk(world.folder, size=f"{MEBIBYTES}m")) as disk:
        async with world.open(relay=False) as history:
            await history.outbox.maintain()
            world.tally.require(reserve_path(world.outbox).exists(), "there is no ballast")
            for number in range(BEFORE):
                await world.append(history, f"chat-{number % 5}", LONG)
            disk.fill()
            await _until_refused(world, history)
            world.tally.require(not await world.append(history, "chat-1", LONG), "an append was taken without space")
            await _deliver(world, history)
            disk.free()
            await _taken_again(world, history)
        await world.judge()
        disk.fill()
        commands = COMMANDS[: setting.many(len(COMMANDS), 1)]
        await asyncio.to_thread(_explain_themselves, world, commands)
    return _refusals(world)


def under_a_limit(setting: Setting) -> Tally:
    """Have a bot live whose files may not grow beyond a limit, which is lifted later."""
    return Tally(**call(limited, setting.folder, timeout=TIMEOUT_SECONDS))


async def limited(folder: str) -> dict[str, Any]:
    import resource

    def limit(size: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    world = World(Path(folder))
    async with world.open(relay=False) as history:
        await world.append(history, "chat-0", LONG)
        limit(max(one.stat().st_size for one in world.folder.iterdir()) + GROWTH)
        await _until_refused(world, history)
        limit(resource.RLIM_INFINITY)
        await _taken_again(world, history)
    await world.judge()
    with closing(sqlite3.connect(world.outbox)) as connection:
        sound = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        world.tally.require(sound, "the file is damaged")
    return asdict(_refusals(world))


async def gone_read_only(setting: Setting) -> Tally:
    """Have the kernel meet an error of the disk: ext4 then writes no more; mount it again, and restart."""
    need("mkfs.ext4")
    world, image = _world(setting), setting.folder / "image"
    make_image(image, 64, "mkfs.ext4", "-q", "-F")
    with mounted(image, world.folder):
        async with world.open(relay=False) as history:
            await world.append_some(history, APPENDS)
            run("mount", "-o", "remount,abort", world.folder)  # as after an error of the disk
            taken = await world.append_some(history, APPENDS)
            world.tally.require(not taken, f"{taken} appends were taken on a file system that writes no more")
            try:
                world.tally.require(bool(await history.messages("chat-0", last=3)), "nothing can be read")
            except LetopisError:
                world.tally.refused += 1
    deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
    while True:  # an unmounted file system is released a moment later
        try:
            with mounted(image, world.folder):
                await _all_delivered(world)
            return _refusals(world)
        except NotHere:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)


async def read_only_at_start(setting: Setting) -> Tally:
    """Start on a file system that is read-only, and once more, in the same process, when it is not."""
    world = _world(setting)
    with closing(SmallDisk(world.folder, size="64m")):
        for _ in range(2):
            async with world.open(watch=True) as history:
                await world.append_some(history, APPENDS)
            run("mount", "-o", "remount,ro", world.folder)
            try:
                async with world.open(watch=True):
                    world.tally.problems.append("was opened, and cannot be written")
            except LetopisError as error:
                world.tally.refused += 1
                told = "may not be written" in str(error)
                world.tally.require(told, f"does not say what is the matter: {error}")
            run("mount", "-o", "remount,rw", world.folder)
        await _all_delivered(world)
    return _refusals(world)


def _world(setting: Setting) -> World:
    """Return a world whose outbox is on a disk of its own, and whose store is not."""
    disk = setting.folder / "disk"
    disk.mkdir()
    return World(disk, url_of(setting.folder))


def _refusals(world: World) -> Tally:
    world.tally.count, world.tally.notes = world.tally.refused, f"{len(world.acks):,} acknowledged"
    return world.tally


async def _until_refused(world: World, history: History) -> None:
    number = 0
    while await world.append(history, f"chat-{number % 5}", LONG):
        number += 1
    taken = await world.append(history, "till", LONG, own=True)
    world.tally.require(not taken, "a transaction was taken with no space for it")
    world.tally.require(bool(await history.messages("chat-0", last=5)), "nothing can be read on the full disk")


async def _taken_again(world: World, history: History) -> None:
    taken = [await world.append(history, "chat-2", LONG), await world.append(history, "till", LONG, own=True)]
    world.tally.require(all(taken), "appends are refused though there is room again")
    await _deliver(world, history)


async def _deliver(world: World, history: History) -> None:
    async with ConversationStore.open(world.url) as store:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await Relay(history.outbox, store).drain()
        except LetopisError as error:
            world.tally.problems.append(f"the relay cannot write off what it delivered: {error}")
    pending = (await history.status()).pending
    world.tally.require(not pending, f"{pending} events are still pending")


async def _all_delivered(world: World) -> None:
    async with world.open(watch=True) as history:
        await world.append_some(history, APPENDS)
        await world.drain(history, "is not drained though it may be written again")
    await world.judge()


def _explain_themselves(world: World, commands: tuple[tuple[str, ...], ...]) -> None:
    reserve_path(world.outbox).unlink(missing_ok=True)
    fill(world.folder)
    for words in commands:
        given = {"LETOPIS_OUTBOX": str(world.outbox), "LETOPIS_STORE": world.url, "NO_COLOR": "1"}
        done = letopis(*words, folder=world.folder, **given)
        said = done.stdout + done.stderr
        explained = done.returncode in WORKED or any(one in said for one in ("full", "free", "space"))
        right = explained and "Traceback" not in said
        told = f"`letopis {' '.join(words)}` does not say that the disk is full: {said[-200:]!r}"
        world.tally.require(right, told)
