"""What `letopis outbox verify` finds in events that somebody has changed by hand, in the file or in its store."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from letopis.ops.new_origin import assign_new_origin
from letopis.ops.verify import differences, find_problems, read_reference
from letopis.outbox import History
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.repair import skip_missing
from letopis.store import Message
from letopis.store.database.engines import create_store_engine
from letopis.store.model.large_content import LARGE_BYTES
from tests.support.sayings import present
from tests.support.sqlite_rows import change as change_rows


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """An outbox with three pending events of one conversation, and two of another."""
    path = tmp_path / "bot.outbox.db"
    async with History(path, store="postgresql://127.0.0.1:1/none", relay=False) as history:
        for chat, number in (("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 2)):
            await history.append(chat, Message.user(f"words {number}"))
    return path


def change(path: Path, *statements: str) -> list[str]:
    change_rows(path, *statements)
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
        *(
            pytest.param(
                (f"UPDATE letopis_outbox_events SET {damage} WHERE {of_a(3)}",),
                ["event 3 of conversation 'a' is not what was appended"],
                id=damage,
            )
            for damage in ("salt = NULL, redacted = 1", "event_id = x''", "type = x''", "redacted = 2", "salt = ''")
        ),
        pytest.param(
            ("PRAGMA ignore_check_constraints = ON", "UPDATE letopis_outbox_lanes SET state = 'odd'"),
            ["SQLite: CHECK constraint failed in letopis_outbox_lanes"] * 2,
            id="what the tables forbid",
        ),
        pytest.param(("DELETE FROM letopis_outbox_origin",), ["the file has lost its identity"], id="no identity"),
        pytest.param(
            ("UPDATE letopis_outbox_version SET version_num = '0000'",),
            ["the database is at revision 0000, this release needs 0001: make a backup, then run `letopis init`"],
            id="older tables",
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


async def test_find_problems_finds_large_content_that_was_changed_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "bot.outbox.db"
    async with History(path, store="postgresql://127.0.0.1:1/none", relay=False) as history:
        await history.append("a", Message.user("x" * (LARGE_BYTES + 1)))
    assert change(path) == []
    changed = ["conversation 'a': large content of a message is not what was appended"]
    assert change(path, "UPDATE letopis_outbox_contents SET body = zeroblob(size)") == changed
    missing = ["conversation 'a': the large content of event 2 is missing"]
    assert change(path, "DELETE FROM letopis_outbox_contents") == missing


OF_A = "WHERE conversation_id = 'a'"


@pytest.mark.parametrize(
    ("statement", "problems"),
    [
        (f"UPDATE letopis_events SET origin_id = zeroblob(16) {OF_A}", ""),  # delivered by another outbox too
        ("UPDATE letopis_outbox_origin SET store_id = zeroblob(16)", "the file is bound to history store 00000000.*"),
        ("DELETE FROM letopis_origins", "the history store does not know this outbox, which counts .* as delivered"),
        ("UPDATE letopis_origins SET epoch = 7", "the history store knows this outbox at epoch 7, the file says 1"),
        (f"UPDATE letopis_lanes SET sequence = 9 {OF_A}", "conversation 'a': .* holds 9 events.*, which ends at 5"),
        (f"UPDATE letopis_lanes SET sequence = 3 {OF_A}", "conversation 'a': 4 count as delivered, .* store has 3"),
        (f"DELETE FROM letopis_outbox_lanes {OF_A}", "conversation 'a': .* from this outbox, which lacks it"),
        (f"UPDATE letopis_events SET digest = zeroblob(32) {OF_A} AND sequence = 3", "event 3 of .* differs in .*"),
        (
            f"DELETE FROM letopis_events {OF_A} AND sequence = 4",
            "the log of .* lacks 1 events .*\nevent 4 of conversation 'a' counts as delivered, and no log has it",
        ),
    ],
)
async def test_differences_finds_each_contradiction_of_a_file_and_its_store(
    file: Path, statement: str, problems: str
) -> None:
    store = file.with_name("store.db")
    async with History(file, store=store, watch=False) as history:
        assert await history.drained(30)
    async with History(file, store=store, relay=False, watch=False) as history:
        await history.append("a", Message.user("pending"))
    change_rows(file if "letopis_outbox_" in statement else store, statement)
    engine = create_store_engine(store)
    found = [problem async for problem in differences(present(read_reference(file)), engine)]
    await engine.dispose()
    assert re.fullmatch(problems, "\n".join(found)), found


@pytest.mark.parametrize("damage", ["origin SET origin_id = x'00'", "version SET version_num = '0000'"])
async def test_read_reference_returns_none_where_nothing_can_be_compared(file: Path, damage: str) -> None:
    assert read_reference(file) is not None
    change(file, f"UPDATE letopis_outbox_{damage}")
    assert read_reference(file) is None
    change(file, "DELETE FROM letopis_outbox_origin")
    assert read_reference(file) is None
