"""Start a relay on an outbox with many pending events: how much memory, and how soon the first is delivered.

The file is made by plain inserts. The relay is the real command, in a process of its own, and delivers to SQLite.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.event_log.event_ids import index_event_ids
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store import Message
from letopis.store.model.codec import digest_of
from letopis.store.model.identifiers import uuid7
from tests.campaigns.processes import Place, Probe, Relay

MAX_START_SECONDS = 2.0
"""Seconds from the start of the process to the first event that is written off, on a machine that is not busy."""
MAX_RSS_BYTES = 150 * 1024**2
"""Bytes of resident memory, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a start came to."""

    events: int
    conversations: int
    file_bytes: int
    made_in: float
    first_delivery: float
    delivered: int
    watched: float
    peak_rss: int


async def make(path: Path, *, events: int, per_conversation: int = 100) -> int:
    """Make an outbox with this many pending events; return the number of conversations."""
    outbox = await OutboxFile.open(path)
    template = prepare("template", [Message.user("what a person says, " * 5)])
    await outbox.append(template)
    await outbox.close()
    conversations = max(1, events // per_conversation)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        columns = [row[1] for row in connection.execute("PRAGMA table_info(letopis_outbox_events)")]
        row = connection.execute(
            f"SELECT {', '.join(columns)} FROM letopis_outbox_events WHERE type = 'message.appended'"
        ).fetchone()
        lane = connection.execute("SELECT * FROM letopis_outbox_lanes").fetchone()
        lane_columns = [row[1] for row in connection.execute("PRAGMA table_info(letopis_outbox_lanes)")]
        found = dict(zip(columns, row, strict=True))
        found_lane = dict(zip(lane_columns, lane, strict=True))
        message_id = str(template.message_ids[0])

        def rows() -> Iterator[tuple[object, ...]]:
            for sequence in range(1, per_conversation + 1):
                for lane, number in enumerate(range(conversations), 1):
                    event_id = uuid7()
                    name = f"chat-{number}"
                    data = found["data"].replace(message_id, str(event_id))
                    digest = digest_of(
                        name, found["type"], found["schema_version"], data, found["metadata"], found["salt"]
                    )
                    changed = {
                        "lane": lane,
                        "sequence": sequence,
                        "event_id": event_id.bytes,
                        "data": data,
                        "digest": digest,
                    }
                    yield tuple((found | changed)[one] for one in columns if one != "position")

        kept = [one for one in columns if one != "position"]
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM letopis_outbox_events")
        connection.execute("DELETE FROM letopis_outbox_event_ids")
        connection.execute("DELETE FROM letopis_outbox_lanes")
        connection.executemany(
            f"INSERT INTO letopis_outbox_events ({', '.join(kept)}) VALUES ({', '.join('?' * len(kept))})", rows()
        )
        connection.executemany(
            f"INSERT INTO letopis_outbox_lanes ({', '.join(lane_columns)})"
            f" VALUES ({', '.join('?' * len(lane_columns))})",
            (
                tuple(
                    (found_lane | {"lane": lane, "conversation_id": f"chat-{number}", "head": per_conversation})[one]
                    for one in lane_columns
                )
                for lane, number in enumerate(range(conversations), 1)
            ),
        )
        index_event_ids(connection.cursor())
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return conversations


def measure(folder: Path, *, events: int, watch: float) -> Report:
    """Make the file, start the relay on it, and watch it for this many seconds."""
    outbox = folder / "bot.outbox.db"
    begun = time.monotonic()
    conversations = asyncio.run(make(outbox, events=events))
    made_in = time.monotonic() - begun
    relay = Relay(Place(folder=folder, outbox=outbox, store=f"sqlite:///{(folder / 'history.db').as_posix()}"))
    first = 0.0
    peak = 0
    try:
        with closing(sqlite3.connect(outbox, isolation_level=None, timeout=10)) as connection:
            begun = time.monotonic()
            relay.ensure()
            process = psutil.Process(relay.pid)
            while (passed := time.monotonic() - begun) < watch or not first:
                peak = max(peak, process.memory_info().rss)
                if (
                    not first
                    and connection.execute(
                        "SELECT delivered_total FROM letopis_outbox_relay WHERE delivered_total > 0"
                    ).fetchone()
                ):
                    first = passed
                if passed > 60:
                    break
                time.sleep(0.005)
        probe = Probe(outbox)
        delivered = probe.look().delivered
        probe.close()
    finally:
        relay.close()
    return Report(
        events=events,
        conversations=conversations,
        file_bytes=outbox.stat().st_size,
        made_in=made_in,
        first_delivery=first,
        delivered=delivered,
        watched=passed,
        peak_rss=peak,
    )
