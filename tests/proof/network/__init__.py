"""Break what lies between a relay and its store, then the servers themselves."""

from __future__ import annotations

from tests.proof.network.part import prove

__all__ = ("prove",)
