"""Prove whose fault it is: events that fail like an outage, and stores that refuse every conversation."""

from __future__ import annotations

from tests.proof.blame.part import prove

__all__ = ("prove",)
