"""The tripwire fires at code of ours that opens a live file, and at nothing else."""

import json
import subprocess
import sys
from pathlib import Path

# Which module opens which file of an outbox, whether that is open then, and whether it is a fault.
CASES = (
    ("letopis.outbox.made_up", "", True, True),
    ("letopis.store.made_up", "-wal", True, True),
    ("letopis.outbox.made_up", "-shm", True, True),
    ("letopis.outbox.made_up", "", False, False),
    ("tests.made_up", "", True, False),
    ("letopis.outbox.made_up", ".relay.lock", True, False),
)
CODE = """
import asyncio, json, sys
from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.opens import WIRE

async def main():
    for number, (by, suffix, live, _) in enumerate(json.loads(sys.argv[2])):
        path = f"{sys.argv[1]}/{number}.outbox.db"
        room = {"__name__": by}
        exec("def look(path):\\n    open(path, 'ab').close()", room)
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


def test_the_wire_fires_for_a_live_file_and_code_of_ours(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)

    opened = [f"{tmp_path}/{number}.outbox.db{suffix}" for number, (_, suffix, _, fires) in enumerate(CASES) if fires]
    assert len(found) == len(opened)
    for told, path in zip(found, opened, strict=True):
        assert told.startswith(path) and "in look" in told
