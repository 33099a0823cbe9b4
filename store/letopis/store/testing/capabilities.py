"""Declare what a destination store can do, and skip the tests of what it cannot."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T", bound=type)

REQUIRED_ATTRIBUTE = "_required_capability"


class Capability(StrEnum):
    """A part of the contract that a destination store may leave out."""

    FORKS = "forks"
    """A fork shows the messages of its ancestors."""
    TIME_TRAVEL = "time travel"
    """``as_of`` reads a conversation as it was."""
    STATISTICS = "statistics"
    """``statistics`` counts messages and tokens."""
    RECORDS = "records"
    """Lanes of records are applied, and their values are kept."""


def requires(capability: Capability) -> Callable[[T], T]:
    """Mark all tests of a class as tests of a capability."""

    def mark(cls: T) -> T:
        for name, test in vars(cls).items():
            if name.startswith("test_"):
                setattr(test, REQUIRED_ATTRIBUTE, capability)
        return cls

    return mark
