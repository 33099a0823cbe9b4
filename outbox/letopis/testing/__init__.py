"""Test bots that use Letopis: a platform that fails on request, a history store that can be taken away, a clock."""

from __future__ import annotations

from letopis.testing.clock import ManualClock
from letopis.testing.platform import Call, FakePlatform, SendFailed, SentMessage, Trouble
from letopis.testing.store import FaultyStore, deliver_all

__all__ = ("Call", "FakePlatform", "FaultyStore", "ManualClock", "SendFailed", "SentMessage", "Trouble", "deliver_all")
