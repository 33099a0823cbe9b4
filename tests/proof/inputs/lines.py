"""Mutate a file of JSON Lines by chance: every line is imported or refused by name, and what is imported arrives."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from letopis.outbox import History
from letopis.outbox.transfer.exporter import Exporter
from letopis.outbox.transfer.importer import Importer, try_out
from letopis.store import ConversationStore
from letopis.store.transfer.jsonl import Refused, SeenKeys, read_lines
from tests.proof.inputs.running import BLOCK_AT_ONCE, blocked
from tests.support.values.hostile import kinds

INSERTS: Final = (
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"\r",
    b"\x1b[2J",
    "\u2028\u202e".encode(),
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 30,
    b"9" * 5_000,
    b"[" * 300,
    b'{"a":' * 300,
    b'"role":"user",',
    b'"id":"x",',
    b"null",
    b"{}",
    b"\xef\xbb\xbf",
)


@dataclass(slots=True)
class Fuzzed:
    lines: int = 0
    taken: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


def valid(random: Random, number: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "conversation_id": f"import-{random.randrange(40)}",
        "role": random.choice(("system", "user", "assistant", "tool")),
        "content": random.choice(("words", "слова", [{"type": "text", "text": "a"}, {"type": "data", "value": 1}])),
    }
    optional: dict[str, Any] = {
        "id": f"line-{number}",
        "owner": "owner-1",
        "occurred_at": "2026-01-01T00:00:00Z",
        "name": "Иван",
        "tokens": random.randrange(1_000),
        "usage": {"input": 1},
        "external_ids": {"telegram": number},
        "metadata": {"a": [1, None, {"b": True}]},
        "status": "complete",
    }
    return line | {key: optional[key] for key in optional if random.random() < 0.5}


def mutated(random: Random, number: int) -> bytes:
    """Return a line with something wrong in it, more often than not."""
    line = valid(random, number)
    kind = random.randrange(4)
    if kind == 0:
        strings = [one.value for one in random.choice(kinds()[:2]) if isinstance(one.value, str | int | float)]
        line[random.choice((*line, "unknown"))] = random.choice(strings) if strings else None
        try:
            return json.dumps(line, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass") + b"\n"
        except ValueError:  # an integer too long to be written out
            return b"{}\n"
    raw = bytearray(json.dumps(line, ensure_ascii=False).encode())
    for _ in range(random.randrange(4)):
        place = random.randrange(len(raw))
        match random.randrange(5):
            case 0:
                raw[place] ^= 1 << random.randrange(8)
            case 1:
                del raw[place : place + random.randrange(1, 9)]
            case 2:
                raw[place:place] = random.choice(INSERTS)
            case 3:
                raw[place:place] = raw[place : place + 20]
            case _:
                raw = raw[:place] or raw
    return bytes(raw) + random.choice((b"\n", b"\r\n", b"\n\n"))


def nested_lines() -> Iterator[bytes]:
    """Yield lines nested at and around every limit that there is on the way, with and without an id."""
    for depth in (1, 60, 61, 62, 63, 64, 65, 200, 253, 254, 255, *range(900, 1_000), 2_000, 100_000):
        for name in ("", '"id":"deep",'):
            inner = "[" * depth + "]" * depth
            head = f'{{"conversation_id":"deep","role":"user","content":"a",{name}"metadata":{{"a":'
            yield f"{head}{inner}}}}}\n".encode()


def file_of(random: Random, many: int) -> bytes:
    return b"".join([*(mutated(random, number) for number in range(many)), *nested_lines()])


def read(raw: bytes, count: Callable[[], SeenKeys], fuzzed: Fuzzed) -> None:
    with count() as seen:
        for one in read_lines(io.BytesIO(raw), count=seen):
            fuzzed.lines += 1
            if isinstance(one, Refused) and (len(one.reason) < 8 or not one.reason.isprintable()):
                fuzzed.problems.append(
                    f"line {one.number}: the refusal does not say what was wrong: {one.reason!a:.80}"
                )


async def imported(url: str, folder: Path, raw: bytes) -> Fuzzed:
    """Import a file, deliver it, and compare: what the dry run says, what the outbox took, what the store holds."""
    fuzzed = Fuzzed()
    read(raw, SeenKeys, fuzzed)
    told: list[Refused] = []
    with SeenKeys() as count:
        dry = try_out(read_lines(io.BytesIO(raw), count=count), told.append)
    async with (
        ConversationStore.open(url, migrate=True) as store,
        History(folder / "import.outbox.db", store=store, policy=BLOCK_AT_ONCE) as history,
    ):
        for turn in ("first", "second"):
            refused: list[Refused] = []
            with SeenKeys() as count, Importer(history.outbox, store, tell=refused.append) as intake:
                counts = await intake.take(read_lines(io.BytesIO(raw), count=count))
            if not await history.drained(timeout=60):
                fuzzed.problems.append(f"{turn} time: not everything is delivered")
            if counts.refused != dry.refused:
                fuzzed.problems.append(f"{turn} time: {counts.refused} lines refused, the dry run says {dry.refused}")
            if turn == "first":
                fuzzed.taken, fuzzed.refused = counts.imported, counts.refused
            elif counts.imported:
                fuzzed.problems.append(f"{counts.imported} lines came in twice")
        fuzzed.problems += [f"blocked at delivery: {words}" for words in await history.outbox.read(blocked)]
        held = await _exported(store)
        lines = held.count(b"\n")
        if lines != fuzzed.taken:
            fuzzed.problems.append(f"{fuzzed.taken} messages were taken, and {lines} are in the store")
        again = Fuzzed()
        read(held, SeenKeys, again)
        with SeenKeys() as count:
            back = try_out(read_lines(io.BytesIO(held), count=count), told.append)
        if back.refused or back.imported != fuzzed.taken:
            fuzzed.problems.append(f"of its own export {back.refused} lines are refused, {back.imported} are taken")
    return fuzzed


async def _exported(store: ConversationStore) -> bytes:
    return b"".join([line async for line in Exporter(store).of_all()])


def run(url: str, folder: Path, random: Random, many: int) -> Fuzzed:
    return asyncio.run(imported(url, folder, file_of(random, many)))
