"""Copy an ext4 file system at one instant while a bot writes, and mount it as after a power cut."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.proof.power.promises import broken, broken_for_the_library
from tests.proof.power.states import Found
from tests.support import victim
from tests.support.child import command, promising
from tests.support.promises import read_promises

TOOLS: Final = ("mkfs.xfs", "mkfs.ext4", "mount", "umount", "cp")
PATH: Final = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
PACE: Final = 0.002
"""Seconds between two appends: a faster bot checkpoints, and so flushes, so often that the control loses nothing."""
FIRST: Final = 20.0  # seconds within which the bot has to be promised something


class NotHere(Exception):
    """This machine cannot do it; the message says why."""


def run(*words: str | Path) -> None:
    """Run a command to its end."""
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PATH": PATH}
    )
    if done.returncode:
        raise NotHere(f"{words[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True, timeout=60)


@contextmanager
def live_disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the image of an ext4 file system and where it is mounted; the image can be copied in an instant."""
    for tool in TOOLS:
        if shutil.which(tool, path=PATH) is None:
            raise NotHere(f"needs {tool}")
    if os.name == "nt" or os.geteuid() != 0:
        raise NotHere("needs root, to mount file systems")
    with ExitStack() as stack:
        ground = folder / "ground.img"
        stack.callback(ground.unlink, missing_ok=True)
        _make(ground, 2048, "mkfs.xfs", "-q", "-m", "reflink=1")
        base = stack.enter_context(mounted(ground, folder / "ground"))
        _make(base / "live.img", 128, "mkfs.ext4", "-q", "-F")
        yield base / "live.img", stack.enter_context(mounted(base / "live.img", folder / "live"))


def _make(image: Path, mebibytes: int, *words: str) -> None:
    with image.open("wb") as file:
        file.truncate(mebibytes * 1024**2)
    run(*words, image)


def cut(folder: Path, *, cuts: int, opened: int, seed: int, pragmas: Sequence[str] = ()) -> Found:
    """Cut the power so often while the bot lives, and look into each disk that is left."""
    folder.mkdir()
    chance, found = random.Random(seed), Found()
    acks = folder / "acks"
    with live_disk(folder) as (image, disk):
        words = command(victim.record, disk, acks, seed=seed, pace=PACE, pragmas=pragmas)
        with promising(words, acks, size=1_000, patience=FIRST) as bot:
            for number in range(cuts):
                time.sleep(chance.uniform(0.01, 0.08))
                # What was promised before the copy began has to be on it.
                promised = acks.read_bytes()
                copy = image.with_name("cut.img")
                run("cp", "--reflink=always", image, copy)
                with mounted(copy, folder / "cut") as place:
                    promises = read_promises(promised)
                    problems = broken(place, promises)
                    if not problems and chance.random() < opened / cuts:
                        found.opened += 1
                        problems = asyncio.run(broken_for_the_library(place, promises))
                copy.unlink()
                found.acknowledged = len(promises.acks)
                found.add(f"cut {number}", problems)
                if bot.poll() is not None:
                    raise RuntimeError(f"the bot ended by itself, with {bot.returncode}")
    return found
