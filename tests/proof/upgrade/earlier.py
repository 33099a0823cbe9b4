"""Earlier: releases of the past, taken out of the history of the checkout, each as a bot in a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import select
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from letopis.store.migration import STORE
from tests.campaigns.invariants import Ack

ROOT: Final = Path(__file__).parent.parent.parent.parent
MIGRATION: Final = "store/letopis/store/migration.py"
VERSIONS: Final = "migrations/letopis/migrations/store/versions"
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
    async with History.open(outbox, store=store) as history:
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
class Earlier:
    """The code of an earlier release.

    :ivar store: the revision that it knows of the history store; ``outbox`` that of the outbox file.
    """

    commit: str
    tree: Path
    store: str
    outbox: str


def earlier_releases(folder: Path) -> list[Earlier]:
    """Return the last code before each revision of the history store, oldest first; none without its history."""
    found: dict[str, Earlier] = {}
    seen: set[str] = set()
    # The newest code of each revision.
    for commit in _git("log", "--format=%H", "--", MIGRATION, f"{VERSIONS}/0*.py").split():
        for one in (commit, f"{commit}~1"):
            said = _HEAD.search(_git("show", f"{one}:{MIGRATION}"))
            if said is None or said.group(1) in seen:
                continue
            seen.add(said.group(1))
            if said.group(1) == STORE.head:
                continue
            tree = folder / f"release-{said.group(1)}"
            packed = _git_bytes("archive", "--format=tar", one, "store", "outbox", "migrations")
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(tree, filter="data")
            outbox = _head(tree / "outbox/letopis/outbox/file.py")
            if outbox:
                found[said.group(1)] = Earlier(commit=one, tree=tree, store=said.group(1), outbox=outbox)
    return [found[revision] for revision in sorted(found)]


def _head(path: Path) -> str:
    said = _HEAD.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    return said.group(1) if said else ""


def _git(*words: str) -> str:
    return _git_bytes(*words).decode()


def _git_bytes(*words: str) -> bytes:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


class EarlierBot:
    """A bot of an earlier release, or of this one, with its relay inside, that does what it is told line by line."""

    def __init__(self, release: Earlier | None, outbox: Path, store: str, *, migrate: bool = False) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LETOPIS_")}
        if release is not None:
            roots = (str(release.tree / one) for one in ("store", "outbox", "migrations"))
            environment["PYTHONPATH"] = os.pathsep.join(roots)
        self._release = release
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOT, str(outbox), store, "migrate" if migrate else "-"],
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
        """Have it end in an orderly way, within ten seconds, and return its exit code."""
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
        """Wait until it has opened its history; return the error if it has not."""
        said = self._answer(40)
        if "ready" in said and self._release is not None and not said["ready"].startswith(str(self._release.tree)):
            return f"it runs {said['ready']}, not the earlier code"
        return str(said.get("error", ""))

    def say(self, count: int, words: str) -> str:
        """Have it append events, and keep what it was promised; return the error if there was one."""
        said = self.ask(f"say {count} {words}", 40)
        self.acks += [Ack(name, UUID(event_id)) for name, event_id in said.get("acks", ())]
        return str(said.get("error", ""))

    def drained(self, seconds: float) -> bool:
        """Whether everything was delivered within so many seconds."""
        return self.ask(f"drain {seconds}", seconds + 20).get("drained") is True

    def ask(self, line: str, patience: float) -> dict[str, Any]:
        """Give it a line, and return its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            return {"error": f"it is gone: {error}"}
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
