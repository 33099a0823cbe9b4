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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final
from uuid import UUID

import letopis.store
from tests.campaigns.invariants import Ack
from tests.proof.harness import World
from tests.proof.options import Options
from tests.proof.rows import Row
from tests.proof.stores import fresh
from tests.proof.upgrade.migrating import bring_to
from tests.support.daemons import DaemonProcess
from tests.support.line_process import LineProcess
from tests.support.paths import ROOT
from tests.support.sqlite_rows import rows

if TYPE_CHECKING:
    from tests.proof.upgrade.part import Place

_STORE_HEAD: Final = "store/letopis/store/database/migrations.py"
_OUTBOX_HEAD: Final = "outbox/letopis/outbox/file/inspection.py"
PACKAGES: Final = ("store", "outbox", "migrations")
_HEAD: Final = re.compile(r'Migrations\([^)]*head="(\d{4})"')
BOT: Final = """
import asyncio, json, sys
from pathlib import Path

async def lines():
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield line.split()

def tell(**what):
    print(json.dumps(what), flush=True)

async def main(outbox, store):
    import letopis.store
    from letopis.outbox import History
    from letopis.store import ConversationStore, Message
    if sys.argv[3] == "migrate":
        async with ConversationStore.open(store, migrate=True):
            pass
    async with History(outbox, store=store, relay=sys.argv[4] == "relay") as history:
        tell(ready=letopis.store.__file__)
        async for what, *rest in lines():
            try:
                if what == "say":
                    acks = []
                    for number in range(int(rest[0])):
                        name = f"chat-{number % 5}"
                        receipt = await history.append(name, Message.user(f"{rest[1]} {number}"), owner="owner")
                        acks += [(name, str(one)) for one in receipt.event_ids]
                    tell(acks=acks)
                elif what == "drain":
                    tell(drained=await history.drained(float(rest[0])))
            except Exception as error:
                tell(error=f"{type(error).__name__}: {error}")

try:
    asyncio.run(main(sys.argv[1], sys.argv[2]))
except Exception as error:
    tell(error=f"{type(error).__name__}: {error}")
    sys.exit(9)
"""


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
    for tag in _git("tag", "--list", "v*", "--sort=version:refname").split():
        tree = folder / tag
        packed = _git_bytes("archive", "--format=tar", tag, *PACKAGES)
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


def _git(*words: str) -> str:
    return _git_bytes(*words).decode()


def _git_bytes(*words: str) -> bytes:
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
        super().__init__([sys.executable, "-c", BOT, str(world.outbox), world.url, *how], environment)
        self._release, self._world = release, world

    def ready(self) -> bool:
        """Wait until it has opened its history; note a problem if it fails."""
        said = self.answer(40)
        ready = str(said.get("ready", "")).startswith(f"{self._release.tree}{os.sep}")
        self._world.tally.require(ready, f"the code in {self._release.tree} does not open it: {said}")
        return ready

    def say(self, count: int, words: str) -> None:
        """Have it append events, and keep what it was promised."""
        said = self.ask(f"say {count} {words}", 40)
        self._world.acks += [Ack(name, UUID(event_id)) for name, event_id in said.get("acks", ())]
        self._world.tally.require("error" not in said, f"what it says {words}: {said.get('error')}")

    def drain(self, seconds: float, when: str) -> None:
        self._world.tally.require(self.drained(seconds), f"not drained {when}")

    def kill_while_it_says(self, count: int, *, after: float) -> None:
        """Kill it in the middle; what it has not acknowledged by then may be there or not."""
        self.tell(f"say {count} cut")
        time.sleep(after)
        self.kill()

    def drained(self, seconds: float) -> bool:
        """Return True if everything was delivered within ``seconds``."""
        return self.ask(f"drain {seconds}", seconds + 20).get("drained") is True


