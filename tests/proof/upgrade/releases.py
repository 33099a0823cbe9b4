"""Find the code of releases, and run a bot of each in a process of its own."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

import letopis.store
from tests.campaigns.invariants import Ack
from tests.proof import obeying
from tests.proof.harness import DRAIN_SECONDS, Setting, Tally, World
from tests.proof.upgrade.migrating import bring_to, fill, held, migrate
from tests.support.child import LineProcess
from tests.support.daemons import DaemonProcess
from tests.support.paths import ROOT
from tests.support.sqlite_rows import rows

_STORE_HEAD: Final = "store/letopis/store/database/migrations.py"
_OUTBOX_HEAD: Final = "outbox/letopis/outbox/file/inspection.py"
PACKAGES: Final = ("store", "outbox", "migrations")
_HEAD: Final = re.compile(r'Migrations\([^)]*head="(\d{4})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    tree: Path
    store: str
    outbox: str

    @classmethod
    def in_folder(cls, tree: Path) -> Release | None:
        """Return the release whose packages are in a folder; None where they are not laid out as today's."""
        store, outbox = _head(tree / _STORE_HEAD), _head(tree / _OUTBOX_HEAD)
        return cls(tree=tree, store=store, outbox=outbox) if store and outbox else None


def earlier_releases(folder: Path) -> list[Release]:
    """Return the last code before each revision of the history store, oldest first: tagged releases, then this one.

    They are earlier than the next release, whose code the calling process runs.
    """
    found: dict[str, Release] = {}
    for tag in _git("tag", "--list", "v*", "--sort=version:refname").decode().split():
        tree = folder / tag
        packed = _git("archive", "--format=tar", tag, *PACKAGES)
        if not packed:
            continue
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(tree, filter="data")
        if release := Release.in_folder(tree):
            found[release.store] = release
    if this := Release.in_folder(ROOT):
        found[this.store] = this
    return [found[revision] for revision in sorted(found)]


def next_release() -> Release:
    """Return the release whose code this process runs, which has to be the next one's."""
    found = Release.in_folder(Path(letopis.store.__file__).parents[3])
    assert found is not None, "the packages are not laid out as in the checkout"
    assert found.tree != ROOT, "the process runs this release, not the next one"
    return found


def _head(path: Path) -> str:
    found = _HEAD.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found.group(1) if found else ""


def _git(*words: str) -> bytes:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


class ReleaseBot(LineProcess):
    """A bot of a release, with its relay inside or none, that runs commands line by line."""

    def __init__(self, release: Release, world: World, *, migrate: bool = False, relay: bool = True) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LETOPIS_")}
        environment["PYTHONPATH"] = os.pathsep.join(str(release.tree / one) for one in PACKAGES)
        how = ("migrate" if migrate else "-", "relay" if relay else "-")
        super().__init__([sys.executable, "-P", obeying.__file__, str(world.outbox), world.url, *how], environment)
        self._release, self._world = release, world

    def ready(self) -> None:
        """Wait until it has opened its history; note a problem if it fails."""
        said = self.answer(40)
        ready = str(said.get("ready", "")).startswith(f"{self._release.tree}{os.sep}")
        self._world.tally.require(ready, f"the code in {self._release.tree} does not open it: {said}")

    def say(self, count: int, words: str) -> None:
        said = self.ask(f"say {count} {words}", 40)
        self._world.acks += [Ack(name, UUID(event_id)) for name, event_id in said.get("acks", ())]
        self._world.tally.require("error" not in said, f"what it says {words}: {said.get('error')}")

    def drain(self, when: str) -> None:
        self._world.tally.require(self.drained(DRAIN_SECONDS), f"not drained {when}")

    def drained(self, seconds: float) -> bool:
        """Return True if everything was delivered within ``seconds``."""
        return self.ask(f"drain {seconds}", seconds + 20).get("drained") is True


def at_each_release(setting: Setting, *, play: Callable[[Release, World], None]) -> Tally:
    """Do something with each earlier release, each with a store of its own."""
    whole, releases = Tally(), earlier_releases(setting.folder)
    for release in releases[-setting.many(len(releases), 1) :]:
        with setting.apart(release.store) as here:
            world = here.world()
            play(release, world)
            whole.add(world.tally, where=f"revision {release.store}")
    whole.notes = f"{len(releases)} releases: {whole.acknowledged} events acknowledged in all"
    return whole


