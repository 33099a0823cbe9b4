"""The network and the store fail: what lies between a relay and its store is broken, then the servers themselves."""

from __future__ import annotations

from tests.proof.network.part import prove

__all__ = ("prove",)
