"""What `letopis outbox verify` finds in events that somebody has changed by hand."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from letopis.outbox import History
from letopis.outbox.diagnostics.integrity import find_problems
from letopis.outbox.diagnostics.new_origin import assign_new_origin
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.repair import skip_missing
from letopis.store import Message


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """An outbox with three pending events of one conversation, and two of another."""
    path = tmp_path / "bot.outbox.db"
    async with History(path, store="postgresql://127.0.0.1:1/none", relay=False) as history:
        for chat, number in (("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 2)):
            await history.append(chat, Message.user(f"words {number}"))
    return path


def change(path: Path, *statements: str) -> list[str]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return list(find_problems(path))


def of_a(sequence: int) -> str:
    return f"sequence = {sequence} AND lane = (SELECT lane FROM letopis_outbox_lanes WHERE conversation_id = 'a')"


REMOVED = "events were appended to conversations that do not count them any more"


def moved(sequence: int, to: int) -> str:
    return f"UPDATE letopis_outbox_events SET sequence = {to} WHERE {of_a(sequence)}"


def removed(condition: str) -> str:
    return f"DELETE FROM letopis_outbox_events WHERE {condition}"


def without(chat: str) -> tuple[str, str]:
    lane = f"lane = (SELECT lane FROM letopis_outbox_lanes WHERE conversation_id = '{chat}')"
    return removed(lane), f"DELETE FROM letopis_outbox_lanes WHERE {lane}"


@pytest.mark.parametrize(
    ("statements", "problems"),
    [
        pytest.param((), [], id="nothing"),
        pytest.param(
            (moved(3, -3), moved(2, 3), moved(-3, 2)),
            ["the events of conversation 'a' are not in the order in which they were appended"],
            id="swapped",
        ),
        pytest.param(
            (removed(of_a(4)),),
            ["conversation 'a' should hold events 1 to 4, and 3 are there"],
            id="the last one removed",
        ),
        pytest.param(
            (f"UPDATE letopis_outbox_events SET salt = NULL, redacted = 1 WHERE {of_a(3)}",),
            ["event 3 of conversation 'a' is not what was appended"],
            id="an erasure that left content",
        ),
        pytest.param(
            (removed(of_a(4)), "UPDATE letopis_outbox_lanes SET head = 3 WHERE conversation_id = 'a'"),
            [f"1 {REMOVED}"],
            id="removed with its count",
        ),
        pytest.param(without("a"), [f"4 {REMOVED}"], id="a conversation removed"),
        pytest.param(without("b"), [f"2 {REMOVED}"], id="the one with the newest event of the file removed"),
    ],
)
async def test_find_problems_finds_what_was_changed(
    file: Path, statements: tuple[str, ...], problems: list[str]
) -> None:
    assert change(file, *statements) == problems


async def test_find_problems_finds_nothing_where_events_were_given_up_renumbered_and_pruned(file: Path) -> None:
    change(file, removed(of_a(2)), "UPDATE letopis_outbox_lanes SET state = 'blocked' WHERE conversation_id = 'a'")
    outbox = await OutboxFile.open(file)
    await outbox.write(lambda connection: skip_missing(connection, "a", held=0, reason="lost", now_us=outbox.now_us()))
    await outbox.close()
    assert change(file) == []
    assert change(file, "UPDATE letopis_outbox_lanes SET delivered = 2 WHERE conversation_id = 'a'") == []
    outbox = await OutboxFile.open(file)
    await outbox.write(Pruner(Retention(keep_last=0, keep_for=timedelta(0)), lambda: 2**60))
    await outbox.close()
    assert change(file) == []
    await assign_new_origin(file)
    assert change(file) == []
    async with History(file, store="postgresql://127.0.0.1:1/none", relay=False) as history:
        await history.append("c", Message.user("words"))
    assert change(file) == []
