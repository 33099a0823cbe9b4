"""Run the checks of outbox and history store in separate processes, and keep their last results."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from letopis.console.insight import Insight

logger = logging.getLogger("letopis.console")

Subject = Literal["outbox", "store"]
SUBJECTS: Final[tuple[Subject, ...]] = ("outbox", "store")
VERBS: Final = {"outbox": ("outbox", "verify"), "store": ("db", "verify")}
MAX_OUTPUT_BYTES: Final = 1024 * 1024
MAX_LINE_LENGTH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, running or finished.

    :ivar ended: ``None`` while it runs.
    :ivar sound: whether nothing is wrong; ``None`` if the check could not tell.
    :ivar problems: the problems found, at most a hundred.
    :ivar count: the number of problems.
    :ivar compared: whether the outbox was compared with the history store; ``None`` for a store.
    :ivar failure: why the check could not tell.
    """

    began: datetime
    ended: datetime | None = None
    sound: bool | None = None
    problems: tuple[str, ...] = ()
    count: int = 0
    compared: bool | None = None
    failure: str = ""


class Verifier:
    """Starts ``letopis outbox verify`` and ``letopis db verify``, which read everything and take long.

    They run in separate processes, because reading the bytes of a file that is open in this process would drop its
    locks, and to keep this process responsive. One check of each kind runs at a time.
    """

    def __init__(self, insight: Insight) -> None:
        self._insight = insight
        self._tasks: dict[Subject, asyncio.Task[None]] = {}
        self.checks: dict[Subject, Check] = {}
        """The last check of each kind."""

    def start(self, subject: Subject) -> bool:
        """Start a check; return False if one of its kind is already running."""
        task = self._tasks.get(subject)
        if task is not None and not task.done():
            return False
        check = self.checks[subject] = Check(began=datetime.now(UTC))
        self._tasks[subject] = asyncio.create_task(self._run(subject, check), name=f"letopis-verify-{subject}")
        return True

    async def close(self) -> None:
        """Stop the running checks."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, subject: Subject, check: Check) -> None:
        try:
            code, out, err = await self._finished(subject)
            found = _result(code, out, err)
        except Exception as error:  # whatever the error was, the page says that the check failed
            logger.warning("the check of the %s failed: %s", subject, type(error).__name__)
            found = dict[str, Any](failure=type(error).__name__)
        self.checks[subject] = Check(began=check.began, ended=datetime.now(UTC), **found)

    async def _finished(self, subject: Subject) -> tuple[int, bytes, bytes]:
        # The URL may hold a password: pass it in the process's environment, not on its command line.
        environment = {**os.environ, "LETOPIS_STORE": await self._insight.store_url()}
        environment.pop("LETOPIS_STORE_FILE", None)
        outbox = str(self._insight.path)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "letopis.ops.cli",
            *VERBS[subject],
            "--json",
            "--outbox",
            outbox,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.kill()
            raise
        return process.returncode or 0, out[:MAX_OUTPUT_BYTES], err


def _result(code: int, out: bytes, err: bytes) -> dict[str, Any]:
    """Convert the command's output to the fields of a check."""
    try:
        said = json.loads(out)
    except ValueError:
        lines = err.decode(errors="replace").strip().splitlines()
        return {"failure": (lines[-1] if lines else f"exit code {code}")[:MAX_LINE_LENGTH]}
    return {
        "sound": bool(said["sound"]),
        "problems": tuple(str(one)[:MAX_LINE_LENGTH] for one in said["problems"]),
        "count": int(said["count"]),
        "compared": said.get("compared"),
    }
