"""Grow random trees of forks, rewinds, deletions and redactions; a message is readable exactly where it must be."""

from tests.proof.forks.part import prove

__all__ = ("prove",)
