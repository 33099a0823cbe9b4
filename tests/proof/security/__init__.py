"""Security: what is somebody's stays theirs, and what is secret stays in."""

from tests.proof.security.part import prove

__all__ = ("prove",)
