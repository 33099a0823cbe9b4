"""Names and patterns become files, each once; files that a pattern matches by chance are left alone."""

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest

from letopis.ops.daemon import discovery
from letopis.ops.daemon.discovery import OutboxScanner, find_outboxes, is_pattern, may_be_outbox
from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.platforms import posix_only
from tests.support.relays import Hands


def test_a_name_with_a_star_is_a_pattern_unless_a_file_is_called_so(tmp_path: Path) -> None:
    name = str(tmp_path / "bot[1].db")
    assert is_pattern(name)
    Path(name).touch()
    assert not is_pattern(name)
    assert not is_pattern(str(tmp_path / "bot.db"))


def test_a_named_file_need_not_be_there_and_a_matched_one_is(tmp_path: Path) -> None:
    for name in ("b.outbox.db", "a.outbox.db"):
        (tmp_path / name).touch()
    (tmp_path / "folder.outbox.db").mkdir()
    found = [(one.path.name, one.matched) for one in find_outboxes([f"{tmp_path}/gone.db", f"{tmp_path}/*.outbox.db"])]
    assert found == [("gone.db", False), ("a.outbox.db", True), ("b.outbox.db", True)]


def test_one_file_under_several_names_is_found_once(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    names = (f"{tmp_path}/a.db", f"sqlite:///{tmp_path}/a.db", f"{tmp_path}/link.db", f"{tmp_path}/*.db")
    assert [(one.path.name, one.matched) for one in find_outboxes(names)] == [("a.db", False)]


async def test_an_outbox_is_told_from_other_files_and_nothing_is_written(tmp_path: Path) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    other, text, empty = tmp_path / "other.db", tmp_path / "text.db", tmp_path / "empty.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.commit()
    text.write_text("not a database, and long enough to be looked at as one" * 100)
    empty.touch()
    before = {path: path.read_bytes() for path in (other, text, empty)}

    assert may_be_outbox(outbox.path)
    assert [may_be_outbox(path) for path in (other, text, empty)] == [False] * 3
    await outbox.close()
    assert {path: path.read_bytes() for path in before} == before


async def test_an_outbox_that_cannot_be_opened_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("damaged.db", "cut.outbox.db", "text.outbox.db"):
        await (await OutboxFile.open(tmp_path / name)).close()
    damaged, cut, text = tmp_path / "damaged.db", tmp_path / "cut.outbox.db", tmp_path / "text.outbox.db"
    with damaged.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3_000)  # the page of the schema, behind the header of the file
    cut.write_bytes(b"")
    text.write_text("not a database")

    assert [may_be_outbox(path) for path in (damaged, cut, text)] == [True] * 3


@posix_only("modes of files")
def test_an_outbox_of_another_user_is_not_passed_over() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "bot.db"
        path.write_bytes(b"")
        assert not may_be_outbox(path)
        folder.chmod(0o755)
        path.chmod(0)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            if os.geteuid() == 0:
                os.setuid(65534)
            os.write(write, b"%d" % may_be_outbox(path))
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 1) == b"1"
        os.close(read)
        os.close(write)


async def test_a_file_that_is_no_outbox_is_examined_again_when_it_changes_or_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = await OutboxFile.open(tmp_path / "bot.db")
    await outbox.close()
    other = tmp_path / "other.db"
    other.write_text("not a database")
    hands = Hands()
    examined = Mock(side_effect=may_be_outbox)
    monkeypatch.setattr(discovery, "may_be_outbox", examined)
    scanner = OutboxScanner(monotonic=hands.monotonic)

    assert [found.path for found in scanner.scan([f"{tmp_path}/*.db"], [])] == [outbox.path]
    later = discovery.NON_OUTBOX_RECHECK_SECONDS + 1
    changes = (lambda: None, lambda: os.utime(other, ns=(1, 1)), lambda: hands.advance(later))
    for times, change in enumerate(changes, start=2):
        change()
        assert scanner.scan([f"{tmp_path}/*.db"], [outbox.path]) == []
        assert examined.call_count == times
