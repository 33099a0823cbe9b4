"""Write what the clients of an outbox called and got, as histories for Elle and Porcupine.

    python -m tests.proof.histories build/histories                       # one history for each kind of store
    python -m tests.proof.histories build/histories --operations 2000 --seed 7

Each conversation is a list: a client appends a number that occurs once, or reads the whole list. Some calls are
cancelled, which leaves their outcome unknown. *Judged by others* in the documentation says how to judge the files.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from letopis import History, Message, StoreUnavailable
from tests.proof.harness import migrated
from tests.proof.stores import KINDS, fresh

CLIENTS: Final = 6
CONVERSATIONS: Final = 3
CANCELLED: Final = 0.05  # of all calls

Outcome = Literal["ok", "fail", "info"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A call of a client, and what came of it.

    :ivar client: the number of the client, which has one call at a time; one whose outcome is unknown is its last.
    :ivar appended: the number that it appends; None for a read.
    :ivar read: the numbers that it read; None for an append, and for a read that returned none.
    :ivar called: monotonic nanoseconds, as ``returned``.
    :ivar outcome: ``ok``; ``fail``, which had no effect; or ``info``, which may have had one or may have one later.
    """

    client: int
    key: int
    appended: int | None
    read: tuple[int, ...] | None
    called: int
    returned: int
    outcome: Outcome


def jepsen(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Return a history in Jepsen's shape for `list-append`: two entries for each operation, in the order of time."""
    entries: list[tuple[int, int, dict[str, Any]]] = []
    for operation in operations:
        completed = _transaction(operation, operation.read if operation.outcome == "ok" else None)
        # At one time calls come before returns: those operations are concurrent.
        entries.append((operation.called, 0, _entry(operation, "invoke", _transaction(operation, None))))
        entries.append((operation.returned, 1, _entry(operation, operation.outcome, completed)))
    entries.sort(key=lambda entry: entry[:2])
    return [{"index": index, "time": at, **entry} for index, (at, _, entry) in enumerate(entries)]


def _transaction(operation: Operation, read: Sequence[int] | None) -> list[list[Any]]:
    if operation.appended is not None:
        return [["append", operation.key, operation.appended]]
    return [["r", operation.key, None if read is None else list(read)]]


def _entry(operation: Operation, kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "process": operation.client, "f": "txn", "value": value}


def edn(entries: Iterable[dict[str, Any]]) -> str:
    """Return Jepsen's entries as EDN, one map a line."""
    return "".join(f"{_edn(entry)}\n" for entry in entries)


def _edn(value: Any) -> str:
    match value:
        case None:
            return "nil"
        case int():
            return str(value)
        case str():
            return f":{value}"  # all words of this vocabulary are keywords
        case list():
            return f"[{' '.join(map(_edn, value))}]"
    return f"{{{', '.join(f':{key} {_edn(part)}' for key, part in value.items())}}}"


def porcupine(operations: Sequence[Operation]) -> list[dict[str, Any]]:
    """Return a history as the fields of Porcupine's ``Operation``; ``Input`` has ``key`` and ``append`` or null.

    An append of unknown outcome counts as returned with the first read that shows it, before which it must have taken
    effect. One that no read shows is left out, and so is what failed: neither constrains another operation.
    """
    shown: dict[int | None, int] = {}
    for read in sorted(operations, key=lambda operation: operation.returned):
        for number in read.read or ():
            shown.setdefault(number, read.returned)
    returns = [
        (operation, operation.returned if operation.outcome == "ok" else shown.get(operation.appended))
        for operation in operations
    ]
    return [
        {
            "ClientId": operation.client,
            "Input": {"key": operation.key, "append": operation.appended},
            "Call": operation.called,
            "Output": None if operation.read is None else list(operation.read),
            "Return": returned,
        }
        for operation, returned in returns
        if returned is not None
    ]


def stale(operations: Sequence[Operation]) -> list[Operation]:
    """Return the reads that lack an append which had returned before they were called."""
    appends = [operation for operation in operations if operation.appended is not None and operation.outcome == "ok"]
    return [
        read
        for read in operations
        if read.read is not None
        and any(one.key == read.key and one.returned < read.called and one.appended not in read.read for one in appends)
    ]


async def record(folder: Path, url: str, *, operations: int, seed: int) -> list[Operation]:
    """Have clients of one outbox append and read while its relay delivers; return what they did, ordered by return."""
    await migrated(url)
    done: list[Operation] = []
    numbers = iter(range(operations))
    async with History(folder / "outbox.db", store=url, watch=False, read_timeout=30) as history:
        clients = (_live(history, client, numbers, Random(f"{seed} {client}"), done) for client in range(CLIENTS))
        await asyncio.gather(*clients)
    return done


async def _live(history: History, client: int, numbers: Iterator[int], random: Random, done: list[Operation]) -> None:
    for number in numbers:
        key = random.randrange(CONVERSATIONS)
        appended = number if random.random() < 0.5 else None
        timeout = random.uniform(0, 0.002) if random.random() < CANCELLED else None
        read: tuple[int, ...] | None = None
        outcome: Outcome = "ok"
        called = time.monotonic_ns()
        try:
            async with asyncio.timeout(timeout):
                if appended is not None:
                    await history.append(f"list-{key}", Message.user(str(appended)))
                else:
                    context = await history.context(f"list-{key}")
                    read = tuple(int(message.text) for message in context.messages)
        except (TimeoutError, StoreUnavailable):
            outcome = "fail" if appended is None else "info"  # a read has no effect
        done.append(Operation(client, key, appended, read, called, time.monotonic_ns(), outcome))
        if outcome == "info":
            client += CLIENTS  # Jepsen's rule: a process whose operation is open does nothing more


def write(operations: Sequence[Operation], folder: Path, name: str) -> None:
    """Write a history as ``NAME.edn`` and ``NAME.json`` for Elle, and ``NAME.porcupine.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = jepsen(operations)
    (folder / f"{name}.edn").write_text(edn(entries), encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / f"{name}.porcupine.json").write_text(json.dumps(porcupine(operations)), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof.histories", description="Record histories to be judged"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--operations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=20261125)
    given = parser.parse_args()
    wrong = 0
    for kind in KINDS:
        with TemporaryDirectory() as place, fresh(kind, Path(place), "store") as store:
            if store.missing:
                print(f"{kind}: not run: {store.missing}")
                continue
            recorded = record(Path(place), store.url, operations=given.operations, seed=given.seed)
            operations = asyncio.run(recorded)
        write(operations, given.folder, kind)
        wrong += len(stale(operations))
        print(f"{kind}: {len(operations)} operations, {len(stale(operations))} stale reads")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
