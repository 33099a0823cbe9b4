"""Compare what a read returns with what had been acknowledged before it began."""

from tests.proof.reads.part import prove

__all__ = ("prove",)
