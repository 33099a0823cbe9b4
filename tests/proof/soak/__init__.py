"""Run bots and a daemon for long under faults that come and go; what they use has to stay flat."""

from __future__ import annotations

from tests.proof.soak.part import prove

__all__ = ("prove",)
