"""Keep a store that programs share: taken away, given back, moved and verified."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

from sqlalchemy.engine import make_url

from letopis.ops.cli.verify import problems_of_store
from letopis.ops.verify import find_problems
from letopis.outbox import History, Relay, Retention, RetryPolicy
from letopis.outbox.pending_reads import store_gateway
from letopis.store import ConversationStore, Timeouts
from letopis.store.database.urls import normalise_url
from letopis.store.ops.move import move
from tests.support.peers import Gate

PATIENCE_SECONDS: Final = 60.0  # a busy machine takes a slow store for an unavailable one
PROBE_PAUSES: Final = RetryPolicy(base=0.005, factor=2.0, cap=0.02, jitter="none")


class World:
    def __init__(self, url: str, empty: Callable[[], str], folder: Path) -> None:
        self.url = url
        self.down = False
        self.store: ConversationStore
        self.histories: list[History] = []
        self.relays: list[Relay] = []
        self._paths = [folder / f"{name}.outbox.db" for name in "AB"]
        self._empty = empty
        self._gate: Gate | None = None

    async def open(self) -> None:
        """Open the store, behind a gate if it is on a server, and the histories."""
        url = self.url
        if make_url(url).host is not None:
            self._gate = Gate(url)
            await self._gate.open()
            url = self._gate.url
        self.store = ConversationStore(url, timeouts=Timeouts(connect=PATIENCE_SECONDS, statement=PATIENCE_SECONDS))
        for number in range(len(self._paths)):
            await self._begin(number)

    async def close(self) -> None:
        while self.histories:
            await self.histories.pop().close()
            self.relays.pop()
        await self.store.close()
        if self._gate is not None:
            await self._gate.shut()

    async def _begin(self, number: int) -> None:
        history = History(
            self._paths[number],
            store=self.store,
            relay=False,
            watch=False,
            # Nothing is pruned, so that an outage hides nothing of these short histories.
            retention=Retention(keep_last=10_000),
            read_timeout=PATIENCE_SECONDS,
        )
        await history.prepare()
        self.histories.insert(number, history)
        self.relays.insert(number, Relay(history.outbox, self.store))

    async def restart(self, number: int) -> None:
        await self.histories.pop(number).close()
        self.relays.pop(number)
        await self._begin(number)

    async def outage(self) -> None:
        """Take the store away: cut what is connected to a server, and move the folder of a file."""
        self.down = True
        if self._gate is not None:
            await self._gate.shut()
            return
        await self.store.runtime.engine.dispose()
        self._folder.rename(self._elsewhere)

    async def back(self) -> None:
        """Give it back, and wait until it is read again."""
        if self._gate is not None:
            await self._gate.open()
        else:
            self._elsewhere.rename(self._folder)
        self.down = False
        for history in self.histories:
            while not (await history.messages("nobody", last=1)).complete:  # noqa: ASYNC110 - it is probed
                await asyncio.sleep(0.002)

    async def move(self) -> None:
        target = self._empty()
        await self.close()
        await move(self.url, target)
        self.url = target
        await self.open()

    async def problems(self) -> list[str]:
        """Close everything, and return what `letopis db verify` and `letopis outbox verify` find wrong."""
        await self.close()
        found = await problems_of_store(normalise_url(self.url))
        for path in self._paths:
            found += find_problems(path)
        return found

    @property
    def _folder(self) -> Path:
        return Path(str(make_url(self.url).database)).parent

    @property
    def _elsewhere(self) -> Path:
        return self._folder.with_suffix(".away")


@contextmanager
def hasty() -> Iterator[None]:
    """Have readers probe a store that was unavailable at once, and wait for one that is slow."""
    with (
        patch.object(store_gateway, "PROBE_PAUSES", PROBE_PAUSES),
        patch.object(store_gateway, "HEALTH_CHECK_TIMEOUT_SECONDS", PATIENCE_SECONDS),
    ):
        yield
