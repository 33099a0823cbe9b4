"""Kill processes at random, at every step of a run, and at each named moment."""

from tests.proof.crash.part import prove

__all__ = ("prove",)
