"""Histories for the judges of others: what was called is what the files say, and a wrong history is another one."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.proof.histories import Operation, edn, jepsen, porcupine, record, stale, write

APPEND = Operation(client=0, key=1, appended=7, read=None, called=10, returned=20, outcome="ok")
READ = Operation(client=1, key=1, appended=None, read=(7,), called=20, returned=40, outcome="ok")
UNKNOWN = Operation(client=2, key=1, appended=8, read=None, called=25, returned=30, outcome="info")
CANCELLED = Operation(client=3, key=1, appended=None, read=None, called=45, returned=46, outcome="fail")
HISTORY = [APPEND, UNKNOWN, READ, CANCELLED]


def test_edn_as_jepsen_writes_list_append() -> None:
    assert edn(jepsen(HISTORY)).splitlines() == [
        "{:index 0, :time 10, :type :invoke, :process 0, :f :txn, :value [[:append 1 7]]}",
        "{:index 1, :time 20, :type :invoke, :process 1, :f :txn, :value [[:r 1 nil]]}",
        "{:index 2, :time 20, :type :ok, :process 0, :f :txn, :value [[:append 1 7]]}",
        "{:index 3, :time 25, :type :invoke, :process 2, :f :txn, :value [[:append 1 8]]}",
        "{:index 4, :time 30, :type :info, :process 2, :f :txn, :value [[:append 1 8]]}",
        "{:index 5, :time 40, :type :ok, :process 1, :f :txn, :value [[:r 1 [7]]]}",
        "{:index 6, :time 45, :type :invoke, :process 3, :f :txn, :value [[:r 1 nil]]}",
        "{:index 7, :time 46, :type :fail, :process 3, :f :txn, :value [[:r 1 nil]]}",
    ]


def test_operations_as_porcupine_has_them() -> None:
    fields = [tuple(operation.values()) for operation in porcupine(HISTORY)]

    assert fields == [(0, {"key": 1, "append": 7}, 10, None, 20), (1, {"key": 1, "append": None}, 20, [7], 40)]
    assert set(porcupine(HISTORY)[0]) == {"ClientId", "Input", "Call", "Output", "Return"}


def test_an_append_of_unknown_outcome_returns_with_the_first_read_that_shows_it() -> None:
    first, second = replace(READ, read=(7, 8), returned=50), replace(READ, client=4, read=(7, 8), returned=60)

    [unknown] = [operation for operation in porcupine([APPEND, UNKNOWN, second, first]) if operation["ClientId"] == 2]

    assert unknown["Return"] == 50


async def test_a_recorded_history_is_whole_and_comes_back_from_each_file(tmp_path: Path) -> None:
    done = await record(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", operations=60, seed=1)

    write(done, tmp_path, "run")

    assert len(done) == 60 and stale(done) == []
    assert from_jepsen(json.loads((tmp_path / "run.json").read_text())) == sorted(done, key=str)
    assert from_jepsen(from_edn((tmp_path / "run.edn").read_text())) == sorted(done, key=str)
    assert json.loads((tmp_path / "run.porcupine.json").read_text()) == porcupine(done)


def test_a_read_that_lacks_what_had_returned_is_stale() -> None:
    lacking, concurrent = replace(READ, read=(), called=21), replace(READ, read=())

    assert stale([APPEND, lacking]) == [lacking]
    assert stale([APPEND, READ]) == stale([APPEND, concurrent]) == []
    assert stale([UNKNOWN, replace(lacking, called=50)]) == []
    assert edn(jepsen([APPEND, lacking])) != edn(jepsen([APPEND, replace(lacking, read=(7,))]))
    assert porcupine([lacking]) != porcupine([replace(lacking, read=(7,))])


def from_edn(text: str) -> list[Any]:
    """Read EDN by its grammar, keywords as words."""
    tokens = iter(re.findall(r"[{}\[\]]|:\w+|nil|\d+", text))

    def values() -> Iterator[Any]:
        for token in tokens:
            match token[0]:
                case "}" | "]":
                    return
                case "[":
                    yield list(values())
                case "{":
                    pairs = list(values())
                    yield dict(zip(pairs[::2], pairs[1::2], strict=True))
                case ":":
                    yield token[1:]
                case _:
                    yield None if token == "nil" else int(token)

    return list(values())


def from_jepsen(entries: list[dict[str, Any]]) -> list[Operation]:
    operations, calls = [], {}
    for entry in entries:
        if entry["type"] == "invoke":
            calls[entry["process"]] = entry
            continue
        [(verb, key, value)] = entry["value"]
        appended = value if verb == "append" else None
        read = tuple(value) if verb == "r" and value is not None else None
        call = calls.pop(entry["process"])
        operations.append(Operation(entry["process"], key, appended, read, call["time"], entry["time"], entry["type"]))
    return sorted(operations, key=str)
