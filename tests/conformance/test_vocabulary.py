"""The whole vocabulary on the three databases: the published contract, and whether it tries every type."""

from __future__ import annotations

import inspect

from letopis.store import MessageAppended
from letopis.store.model.event_types import VOCABULARY
from letopis.store.testing import vocabulary
from letopis.store.testing.vocabulary import ConversationConformance, MessageConformance, OwnerConformance


class TestConversations(ConversationConformance):
    """The published contract."""


class TestMessages(MessageConformance):
    """The published contract."""


class TestOwners(OwnerConformance):
    """The published contract."""


def test_every_type_is_tried_there() -> None:
    """A new type asks for a test on all stores."""
    source = inspect.getsource(vocabulary)
    # A tombstone is the outbox's; `message.appended` is what every message becomes.
    elsewhere = {"EventSkipped", MessageAppended.__name__}
    missing = {body.__name__ for body in VOCABULARY.values() if f"{body.__name__}(" not in source}

    assert missing == elsewhere
