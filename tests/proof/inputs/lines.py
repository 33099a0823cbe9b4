"""Mutate a file of JSON Lines by chance: every line is imported or refused by name, and what is imported arrives."""

import asyncio
import importlib.util
import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from random import Random
from typing import Any, Final
from unittest.mock import patch

from letopis.adapters.formats import _native
from letopis.ops.transfer.importer import Importer, try_out
from letopis.outbox.history.exporter import Exporter
from letopis.store.transfer.jsonl import Refused, SeenKeys, read_lines
from tests.proof.harness import Setting, Tally, migrated
from tests.proof.inputs.running import blocked, opened
from tests.proof.stores import fresh
from tests.support.adapters import ADAPTERS, differences, kinds_of, refusing
from tests.support.fix_disk import NotHere
from tests.support.values.hostile import kinds

INSERTS: Final = (
    *(b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b"\\udc00\\ud800"),
    *(b"\r", b"\x1b[2J", "\u2028\u202e".encode()),
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 30, b"9" * 5_000),
    *(b"[" * 300, b'{"a":' * 300, b'"role":"user",', b'"id":"x",', b"null", b"{}", b"\xef\xbb\xbf"),
)
"""What is put into a line: no text, what moves cursors, numbers beyond any bound, and structure."""


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
        plain = [one.value for one in random.choice(kinds()[:2]) if isinstance(one.value, str | int | float)]
        line[random.choice((*line, "unknown"))] = random.choice(plain)
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


def read(raw: bytes, fuzzed: Tally) -> None:
    with SeenKeys() as seen:
        for one in read_lines(io.BytesIO(raw), count=seen):
            fuzzed.count += 1
            says = not isinstance(one, Refused) or (len(one.reason) >= 8 and one.reason.isprintable())
            fuzzed.require(says, f"a refusal does not say what was wrong: {one!a:.120}")


async def imported(setting: Setting) -> Tally:
    """Import a file, deliver it, and compare: what the dry run says, what the outbox took, what the store holds."""
    fuzzed, raw = Tally(), file_of(Random(setting.seed), setting.many(800, 30))
    read(raw, fuzzed)
    dry = _tried_out(raw)
    async with opened(setting) as (history, store):
        for turn in ("first", "second"):
            with SeenKeys() as count, Importer(history.outbox, store, tell=lambda refused: None) as intake:
                counts = await intake.take(read_lines(io.BytesIO(raw), count=count))
            fuzzed.require(await history.drained(timeout=60), f"{turn} time: not everything is delivered")
            same = counts.refused == dry.refused
            fuzzed.require(same, f"{turn} time: {counts.refused} lines refused, the dry run says {dry.refused}")
            if turn == "first":
                fuzzed.stored, fuzzed.refused = counts.imported, counts.refused
            elif counts.imported:
                fuzzed.problems.append(f"{counts.imported} lines came in twice")
        fuzzed.blame(await history.outbox.read(blocked), where="blocked at delivery")
        held = b"".join([line async for line in Exporter(store).of_all()])
        lines = held.count(b"\n")
        fuzzed.require(lines == fuzzed.stored, f"{fuzzed.stored} messages were taken, and {lines} are in the store")
        back = _tried_out(held)
        whole = not back.refused and back.imported == fuzzed.stored
        fuzzed.require(whole, f"of its own export {back.refused} lines are refused, {back.imported} are taken")
    fuzzed.notes = f"{fuzzed.stored:,} taken, {fuzzed.refused:,} refused"
    return fuzzed


def _tried_out(raw: bytes) -> Any:
    with SeenKeys() as count:
        return try_out(read_lines(io.BytesIO(raw), count=count), lambda refused: None)


def kept(setting: Setting) -> Tally:
    """Compare what came back through each adapter whose framework is installed; the control has no text to keep."""
    installed = [name for name, (package, _) in ADAPTERS.items() if _is_installed(package)]
    if not installed:
        raise NotHere("no framework is installed: the group adapters")
    tried = installed[: 1 if setting.control else setting.many(len(installed), 1)]
    tally = Tally(notes=f"through {len(tried)} adapters")
    for name in tried:
        below = setting.folder / name
        below.mkdir()
        with fresh(setting.kind, below, "kept") as other:
            asyncio.run(migrated(other.url))
            with patch.object(_native, "seal", refusing) if setting.control else nullcontext():
                tally.blame(asyncio.run(differences(name, below, other.url)))
        tally.count += len(kinds_of(name))
    return tally


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
