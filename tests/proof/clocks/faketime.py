"""Set the wall clock of one process while it runs, with libfaketime; its monotonic clock continues."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

LIBRARIES: Final = ("libfaketimeMT.so.1", "libfaketime.so.1")
HOUR: Final = 3600.0
SUMMER: Final = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()  # when the clocks of Berlin are put forward
JUMPS: Final = ("an hour back", "a day forward", "frozen", "suspended for 10 s", "summer time begins")


def library() -> Path | None:
    """Return libfaketime; ``None`` where it is not installed."""
    folders = (*Path("/usr/lib").glob("*/faketime"), Path("/usr/lib/faketime"), Path("/usr/local/lib/faketime"))
    return next((folder / name for name in LIBRARIES for folder in folders if (folder / name).exists()), None)


def forget(pid: int) -> None:
    """Delete what the library leaves in shared memory of a process that was killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108  # where the library puts it


class WallClock:
    """The wall clock of the processes that run in its environment."""

    def __init__(self, folder: Path, jump: str) -> None:
        self._file = folder / "clock"
        self._jump = jump
        self._turns = 0
        found = library()
        assert found is not None
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "TZ": "Europe/Berlin" if jump == "summer time begins" else "UTC",
        }
        self._set(f"{SUMMER - time.time() - 60:+.0f}" if jump == "summer time begins" else "+0")

    @property
    def pause(self) -> float:
        """Seconds for which the process is to be stopped."""
        return 10.0 if self._jump.startswith("suspended") else 0.0

    def jump(self) -> None:
        self._turns += 1
        match self._jump:
            case "an hour back":
                self._set(f"{-HOUR * self._turns:+.0f}")
            case "a day forward":
                self._set(f"{24 * HOUR * self._turns:+.0f}")
            case "frozen":
                self._set(time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))
            case "summer time begins":
                self._set(f"{SUMMER - time.time() - 0.5:+.1f}")
            case _:
                pass

    def _set(self, words: str) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"{words}\n", encoding="ascii")
        part.replace(self._file)
