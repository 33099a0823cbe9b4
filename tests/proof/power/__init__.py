"""Cut the power at every moment of a bot's life; the disk holds all that was acknowledged."""

from tests.proof.power.prove import prove

__all__ = ("prove",)
