"""Measure how fast a store is indexed and how long a search takes: ``python -m benchmarks.search [messages]``."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from letopis.store import ConversationStarted, ConversationStore, Message
from letopis.store.search.analysis import words
from letopis.store.testing.outbox import Outbox
from tests.campaigns.chitchat import conversation_lines, corpus
from tests.support.servers import MariaDBServer, PostgresServer


async def fill(store: ConversationStore, most: int) -> tuple[list[str], str]:
    """Say the first messages of the data set; return words of every frequency, and an owner."""
    outbox, counts = Outbox(), Counter[str]()
    owner = ""
    lines = (line for name in sorted(corpus()) for line in conversation_lines(name))
    for line in itertools.islice(lines, most):
        name = line["conversation_id"]
        if name not in outbox.lanes:
            owner = str(line["owner"])
            outbox.append(name, ConversationStarted(owner_id=owner))
        outbox.append(name, Message(role=line["role"], content=line["content"]))
        counts.update({word.exact for word in words(line["content"])})
    waiting = outbox.pending()
    for start in range(0, len(waiting), 50):
        await store.apply(outbox.origin, waiting[start : start + 50])
    ranked = [word for word, _ in counts.most_common()]
    return [ranked[min(len(ranked) - 1, 2**power)] for power in range(13)], owner


async def measure(kind: str, url: str, most: int) -> None:
    """Fill one store, index it, search it, and print what that took."""
    async with ConversationStore.open(url, migrate=True) as store:
        asked, owner = await fill(store, most)
        begun = time.perf_counter()
        events = 0
        while read := await store.catch_up_search(2_000):
            events += read
        took = time.perf_counter() - begun
        print(f"{kind}: {events} events indexed in {took:.1f} s, {events / took:.0f} a second")
        queries: list[tuple[str, dict[str, Any]]] = [
            ("one word", {}),
            ("two words", {}),
            ("one word, one owner", {"owner": owner}),
        ]
        for title, options in queries:
            taken = []
            for place, word in enumerate(asked):
                typed = f"{word} {asked[place // 2]}" if title == "two words" else word
                begun = time.perf_counter()
                await store.search(typed, **options)
                taken.append((time.perf_counter() - begun) * 1_000)
            print(f"{kind}: {title}: median {statistics.median(taken):.1f} ms, worst {max(taken):.1f} ms")


async def main(most: int) -> None:
    """Measure each store."""
    with tempfile.TemporaryDirectory() as folder, PostgresServer.find() as postgres, MariaDBServer.find() as mariadb:
        await measure("SQLite", str(Path(folder) / "history.db"), most)
        for kind, server in (("PostgreSQL", postgres), ("MariaDB", mariadb)):
            url = server.create_database()
            try:
                await measure(kind, url, most)
            finally:
                server.drop_database(url)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000))
