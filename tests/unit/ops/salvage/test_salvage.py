"""A damaged outbox is distinguished from a sound one, and all events with a valid digest are recovered and listed."""

import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from letopis.ops.salvage.salvage import salvage
from letopis.ops.salvage.sqlite_pages import IndexEntry, Pages
from letopis.ops.verify import find_problems
from letopis.outbox import History
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.store import Message
from letopis.store.errors import ConfigurationError
from letopis.store.ops.wal_format import scan_wal
from tests.campaigns.invariants import check
from tests.support.relays import until
from tests.support.sqlite_rows import change, rows
from tests.support.store_changes import leaf_pages, with_noise


async def outbox_in(folder: Path, *, kept: Sequence[str] = ("one", "two"), times: int = 3, wal: bool = False) -> Path:
    """Return a file in which each conversation has events that wait; with ``wal`` they are in the WAL only."""
    path = folder / "bot.outbox.db"
    async with History(path, relay=False, watch=False) as history:
        for turn in range(times):
            for name in kept:
                await history.append(name, Message.user(f"{name} says {turn} " + "at length " * 300), owner="42")
        if wal:
            target = folder / "copy"
            target.mkdir()
            for suffix in ("", "-wal"):
                subprocess.run(["cp", f"{path}{suffix}", str(target)], check=True)
    return folder / "copy" / path.name if wal else path


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    return await outbox_in(tmp_path)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Where what is salvaged goes to."""
    return tmp_path / "new.db"


async def delivered(path: Path, store: str) -> None:
    async with History(path, store=store, watch=False) as history:
        assert await history.drained(20)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


async def test_a_sound_file_is_sound_and_salvaged_whole(path: Path, new: Path) -> None:
    before = path.read_bytes()

    assert list(find_problems(path)) == []
    done = await salvage(path, new)

    assert (done.kept, done.pending, done.lost, done.refused, done.renewed) == (8, 8, {}, 0, False)
    assert list(find_problems(new)) == []
    assert path.read_bytes() == before
    ((origin,),) = rows(path, "SELECT origin_id FROM letopis_outbox_origin")
    assert rows(new, "SELECT origin_id, epoch FROM letopis_outbox_origin") == [(origin, 2)]
    statement = "SELECT * FROM letopis_outbox_events ORDER BY position"
    assert rows(path, statement) == rows(new, statement)


async def test_a_changed_letter_is_noticed_and_the_event_named_as_lost(path: Path, new: Path) -> None:
    overwrite(path, path.read_bytes().index(b"two says 1"), b"TWO")
    assert [one for one in find_problems(path) if "is not what was appended" in one]
    done = await salvage(path, new)
    assert (done.kept, done.lost, done.refused) == (7, {"two": (3,)}, 1)
    lanes = rows(new, "SELECT conversation_id, state, fault_class FROM letopis_outbox_lanes ORDER BY 1")
    assert lanes == [("one", "ready", None), ("two", "blocked", "damaged")]


async def test_the_row_of_a_lane_is_salvaged_with_all_it_says(path: Path, new: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/history.db"
    await delivered(path, store)
    async with History(path, store=store, relay=False, watch=False) as history:
        await history.append("two", Message.user("two goes on"))

    done = await salvage(path, new)

    assert (done.kept, done.pending, done.lost) == (9, 1, {})
    said = "SELECT conversation_id, owner_id, head, delivered, pruned, state FROM letopis_outbox_lanes ORDER BY 1"
    assert rows(new, said) == rows(path, said)


async def test_commits_behind_a_damaged_frame_are_noticed_and_salvaged(tmp_path: Path, new: Path) -> None:
    """SQLite reads up to the damage, and its own check finds nothing wrong."""
    path = await outbox_in(tmp_path, wal=True)
    wal = path.with_name(f"{path.name}-wal")
    held = scan_wal(wal.read_bytes())
    assert held.problem == ""
    overwrite(wal, held.read[-len(held.read) // 4].at + 2000, b"\xff\x00\xff")
    again = tmp_path / "again"
    shutil.copytree(path.parent, again)

    assert scan_wal(wal.read_bytes()).certain
    assert "is damaged" in next(find_problems(path))
    assert wal.exists(), "looking must not delete what SQLite does not read"
    done = await salvage(path, new)
    assert rows(again / path.name, "PRAGMA integrity_check") == [("ok",)]
    ((left,),) = rows(again / path.name, "SELECT count(*) FROM letopis_outbox_events")

    assert done.kept + done.lost_count == 8
    assert done.kept > left


async def test_a_file_whose_identity_is_gone_gets_a_new_one(path: Path, new: Path) -> None:
    ((origin,),) = rows(path, "SELECT origin_id FROM letopis_outbox_origin")
    overwrite(path, path.read_bytes().index(origin) // 4096 * 4096, bytes(4096))
    done = await salvage(path, new)
    assert (done.renewed, done.kept) == (True, 8)
    assert rows(new, "SELECT epoch FROM letopis_outbox_origin") == [(1,)]


@pytest.mark.parametrize("end", ["first", "last"])
async def test_without_its_row_a_lane_ends_where_an_index_says(tmp_path: Path, new: Path, end: str) -> None:
    """The page of the lanes and a page of events at either end are damaged; nothing was ever delivered."""
    path, store = tmp_path / "bot.outbox.db", f"sqlite:///{tmp_path}/history.db"
    async with History(path, store=store, relay=False, watch=False) as history:
        for turn in range(4):
            for number in range(12):
                await history.append(f"chat-{number}", Message.user(f"{number} says {turn} " + "at length " * 30))
    there = set(rows(path, "SELECT conversation_id, sequence FROM letopis_outbox_log"))
    events, lanes = leaf_pages(path, "letopis_outbox_events"), leaf_pages(path, "letopis_outbox_lanes")
    damaged = {*lanes, events[0 if end == "first" else -1]}
    path.write_bytes(with_noise(path.read_bytes(), damaged, Random(1)))

    done = await salvage(path, new)
    kept = set(rows(new, "SELECT conversation_id, sequence FROM letopis_outbox_log"))
    lanes = rows(new, "SELECT conversation_id, state, delivered FROM letopis_outbox_lanes")

    lost = {(name, sequence) for name, some in done.lost.items() for sequence in some}
    assert (kept | lost, kept & lost) == (there, set())
    assert lost and not done.whole
    assert {name for name, state, _ in lanes if state == "blocked"} == set(done.lost)
    assert {delivered for _, _, delivered in lanes} == {0}
    async with History(new, store=store, watch=False) as history:
        for name in done.lost:
            await OutboxAdmin(history.outbox).skip_missing(history.store, name, reason="a disk failed")
        assert await history.drained(60) and not (await history.status()).wrong_store
    verdict = await check([new], store, drained=True)
    assert verdict.ok, verdict


async def test_without_its_row_a_pruned_lane_goes_on_where_its_first_event_is(tmp_path: Path, new: Path) -> None:
    path, store = tmp_path / "bot.outbox.db", f"sqlite:///{tmp_path}/history.db"
    retention = Retention(keep_last=0, keep_for=timedelta(0))
    async with History(path, store=store, watch=False, retention=retention) as history:
        for turn in range(3):
            await history.append("chat", Message.user(f"delivered {turn}"))
        assert await history.drained(60)
        await until(lambda: not rows(path, "SELECT 1 FROM letopis_outbox_events"))
    async with History(path, store=store, relay=False, watch=False) as history:
        await history.append("chat", Message.user("pending"))
    path.write_bytes(with_noise(path.read_bytes(), leaf_pages(path, "letopis_outbox_lanes"), Random(1)))

    done = await salvage(path, new)

    assert (done.kept, done.pending, done.lost) == (1, 1, {})
    async with History(new, store=store, watch=False) as history:
        assert await history.drained(60)
        assert len(await history.messages("chat")) == 4


async def test_what_is_no_outbox_or_is_there_already_is_refused(path: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"noise" * 10_000)
    for damaged, to in ((tmp_path / "noise", new), (tmp_path / "none", new), (path, path)):
        with pytest.raises(ConfigurationError):
            await salvage(damaged, to)
    assert not new.exists()


async def test_long_rows_are_read_over_all_their_pages(tmp_path: Path) -> None:
    path = tmp_path / "any.db"
    words = [("ж" * size, size, b"\xff" * size, size / 3, None, -size) for size in (0, 1, 300, 4000, 5000, 70_000)]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE any_table (a TEXT, b INTEGER, c BLOB, d REAL, e TEXT, f INTEGER)")
        connection.executemany("INSERT INTO any_table VALUES (?, ?, ?, ?, ?, ?)", words)
        connection.commit()

    found = [row.values for row in Pages(path.read_bytes()).rows() if len(row.values) == 6]

    # SQLite keeps a whole number in a column of floating point as an integer.
    assert found == [tuple(0 if value == 0.0 else value for value in row) for row in words]


@pytest.mark.parametrize(
    ("damage", "at"),
    [(b"\xff\xff\xff\xff\x7f", -4), (b"\x09", -4), (b"\x03", -2), (b"\x0a", -1)],
    ids=["a length beyond all rows", "a length that is wrong", "a header that is too long", "no such type"],
)
async def test_a_damaged_row_is_left_out_and_the_others_are_read(tmp_path: Path, damage: bytes, at: int) -> None:
    path = tmp_path / "any.db"
    change(
        path, "CREATE TABLE any_table (a TEXT)", "INSERT INTO any_table (rowid, a) VALUES (-7, 'kept'), (3, 'needle')"
    )
    # Before the text: the row's length, its id, the length of its header, and the type of the text.
    overwrite(path, path.read_bytes().index(b"needle") + at, damage)

    read = [(row.rowid, row.values) for row in Pages(path.read_bytes()).rows() if len(row.values) == 1]
    assert read == [(-7, ("kept",))]


async def test_an_index_is_read_on_all_its_levels(tmp_path: Path) -> None:
    path, texts = tmp_path / "any.db", [f"{number:03}" * 200 for number in range(90)]
    inserts = (f"INSERT INTO any_table VALUES ('{text}')" for text in texts)
    change(path, "CREATE TABLE any_table (a TEXT UNIQUE)", *inserts)
    entries = [row for row in Pages(path.read_bytes()).rows() if isinstance(row, IndexEntry)]
    assert sorted(entry.values for entry in entries) == [(text, number) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("at", "damage"), [(0, b"Another format 3"), (28, b"\xff\xff\xff\xff")], ids=["its name", "its page count"]
)
async def test_a_damaged_header_is_no_whole_file(path: Path, new: Path, at: int, damage: bytes) -> None:
    assert Pages(path.read_bytes()).gone == 0
    overwrite(path, at, damage)
    done = await salvage(path, new)
    assert (done.kept, done.gone, done.whole) == (8, 1, False)


async def test_an_event_that_an_index_contradicts_is_lost_and_the_owner_is_read_from_events(
    path: Path, new: Path
) -> None:
    columns = ", ".join(f"c{number}" for number in range(11))
    like_events = "1.5, 1.5, 1.5, 1.5, 1.5, zeroblob(32), 1.5, 1.5, 1.5"
    change(  # the bot's own table, with rows like events and an odd index
        path,
        f"CREATE TABLE bots (id INTEGER PRIMARY KEY, {columns})",
        "CREATE INDEX bots_index ON bots (c10)",
        f"INSERT INTO bots ({columns}) VALUES ('text', 1, {like_events}), (x'00', 'text', {like_events})",
    )
    overwrite(path, path.read_bytes().index(b"\x02\x03message.appended") + 1, b"\x04")  # its sequence, in no digest
    path.write_bytes(with_noise(path.read_bytes(), leaf_pages(path, "letopis_outbox_lanes"), Random(1)))

    done = await salvage(path, new)

    assert (done.kept, done.lost, done.refused) == (7, {"two": (3,)}, 1)
    assert rows(new, "SELECT DISTINCT owner_id FROM letopis_outbox_lanes") == [("42",)]
