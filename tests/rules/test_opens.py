"""The tripwire of the run fires at code of ours that opens a live file, and at nothing else."""

from pathlib import Path

import pytest

from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.opens import WIRE


@pytest.mark.parametrize(
    ("module", "suffix", "live", "fires"),
    [
        ("letopis.outbox.made_up", "", True, True),
        ("letopis.store.made_up", "-wal", True, True),
        ("letopis.outbox.made_up", "-shm", True, True),
        ("letopis.outbox.made_up", "", False, False),
        ("tests.made_up", "", True, False),
        ("letopis.outbox.made_up", ".relay.lock", True, False),
    ],
)
async def test_the_wire_fires_for_a_live_file_and_code_of_ours(
    module: str, suffix: str, live: bool, fires: bool, tmp_path: Path
) -> None:
    room = {"__name__": module, "path": tmp_path / f"bot.outbox.db{suffix}"}
    outbox = await OutboxFile.open(tmp_path / "bot.outbox.db")
    if not live:
        await outbox.close()
    before = len(WIRE.found)
    exec("path.open('ab').close()", room)  # noqa: S102
    found, WIRE.found[before:] = WIRE.found[before:], []
    await outbox.close()

    assert [told.startswith(f"{room['path']}\n") for told in found] == [True] * fires
