"""Finding: what one check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    """Worth a look; nothing is wrong yet."""
    FAIL = "fail"
    """Wrong: something does not work, or will not when it matters."""
    SKIP = "skip"
    """Could not be looked at here, or there is nothing to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's.

    :ivar check: the name of the check, which stays from release to release.
    :ivar said: what was found, one sentence, without secrets.
    :ivar hint: what to do about it; empty where nothing is to be done.
    """

    check: str
    level: Level
    said: str
    hint: str = ""


def ok(check: str, said: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check=check, level=Level.OK, said=said)


def warn(check: str, said: str, hint: str) -> Finding:
    """Return a finding that deserves a look."""
    return Finding(check=check, level=Level.WARN, said=said, hint=hint)


def fail(check: str, said: str, hint: str) -> Finding:
    """Return a finding that something is wrong."""
    return Finding(check=check, level=Level.FAIL, said=said, hint=hint)


def skipped(check: str, said: str) -> Finding:
    """Return a finding that nothing was looked at."""
    return Finding(check=check, level=Level.SKIP, said=said)
