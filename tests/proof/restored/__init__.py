"""Set stores back, cut them short or swallow their rows; they heal without a restart, or an operator is alerted."""

from tests.proof.restored.part import prove

__all__ = ("prove",)
