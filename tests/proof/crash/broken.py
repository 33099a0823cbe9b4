"""Controls: take one promise away from the real code, in the process that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.append import Appended, prepare
from letopis.outbox.saying import Saying
from letopis.store import apply
from letopis.store.plan import Compared, LaneBatch
from tests.campaigns import bot
from tests.campaigns.invariants import open_engine

_AHEAD: Final = 8
"""Appends that are promised and not written yet, for each bot."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What is answered before anything is written."""

    event_ids: tuple[UUID, ...]
    sequence: None = None


def talk_early(outbox: str, store: str, acks: Connection, *, seed: int) -> None:
    """Talk as the bot does, with appends that return before they are committed."""
    writing = set[asyncio.Task[Appended]]()

    async def append(self: Saying, conversation_id: str, *what: Any, owner: str | None = None) -> Promise:
        while len(writing) >= _AHEAD:
            await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
        prepared = prepare(conversation_id, what, owner=owner)
        task = asyncio.create_task(self.outbox.append(prepared))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return Promise(tuple(event.event_id for event in prepared.events))

    with patch.object(Saying, "append", append):
        bot.talk(outbox, store, acks, seed=seed)


@contextmanager
def unchecked() -> Iterator[None]:
    """Apply what is delivered without a look at what the store holds already: neither at the lane nor at the ids."""

    def compare(lane: LaneBatch, head: int) -> Compared:
        return Compared(lane=lane, head=head, known=(), fresh=lane.deliveries)

    with (
        patch.object(apply, "compare", compare),
        patch.object(apply, "absorb", lambda compared, stored: compared.fresh),
    ):
        yield


async def let_double(url: str) -> None:
    """Take the store's index away that would refuse an event a second time."""
    engine = open_engine(url)
    on = " ON letopis_events" if engine.dialect.name in ("mysql", "mariadb") else ""
    try:
        async with engine.begin() as connection:
            await connection.execute(sa.text(f"DROP INDEX uq_letopis_events_event_id{on}"))
    finally:
        await engine.dispose()
