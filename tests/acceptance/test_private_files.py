"""What holds conversations is its owner's alone, whatever lies in the way; nothing is written through a link."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from letopis.outbox import History
from letopis.outbox.cli.interface.output import open_output
from letopis.outbox.file.limits import DiskReserve
from letopis.store import Message
from tests.support.platforms import posix_only

pytestmark = posix_only("Windows has no file modes and no such links")


@pytest.fixture(autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(getattr(request, "param", 0))
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {one.name: oct(stat.S_IMODE(one.stat().st_mode)) for one in folder.iterdir()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], indirect=True)
async def test_a_link_to_nothing_becomes_a_private_outbox_and_store(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o700)
    for name in ("bot.outbox.db", "history.db"):
        (tmp_path / name).symlink_to(target / name)
    async with History(tmp_path / "bot.outbox.db", store=tmp_path / "history.db") as history:
        receipt = await history.append("chat-1", Message.user("secret"))
        assert await receipt.saved(60)
        DiskReserve(tmp_path / "bot.outbox.db", watermark=None, reserve=4096).restore()
        found = {**modes(target), **modes(tmp_path)}
    del found["target"]
    assert {"bot.outbox.db-wal", "history.db", "history.db-wal"} <= set(found)
    assert {found[name] for name in found if name.endswith((".db", "-wal", "-shm"))} == {"0o600"}
    assert not any(int(mode, 8) & 0o177 for mode in found.values()), found


def test_nothing_is_exported_through_what_was_planted(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out.jsonl.part").symlink_to(victim)
    with open_output(str(tmp_path / "out.jsonl"), force=False) as stream:
        stream.write(b"secret")
    assert victim.read_text() == "mine"
    assert (tmp_path / "out.jsonl.part").is_symlink()
    (tmp_path / "other.jsonl.part").touch(mode=0o666)
    with open_output(str(tmp_path / "other.jsonl"), force=False) as stream:
        stream.write(b"secret")
    found = modes(tmp_path)
    assert (found["out.jsonl"], found["other.jsonl"]) == ("0o600", "0o600")
    assert len(found) == 5  # no part of ours is left


@posix_only("SIGKILL")
def test_a_killed_export_leaves_nothing_that_a_later_one_does_not_remove(tmp_path: Path) -> None:
    """Under any name in the folder; what a living export writes, and what is nobody's, stays."""
    code = (
        "import sys, time\nfrom letopis.outbox.cli.interface.output import open_output\n"
        "with open_output(sys.argv[1], force=False) as stream:\n"
        "    stream.write(b'secret'); stream.flush(); print('writing', flush=True); time.sleep(600)"
    )
    export = [sys.executable, "-c", code, str(tmp_path / "monday.jsonl")]
    with subprocess.Popen(export, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.kill()
    (tmp_path / ".mine.part").touch()
    assert len(list(tmp_path.iterdir())) == 2

    with open_output(str(tmp_path / "living.jsonl"), force=False) as living:
        living.write(b"one")
        with open_output(str(tmp_path / "tuesday.jsonl"), force=False) as stream:
            stream.write(b"two")

    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {
        ".mine.part": b"",
        "living.jsonl": b"one",
        "tuesday.jsonl": b"two",
    }


def test_exports_to_one_name_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    barrier = threading.Barrier(4)

    def export(sign: bytes) -> None:
        with open_output(str(target), force=True) as stream:
            barrier.wait(10)
            for _ in range(200):
                stream.write(sign * 1000 + b"\n")
            barrier.wait(10)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(export, (b"a", b"b", b"c", b"d"))) == [None] * 4
    held = target.read_bytes()
    assert len(held) == 200 * 1001 and len(set(held)) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]
