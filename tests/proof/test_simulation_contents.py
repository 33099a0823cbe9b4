"""The simulation's checks of erased texts, forks and streamed replies accept what is right, and notice what is not."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from letopis.outbox import History, Receipt
from tests.conformance.talk import deliver
from tests.proof.simulation.contents import Erased, Stream, Streams, secrets_in
from tests.support.content_deeds import ContentKeeper, Gone
from tests.support.defects import (
    DELETION_KEEPS,
    FORK_RUNS_ON,
    REDACTED_LATER,
    REDACTION_LOST,
    RESET_KEEPS,
    planted,
)
from tests.support.path_deeds import PathBroken

SECRET, OTHER = "secret000000000000001", "secret000000000000002"
CHANGES = 60


# --- What was erased --------------------------------------------------------------------------------------------------


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "bot.outbox.db", store=tmp_path / "history.db", relay=False) as history:
        yield history


async def change(history: History, folder: Path, *, seed: int) -> set[str]:
    """Change contents, deliver now and then, and look at the rows; return the verbs that were done."""
    erased, receipts = Erased(folder / "bot.outbox.db", folder / "history.db"), list[Receipt]()
    problems = list[str]()
    chance = random.Random(seed)
    keeper = ContentKeeper(
        history, "content", chance=chance, keep=receipts.append, gone=lambda gone: problems.append(erased.add(gone))
    )
    done = set[str]()
    for _ in range(CHANGES):
        done.add(await keeper.change())
        if chance.random() < 0.4:
            await deliver(history)
            delivered = {receipt.conversation_id: receipt.sequence for receipt in receipts}
            problems.append(erased.problem(delivered, drained=False))
            if any(problems):
                raise PathBroken(next(filter(None, problems)))
    assert erased.all
    return done


async def test_random_changes_are_read_as_a_plain_model_says_and_leave_no_row(history: History, tmp_path: Path) -> None:
    done = await change(history, tmp_path, seed=1)

    assert done - {""} == {"say", "fork", "redact", "reset", "delete"}


@pytest.mark.parametrize("defect", [REDACTION_LOST, REDACTED_LATER, RESET_KEEPS, DELETION_KEEPS, FORK_RUNS_ON])
async def test_a_defect_is_noticed(history: History, tmp_path: Path, defect: str) -> None:
    with planted(defect), pytest.raises(PathBroken):
        await change(history, tmp_path, seed=1)


def files(folder: Path, *, rows: list[str]) -> Erased:
    for name in ("o.db", "s.db"):
        with closing(sqlite3.connect(folder / name)) as made, made:
            made.execute("CREATE TABLE letopis_tasks (kind)")
            made.execute("CREATE TABLE t (text, data)")
    with closing(sqlite3.connect(folder / "s.db")) as store, store:
        store.executemany("INSERT INTO t VALUES (?, ?)", [(f"it is {text}!", None) for text in rows[:1]])
        store.executemany("INSERT INTO t VALUES (?, ?)", [(1, text.encode()) for text in rows[1:]])
    return Erased(folder / "o.db", folder / "s.db")


def test_texts_are_seen_in_any_column(tmp_path: Path) -> None:
    files(tmp_path, rows=[SECRET, OTHER])

    assert secrets_in(tmp_path / "s.db") == {SECRET, OTHER}
    assert secrets_in(tmp_path / "o.db") == set()


def test_a_text_has_to_be_gone_once_all_that_erased_it_is_delivered(tmp_path: Path) -> None:
    erased = files(tmp_path, rows=[SECRET, OTHER])
    erased.add(Gone(SECRET, {"a": 2, "b": 5}, at_once=False))
    erased.add(Gone(OTHER, {"a": None}, at_once=False))  # nobody knows when it was erased

    assert erased.problem({"a": 2, "b": 4}, drained=False) == ""
    assert SECRET in erased.problem({"a": 2, "b": 5}, drained=False)
    with closing(sqlite3.connect(tmp_path / "s.db")) as store, store:
        store.execute("DELETE FROM t WHERE data IS NULL")
    assert erased.problem({"a": 9, "b": 9}, drained=False) == ""
    assert OTHER in erased.problem({"a": 9, "b": 9}, drained=True)


def test_a_store_may_erase_in_steps(tmp_path: Path) -> None:
    erased = files(tmp_path, rows=[SECRET])
    erased.add(Gone(SECRET, {"a": 1}, at_once=False))
    with closing(sqlite3.connect(tmp_path / "s.db")) as store, store:
        store.execute("INSERT INTO letopis_tasks VALUES (1)")

    assert erased.unfinished()
    assert erased.problem({"a": 1}, drained=False) == ""


# --- Streamed replies -------------------------------------------------------------------------------------------------


def message(text: str, *, interrupted: bool = False) -> str:
    return json.dumps({"message_id": "r", "content": text} | ({"status": "interrupted"} if interrupted else {}))


@pytest.fixture
def streams() -> Streams:
    streams = Streams()
    streams.begun["r"] = Stream(text="one two", finishing=True)
    streams.drafts["r"] = "one "
    return streams


def test_a_reply_that_was_cut_off_holds_at_least_its_last_checkpoint(streams: Streams) -> None:
    assert streams.message_problem(message("one ", interrupted=True)) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (message("one two three"), "not finished so"),
        (message("one "), "not finished so"),
        (message("three", interrupted=True), "another text"),
        (message("", interrupted=True), "another text"),
        (message("on", interrupted=True), "last checkpoint"),
    ],
)
def test_a_wrong_message_is_noticed(streams: Streams, data: str, words: str) -> None:
    assert words in streams.message_problem(data)


def test_a_reply_becomes_one_message(streams: Streams) -> None:
    assert "not in the log" in streams.finished_problem("r")
    assert streams.message_problem(message("one two")) == ""
    assert streams.finished_problem("r") == ""
    assert "twice" in streams.message_problem(message("one two"))


def test_a_draft_ends_in_its_message_alone(streams: Streams) -> None:
    with closing(sqlite3.connect(":memory:")) as look:
        look.execute("CREATE TABLE letopis_outbox_drafts (message_id, data)")
        assert "no message" in streams.drafts_problem(look)
        streams.message_problem(message("one two"))
        assert streams.drafts_problem(look) == ""
        look.execute("INSERT INTO letopis_outbox_drafts VALUES ('r', '{}')")
        assert "a draft" in streams.drafts_problem(look)
