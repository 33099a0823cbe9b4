"""Processes killed: at random, at every step of a run, and at each moment that has a name."""

from tests.proof.crash.part import prove

__all__ = ("prove",)
