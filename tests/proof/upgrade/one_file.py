"""Two releases on one outbox file and one store: the bot of one, the daemon of the other, one of them killed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Final

from tests.campaigns.invariants import Ack, check
from tests.campaigns.victims import Context
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import fresh
from tests.proof.upgrade.migrating import bring_to
from tests.proof.upgrade.releases import PACKAGES, Release, ReleaseBot, next_release
from tests.support.daemons import DaemonProcess

NEWER_DAEMON: Final = "an earlier release's bot and the next one's daemon on one file: the daemon killed"
NEWER_BOT: Final = "the next release's bot and an earlier one's daemon on one file: the bot killed"
KILLS: Final = 10
DRAIN_SECONDS: Final = 30


def on_one_file(options: Options, kind: str, url: str, releases: list[Release], _: Context) -> Iterator[Row]:
    """Have the last earlier release and the next one share a file, both ways."""
    for what, play in ((NEWER_DAEMON, _kill_daemon), (NEWER_BOT, _kill_bot)):
        with fresh(kind, options.folder, play.__name__) as store:
            outbox = options.folder / f"{kind}{play.__name__}.outbox.db"
            shared = _Shared(releases[-1], outbox, store.url, options)
            problems = list(play(shared))
            problems += shared.ended()
        notes = f"{len(shared.acks):,} events acknowledged"
        yield row_of(what, kind, shared.kills, KILLS, "kills", problems, notes)


class _Shared:
    """A file and a store that an earlier release made; the store's tables are the next one's already."""

    def __init__(self, earlier: Release, outbox: Path, url: str, options: Options) -> None:
        self.earlier, self.following = earlier, next_release()
        self.outbox, self.url = outbox, url
        self.rounds = options.many(KILLS, 2)
        self.chance = Random(options.seed)
        self.kills = 0
        self.acks: list[Ack] = []

    def bot(self, release: Release, *, migrate: bool = False) -> ReleaseBot:
        return ReleaseBot(release, self.outbox, self.url, migrate=migrate, relay=False)

    def daemon(self, release: Release) -> DaemonProcess:
        path = os.pathsep.join(str(release.tree / package) for package in PACKAGES)
        arguments = ("--outbox", str(self.outbox), "--store", self.url)
        return DaemonProcess(*arguments, folder=self.outbox.parent, PYTHONPATH=path)

    def expand(self) -> None:
        asyncio.run(bring_to(self.url, "head"))

    def migrated(self) -> Iterator[str]:
        """Yield a problem unless the file is at the next release's revision, without which nothing is shown."""
        with closing(sqlite3.connect(self.outbox)) as connection:
            (found,) = connection.execute("SELECT version_num FROM letopis_outbox_version").fetchone()
        if found != self.following.outbox:
            yield f"the file is at revision {found}"

    def ended(self) -> Iterator[str]:
        """Yield what is wrong once the next release has delivered the rest."""
        with ReleaseBot(self.following, self.outbox, self.url) as bot:
            if error := bot.ready() or bot.say(5, "after"):
                yield f"the next release at the end: {error}"
            if not bot.drained(DRAIN_SECONDS):
                yield "the next release does not drain the file"
            self.acks += bot.acks
        verdict = asyncio.run(check([self.outbox], self.url, acknowledged=self.acks, drained=True))
        if not verdict.ok:
            yield str(verdict)


def _kill_daemon(shared: _Shared) -> Iterator[str]:
    """Keep a bot of the earlier release running while daemons of the next one are killed."""
    with shared.bot(shared.earlier, migrate=True) as bot:
        if error := bot.ready() or bot.say(5, "before"):
            yield error
            return
        shared.expand()
        for number in range(shared.rounds):
            with shared.daemon(shared.following) as daemon:  # its end is a SIGKILL
                daemon.works()
                if not number:
                    yield from shared.migrated()
                if error := bot.say(shared.chance.randrange(1, 30), "beside"):
                    yield f"round {number}: {error}"
                time.sleep(shared.chance.uniform(0, 0.4))
            shared.kills += 1
        shared.acks += bot.acks


def _kill_bot(shared: _Shared) -> Iterator[str]:
    """Keep a daemon of the earlier release running while bots of the next one are killed."""
    with shared.bot(shared.earlier, migrate=True) as bot:
        if error := bot.ready() or bot.say(5, "before"):
            yield error
            return
        shared.acks += bot.acks
    with shared.daemon(shared.earlier) as daemon:
        daemon.works()
        shared.expand()
        for number in range(shared.rounds):
            with shared.bot(shared.following) as bot:
                if error := bot.ready() or bot.say(shared.chance.randrange(1, 10), "beside"):
                    yield f"round {number}: {error}"
                if not number:
                    yield from shared.migrated()
                shared.acks += bot.acks
                bot.kill_while_it_says(200, after=shared.chance.uniform(0, 0.1))
            shared.kills += 1
        with shared.bot(shared.following) as bot:
            if error := bot.ready():
                yield error
            elif not bot.drained(DRAIN_SECONDS):
                yield f"the earlier daemon does not deliver what the next bot wrote: {daemon.messages()[-3:]}"
