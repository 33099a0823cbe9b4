"""Clocks: set, frozen, asleep and at a change to summer time, with the history store away in between."""

from tests.proof.clocks.part import prove

__all__ = ("prove",)
