"""Set, freeze and suspend clocks while the history store is unavailable."""

from tests.proof.clocks.part import prove

__all__ = ("prove",)
