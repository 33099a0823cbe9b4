"""Find the code of releases, and run a bot of each in a process of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import select
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import letopis.store
from tests.campaigns.invariants import Ack, check
from tests.campaigns.victims import Context
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.stores import fresh
from tests.proof.upgrade.migrating import bring_to
from tests.support.daemons import DaemonProcess
from tests.support.paths import ROOT

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
                elif what == "read":
                    page = await history.messages("chat-0", last=500)
                    tell(messages=len(page.items if hasattr(page, "items") else page))
                elif what == "end":
                    break
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


class ReleaseBot:
    """A bot of a release, with its relay inside or none, that runs commands line by line."""

    def __init__(
        self, release: Release, outbox: Path, store: str, *, migrate: bool = False, relay: bool = True
    ) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LETOPIS_")}
        environment["PYTHONPATH"] = os.pathsep.join(str(release.tree / one) for one in PACKAGES)
        self._release = release
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOT, str(outbox), store, "migrate" if migrate else "-", "relay" if relay else "-"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._held = b""
        self.acks: list[Ack] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> int:
        """End it in an orderly way within ten seconds. Return its exit code."""
        if self._process.poll() is None and self._process.stdin is not None:
            try:
                self._process.stdin.write(b"end\n")
                self._process.stdin.close()
                self._process.wait(10)
            except (OSError, ValueError, subprocess.TimeoutExpired):
                self._process.kill()
        code = self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def ready(self) -> str:
        """Wait until it has opened its history. Return the error if it failed."""
        said = self._answer(40)
        if "ready" in said and not said["ready"].startswith(f"{self._release.tree}{os.sep}"):
            return f"it runs {said['ready']}, not the code in {self._release.tree}"
        return str(said.get("error", ""))

    def say(self, count: int, words: str) -> str:
        """Have it append events, and record their acknowledgements. Return the error if it failed."""
        said = self.ask(f"say {count} {words}", 40)
        self.acks += [Ack(name, UUID(event_id)) for name, event_id in said.get("acks", ())]
        return str(said.get("error", ""))

    def kill_while_it_says(self, count: int, *, after: float) -> None:
        """Kill it in the middle; what it has not acknowledged by then may be there or not."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"say {count} cut\n".encode())
        self._process.stdin.flush()
        time.sleep(after)
        self._process.kill()

    def drained(self, seconds: float) -> bool:
        """Return True if everything was delivered within ``seconds``."""
        return self.ask(f"drain {seconds}", seconds + 20).get("drained") is True

    def ask(self, line: str, patience: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            return {"error": f"it has ended: {error}"}
        return self._answer(patience)

    def _answer(self, patience: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + patience
        while b"\n" not in self._held:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return {"error": f"no answer within {patience:g} s"}
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                return {"error": f"it ended with {self._process.wait(10)}"}
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


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
