"""Mutate a file of JSON Lines by chance: every line is imported or refused by name, and what is imported arrives."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any, Final

from letopis.adapters.formats import _native
from letopis.outbox import History
from letopis.outbox.transfer.exporter import Exporter
from letopis.outbox.transfer.importer import Importer, try_out
from letopis.store import ConversationStore
from letopis.store.transfer.jsonl import Refused, SeenKeys, read_lines
from tests.proof.harness import Tally as Results
from tests.proof.harness import migrated
from tests.proof.inputs.running import BLOCK_AT_ONCE, blocked
from tests.proof.rows import Row, row_of
from tests.proof.stores import fresh
from tests.support.adapters import ADAPTERS, differences, kinds_of, refusing
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


def read(raw: bytes, count: Callable[[], SeenKeys], fuzzed: Results) -> None:
    with count() as seen:
        for one in read_lines(io.BytesIO(raw), count=seen):
            fuzzed.count += 1
            if isinstance(one, Refused) and (len(one.reason) < 8 or not one.reason.isprintable()):
                fuzzed.problems.append(
                    f"line {one.number}: the refusal does not say what was wrong: {one.reason!a:.80}"
                )


async def imported(url: str, folder: Path, raw: bytes) -> Results:
    """Import a file, deliver it, and compare: what the dry run says, what the outbox took, what the store holds."""
    fuzzed = Results()
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
                fuzzed.stored, fuzzed.refused = counts.imported, counts.refused
            elif counts.imported:
                fuzzed.problems.append(f"{counts.imported} lines came in twice")
        fuzzed.problems += [f"blocked at delivery: {words}" for words in await history.outbox.read(blocked)]
        held = await _exported(store)
        lines = held.count(b"\n")
        if lines != fuzzed.stored:
            fuzzed.problems.append(f"{fuzzed.stored} messages were taken, and {lines} are in the store")
        again = Results()
        read(held, SeenKeys, again)
        with SeenKeys() as count:
            back = try_out(read_lines(io.BytesIO(held), count=count), told.append)
        if back.refused or back.imported != fuzzed.stored:
            fuzzed.problems.append(f"of its own export {back.refused} lines are refused, {back.imported} are taken")
    return fuzzed


async def _exported(store: ConversationStore) -> bytes:
    return b"".join([line async for line in Exporter(store).of_all()])


def run(url: str, folder: Path, random: Random, many: int) -> Results:
    return asyncio.run(imported(url, folder, file_of(random, many)))


def kept_row(what: str, store: str, folder: Path, *, control: bool = False) -> Row:
    """Return what came back through each adapter whose framework is installed; the control has no text to keep."""
    installed = [name for name, (package, _) in ADAPTERS.items() if _is_installed(package)][: 1 if control else None]
    if not installed:
        return Row(what=what, where=store, control=control, missing="no framework is installed: the group adapters")
    problems: list[str] = []
    for name in installed:
        below = folder / name
        below.mkdir(parents=True)
        with fresh(store, below, "kept") as other:
            if other.missing:
                return Row(what=what, where=store, control=control, missing=other.missing)
            asyncio.run(migrated(other.url))
            with _without_text() if control else nullcontext():
                problems += asyncio.run(differences(name, below, other.url))
    count, notes = sum(len(kinds_of(name)) for name in installed), f"through {len(installed)} adapters"
    return row_of(what, store, count, 0, "items", problems, notes, control=control)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def _without_text() -> Iterator[None]:
    sealing = _native.seal
    _native.seal = refusing
    try:
        yield
    finally:
        _native.seal = sealing