NEWER_DAEMON: Final = "an earlier release's bot and the next one's daemon on one file: the daemon killed"
NEWER_BOT: Final = "the next release's bot and an earlier one's daemon on one file: the bot killed"
KILLS: Final = 10
DRAIN_SECONDS: Final = 30


def on_one_file(place: Place) -> Iterator[Row]:
    """Have the last earlier release and the next one share a file, both ways."""
    options, kind, releases = place.options, place.kind, place.releases
    for what, play in ((NEWER_DAEMON, _kill_daemon), (NEWER_BOT, _kill_bot)):
        with fresh(kind, options.folder, play.__name__) as store:
            world = World(options.folder, store.url, name=f"{kind}{play.__name__}.outbox.db")
            shared = _Shared(releases[-1], world, options)
            play(shared)
            shared.end()
        world.tally.notes = f"{len(world.acks):,} events acknowledged"
        yield world.tally.row(what, kind, "kills", KILLS)


class _Shared:
    """A file and a store that an earlier release made; the store's tables are the next one's already."""

    def __init__(self, earlier: Release, world: World, options: Options) -> None:
        self.earlier, self.following = earlier, next_release()
        self.world, self.tally = world, world.tally
        self.rounds = options.many(KILLS, 2)
        self.chance = Random(options.seed)

    def bot(self, release: Release, *, migrate: bool = False) -> ReleaseBot:
        return ReleaseBot(release, self.world, migrate=migrate, relay=False)

    def daemon(self, release: Release) -> DaemonProcess:
        path = os.pathsep.join(str(release.tree / package) for package in PACKAGES)
        arguments = ("--outbox", str(self.world.outbox), "--store", self.world.url)
        return DaemonProcess(*arguments, folder=self.world.folder, PYTHONPATH=path)

    def expand(self) -> None:
        asyncio.run(bring_to(self.world.url, "head"))

    def check_revision(self) -> None:
        """Note a problem unless the file is at the next release's revision, without which nothing is shown."""
        ((found,),) = rows(self.world.outbox, "SELECT version_num FROM letopis_outbox_version")
        self.tally.require(found == self.following.outbox, f"the file is at revision {found}")

    def end(self) -> None:
        """Have the next release deliver the rest, and note what is wrong then."""
        with ReleaseBot(self.following, self.world) as bot:
            bot.ready()
            bot.say(5, "after")
            bot.drain(DRAIN_SECONDS, "by the next release")
        asyncio.run(self.world.judge())


def _kill_daemon(shared: _Shared) -> None:
    """Keep a bot of the earlier release running while daemons of the next one are killed."""
    with shared.bot(shared.earlier, migrate=True) as bot:
        if not bot.ready():
            return
        bot.say(5, "before")
        shared.expand()
        for number in range(shared.rounds):
            with shared.daemon(shared.following) as daemon:  # its end is a SIGKILL
                daemon.works()
                if not number:
                    shared.check_revision()
                bot.say(shared.chance.randrange(1, 30), "beside")
                time.sleep(shared.chance.uniform(0, 0.4))
            shared.tally.count += 1


def _kill_bot(shared: _Shared) -> None:
    """Keep a daemon of the earlier release running while bots of the next one are killed."""
    with shared.bot(shared.earlier, migrate=True) as bot:
        if not bot.ready():
            return
        bot.say(5, "before")
    with shared.daemon(shared.earlier) as daemon:
        daemon.works()
        shared.expand()
        for number in range(shared.rounds):
            with shared.bot(shared.following) as bot:
                bot.ready()
                bot.say(shared.chance.randrange(1, 10), "beside")
                if not number:
                    shared.check_revision()
                bot.kill_while_it_says(200, after=shared.chance.uniform(0, 0.1))
            shared.tally.count += 1
        with shared.bot(shared.following) as bot:
            bot.ready()
            bot.drain(DRAIN_SECONDS, f"by the earlier daemon, which says {daemon.messages()[-3:]}")
