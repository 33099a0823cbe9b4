"""Power: what is on the disk when the power goes, at every moment of a bot's life, is all that was acknowledged."""

from tests.proof.power.prove import prove

__all__ = ("prove",)
