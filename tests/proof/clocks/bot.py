"""Run a bot under a clock that is set; it obeys commands line by line and reports its promises and alerts."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from letopis import ConversationStore, History, Incident, OutboxAdmin, Retention, RetryPolicy, Selection
from letopis.outbox import Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.store import Timeouts
from tests.proof.obeying import obey
from tests.support.defects import plant

STUCK = 9.0  # seconds after which users are notified; only those that the bot has watched count
RULES = Rules(hold=STUCK / 2, stuck_after=STUCK, resolve_after=1.0, longest_step=2.0)
POLICY = RetryPolicy(base=1.0, factor=2.0, jitter="none", attempts=3)
# Whatever is delivered and older than a minute may go at once: what is not delivered may never.
RETENTION = Retention(keep_last=0, keep_for=timedelta(minutes=1))
LOOK_SECONDS = 0.5  # between two looks of the watch, by default five: an outage of seconds is one


async def live(outbox: str, store: str, *, by_wall_clock: bool) -> None:
    assert AlertMonitor.__init__.__kwdefaults__ is not None
    AlertMonitor.__init__.__kwdefaults__["interval"] = LOOK_SECONDS
    if by_wall_clock:
        plant("waits go by the wall clock alone")
    heard: dict[str, list[str]] = {"stuck": [], "recovered": []}

    async def on_stuck(incident: Incident) -> None:
        heard["stuck"].append(str(incident.owner_id))

    async def on_recovered(incident: Incident) -> None:
        heard["recovered"].append(str(incident.owner_id))

    async with History(
        outbox,
        store=ConversationStore(store, timeouts=Timeouts(connect=1.5, statement=3.0, lock=0.3)),
        policy=POLICY,
        retention=RETENTION,
        rules=RULES,
        on_stuck=on_stuck,
        on_recovered=on_recovered,
    ) as history:

        async def retry() -> dict[str, Any]:
            return {"retried": await OutboxAdmin(history.outbox).retry(Selection(states=("blocked",)))}

        async def alerts() -> dict[str, Any]:
            return heard

        await obey(history, {"retry": retry, "alerts": alerts})


LIBRARIES: Final = ("libfaketimeMT.so.1", "libfaketime.so.1")
HOUR: Final = 3600.0
SUMMER: Final = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()  # when the clocks of Berlin are put forward
_JUMPS: Final[Mapping[str, Callable[[int], str]]] = {
    "an hour back": lambda turn: f"{-HOUR * turn:+.0f}",
    "a day forward": lambda turn: f"{24 * HOUR * turn:+.0f}",
    "frozen": lambda _: time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    "suspended for 10 s": lambda _: "+0",
    "summer time begins": lambda _: f"{SUMMER - time.time() - 0.5:+.1f}",
}
"""What the clock is set to, the n-th time."""
JUMPS: Final = tuple(_JUMPS)


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
        self._set(_JUMPS[self._jump](self._turns))

    def _set(self, words: str) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"{words}\n", encoding="ascii")
        part.replace(self._file)
