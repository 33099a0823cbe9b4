"""Too few file descriptors: reported as such, not at each turn of a loop, and over once there are more."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from letopis.ops.doctor.check_location import check_open_files
from letopis.store.database import open_files
from letopis.store.database.fault_classification import classify
from letopis.store.database.faults import FaultClass
from tests.support.platforms import posix_only

pytestmark = posix_only("Windows has no resource limits")

STARVED = """
    import asyncio, os, resource, sys
    from pathlib import Path
    from letopis.outbox import History
    from letopis.outbox.telemetry.logging import configure_logging as set_up
    from letopis.store import ConversationStore, LetopisError, Message

    set_up(style="text")

    async def main():
        folder = Path(sys.argv[1])
        async with History(folder / "bot.outbox.db") as history:
            await history.append("c", Message.user("x"))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            taken = []
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            third = ConversationStore.open(folder / "third.db", migrate=True)
            for what in (History(folder / "other.outbox.db"), third):
                try:
                    async with what as opened:
                        if isinstance(opened, ConversationStore):
                            await opened.conversation("x")
                except LetopisError as error:
                    print("TOLD", error, flush=True)
            await asyncio.sleep(3)
            for one in taken:
                os.close(one)
            receipt = await history.append("c", Message.user("y"))
            print("SAVED", await receipt.saved(30), flush=True)

    asyncio.run(main())
"""


def test_a_starved_process_says_so_and_goes_on(tmp_path: Path) -> None:
    starved = [sys.executable, "-c", textwrap.dedent(STARVED), str(tmp_path)]
    done = subprocess.run(starved, capture_output=True, text=True, timeout=120, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
    assert done.returncode == 0, done.stderr
    assert ["too many files" in line for line in told] == [True, True], done.stdout
    assert "SAVED True" in done.stdout
    assert "does not know" not in done.stderr
    assert len(done.stderr) < 20_000


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_it_is_an_outage_that_ends(number: int) -> None:
    error = OSError(number, os.strerror(number))
    found = classify(error)
    assert found.fault_class is FaultClass.UNAVAILABLE and "too many files" in found.reason
    assert open_files.is_exhausted(error)
    assert not open_files.is_exhausted() and not open_files.is_exhausted(OSError(errno.ENOENT, "x"))


def test_the_doctor_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "open_file_limit", lambda: 64)
    found = check_open_files()
    assert found.level == "warn" and "64" in found.said and "LimitNOFILE" in found.hint
    monkeypatch.setattr(open_files, "open_file_limit", lambda: 65_536)
    assert check_open_files().level == "ok"
