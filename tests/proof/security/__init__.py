"""Check that an owner's data stays theirs, and that secrets stay in."""

from tests.proof.security.part import prove

__all__ = ("prove",)
