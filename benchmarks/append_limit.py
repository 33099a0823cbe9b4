"""Measure the limit of an append: one thread and raw ``sqlite3`` writing the same rows, and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from benchmarks.subjects import TEXT, Subject
from letopis.outbox.event_log.schema import events, lanes
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import Message
from letopis.store.model.codec import encode_message

GROUP: Final = 512
_EVENT_COLUMNS: Final = [one.name for one in events.columns if one.name not in ("position", "redacted")]
_INSERT: Final = (
    f"INSERT INTO {events.name} ({', '.join(_EVENT_COLUMNS)}) VALUES ({', '.join('?' * len(_EVENT_COLUMNS))})"
)
_UPSERT: Final = (
    f"INSERT INTO {lanes.name} (lane, conversation_id, owner_id, head, delivered, pruned, state, attempts, due_at,"
    " pending_since) VALUES (?, ?, NULL, ?, 0, 0, 'ready', 0, 0, ?)"
    " ON CONFLICT (lane) DO UPDATE SET head = excluded.head"
)

_Job = tuple[str, tuple[Any, ...], "asyncio.Future[None]"]


class AppendLimit(Subject):
    """What asyncio and SQLite allow: a row of an event and a row of a lane, acknowledged after COMMIT.

    It encodes nothing, checks nothing and reads nothing: the rows are made of one that the library made. All that
    waits goes into one transaction, and one call wakes all who wait.
    """

    title = "limit: own thread, raw sqlite3"
    key = "limit"
    reads = False

    async def open(self, folder: Path) -> None:
        self.path = folder / "limit.outbox.db"
        made = await OutboxFile.open(self.path)  # so that it has the same tables and indexes
        await made.close()
        event = encode_message(Message.user(TEXT), conversation_id="template")
        values = {
            "type": event.type,
            "schema_version": event.schema_version,
            "data": event.data,
            "metadata": event.metadata,
            "digest": event.digest,
            "salt": event.salt,
            "occurred_at": event.occurred_at,
            "appended_at": event.occurred_at,
        }
        assert set(_EVENT_COLUMNS) == {"event_id", "lane", "sequence", *values}, "the outbox has new columns"
        self._tail = tuple(values[one] for one in _EVENT_COLUMNS[3:])
        self._now = event.occurred_at
        self._ids = int(event.event_id) if event.event_id else 0
        self._lanes: dict[str, list[int]] = {}
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = Thread(target=self._serve, name="limit", daemon=True)
        self._thread.start()
        await self._ready

    async def say(self, chat: str, text: str) -> None:
        lane = self._lanes.setdefault(chat, [len(self._lanes) + 1, 0])
        lane[1] += 1
        self._ids += 1  # rising, as a UUIDv7
        done: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((chat, (self._ids.to_bytes(16, "big"), *lane, *self._tail), done))
        await done

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    # In the thread.

    def _serve(self) -> None:
        connection = sqlite3.connect(self.path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self._loop.call_soon_threadsafe(self._ready.set_result, None)
        jobs = self._jobs
        try:
            while (job := jobs.get()) is not None:
                group = [job]
                ends = False
                while len(group) < GROUP:
                    try:
                        following = jobs.get_nowait()
                    except Empty:
                        break
                    if following is None:
                        ends = True
                        break
                    group.append(following)
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(_INSERT, [row for _, row, _ in group])
                heads = {chat: (row[1], chat, row[2], self._now) for chat, row, _ in group}
                connection.executemany(_UPSERT, list(heads.values()))
                connection.execute("COMMIT")
                self._loop.call_soon_threadsafe(_resolve, [done for _, _, done in group])
                if ends:
                    return
        finally:
            connection.close()


def _resolve(waiting: list[asyncio.Future[None]]) -> None:
    for one in waiting:
        if not one.done():
            one.set_result(None)