def run_on(release: Release, one: World) -> None:
    """Run it on a store of its own revision, then change the tables under it."""
    two = replace(one, name="two.outbox.db")
    with ReleaseBot(release, one, migrate=True) as bot:
        bot.ready()
        bot.say(15, "before")
        bot.drain("before anything was changed")
        asyncio.run(bring_to(one.url, "head"))
        bot.say(15, "changed")
        bot.drain("on the changed store")
        with ReleaseBot(next_release(), two) as beside:
            beside.ready()
            beside.say(10, "beside")
            asyncio.run(migrate(str(one.outbox)))
            bot.say(15, "outbox changed too")
            for each in (bot, beside):
                each.drain("side by side")
        one.tally.count = 30
    deliver_rest(one)
    asyncio.run(one.judge(two.outbox))


def start_on(release: Release, one: World) -> None:
    """Start it on an outbox of the next release, which it refuses, and on a store, to which it delivers nothing."""
    two = replace(one, name="two.outbox.db")
    asyncio.run(fill(one))
    before = asyncio.run(held(one.url))
    with ReleaseBot(release, one) as bot:
        error = bot.answer(40).get("error", "")
        one.tally.require("newer release" in error, f"an outbox of the next release was not refused: {error}")
    with ReleaseBot(release, two) as bot:
        bot.ready()
        bot.say(10, "kept")
        one.tally.require(not bot.drained(1), "it delivered to a store that it does not know")
    one.tally.require(asyncio.run(held(one.url)) == before, "it wrote to a store that it does not know")
    one.tally.count = 2
    deliver_rest(two)
    asyncio.run(one.judge(two.outbox))


KILLS: Final = 10


def on_one_file(setting: Setting, *, play: Callable[[Setting, World, Release], None]) -> Tally:
    """Have the last earlier release and the next one share a file; the store's tables are the next one's already."""
    release, world = earlier_releases(setting.folder)[-1], setting.world()
    with ReleaseBot(release, world, migrate=True, relay=False) as bot:
        bot.ready()
        bot.say(5, "before")
    play(setting, world, release)
    deliver_rest(world)
    asyncio.run(world.judge())
    world.tally.notes = f"{len(world.acks):,} events acknowledged"
    return world.tally


def deliver_rest(world: World) -> None:
    """Have the next release deliver the rest."""
    with ReleaseBot(next_release(), world) as bot:
        bot.ready()
        bot.say(5, "after")
        bot.drain("by the next release")


def kill_daemon(setting: Setting, world: World, release: Release) -> None:
    """Keep a bot of the earlier release running while daemons of the next one are killed."""
    chance = Random(setting.seed)
    with ReleaseBot(release, world, relay=False) as bot:
        bot.ready()
        asyncio.run(bring_to(world.url, "head"))
        for number in range(setting.many(KILLS, 1)):
            with _daemon(next_release(), world) as daemon:  # its end is a SIGKILL
                daemon.works()
                if not number:
                    _check_revision(world)
                bot.say(chance.randrange(1, 30), "beside")
                time.sleep(chance.uniform(0, 0.4))
            world.tally.count += 1


def kill_bot(setting: Setting, world: World, release: Release) -> None:
    """Keep a daemon of the earlier release running while bots of the next one are killed."""
    chance = Random(setting.seed)
    with _daemon(release, world) as daemon:
        daemon.works()
        asyncio.run(bring_to(world.url, "head"))
        for number in range(setting.many(KILLS, 1)):
            with ReleaseBot(next_release(), world, relay=False) as bot:
                bot.ready()
                bot.say(chance.randrange(1, 10), "beside")
                if not number:
                    _check_revision(world)
                bot.tell("say 200 cut")  # what it has not acknowledged by then may be there or not
                time.sleep(chance.uniform(0, 0.1))
                bot.kill()
            world.tally.count += 1
        with ReleaseBot(next_release(), world, relay=False) as bot:
            bot.ready()
            bot.drain(f"by the earlier daemon, which says {daemon.messages()[-3:]}")


def _daemon(release: Release, world: World) -> DaemonProcess:
    path = os.pathsep.join(str(release.tree / package) for package in PACKAGES)
    arguments = ("--outbox", str(world.outbox), "--store", world.url)
    return DaemonProcess(*arguments, folder=world.folder, PYTHONPATH=path)


def _check_revision(world: World) -> None:
    """Note a problem unless the file is at the next release's revision, without which nothing is shown."""
    ((found,),) = rows(world.outbox, "SELECT version_num FROM letopis_outbox_version")
    world.tally.require(found == next_release().outbox, f"the file is at revision {found}")
