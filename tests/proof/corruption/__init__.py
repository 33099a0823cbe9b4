"""Corruption: bits, pages and tails of files damaged at rest are noticed, and what can be saved is."""

from tests.proof.corruption.part import prove

__all__ = ("prove",)
