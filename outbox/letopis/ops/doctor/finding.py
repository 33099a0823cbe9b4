"""Describe the result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from letopis.store.errors import without_credentials


class Severity(StrEnum):
    OK = "ok"
    WARN = "warn"  # worth attention; nothing is wrong yet
    FAIL = "fail"  # Wrong: something does not work, or will not when it matters
    SKIP = "skip"  # could not be checked here, or there is nothing to check


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    check: str
    level: Severity
    said: str
    hint: str = ""

    def __post_init__(self) -> None:
        # A quoted path may be a URL that was given instead.
        object.__setattr__(self, "said", without_credentials(self.said))
        object.__setattr__(self, "hint", without_credentials(self.hint))


def ok(check: str, said: str) -> Finding:
    return Finding(check=check, level=Severity.OK, said=said)


def warn(check: str, said: str, hint: str) -> Finding:
    return Finding(check=check, level=Severity.WARN, said=said, hint=hint)


def fail(check: str, said: str, hint: str) -> Finding:
    return Finding(check=check, level=Severity.FAIL, said=said, hint=hint)


def skipped(check: str, said: str) -> Finding:
    return Finding(check=check, level=Severity.SKIP, said=said)
