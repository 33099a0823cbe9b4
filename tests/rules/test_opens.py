"""The tripwire fires at code of ours that opens a live file, and at nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("by", "suffix", "live", "fires"),
    [
        ("letopis.outbox.made_up", "", True, True),
        ("letopis.store.made_up", "-wal", True, True),
        ("letopis.outbox.made_up", "-shm", True, True),
        ("letopis.outbox.made_up", "", False, False),
        ("tests.made_up", "", True, False),
        ("letopis.outbox.made_up", ".relay.lock", True, False),
    ],
)
def test_the_wire_fires(tmp_path: Path, by: str, suffix: str, live: bool, fires: bool) -> None:
    code = """
        import asyncio, json, sys
        from letopis.outbox.file.outbox_file import OutboxFile
        from tests.support.opens import WIRE

        path, by, suffix, live = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "True"
        room = {"__name__": by}
        exec("def look(path):\\n    open(path, 'ab').close()", room)

        async def main():
            outbox = await OutboxFile.open(path)
            if not live:
                await outbox.close()
            room["look"](path + suffix)
            if live:
                await outbox.close()

        WIRE.install()
        asyncio.run(main())
        print(json.dumps(WIRE.found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "bot.outbox.db"), by, suffix, str(live)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)

    assert bool(found) is fires
    if fires:
        assert found[0].startswith(str(tmp_path / "bot.outbox.db") + suffix)
        assert "in look" in found[0]
