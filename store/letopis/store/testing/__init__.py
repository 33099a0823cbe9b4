"""Prove that a destination store keeps its contract, with classes of pytest tests.

Subclass :class:`DestinationStoreConformance` and supply a fixture ``store``. This package needs
pytest, which the caller has; nothing else imports it. The guide "Prove a store" shows an example.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "content",
            "delivery",
            "forks",
            "identifiers",
            "outbox",
            "reads",
            "records",
            "redaction",
            "state",
            "statistics",
            "time_travel",
            "vocabulary",
        )
    )
)

from letopis.store.testing.capabilities import Capability, requires  # noqa: E402 - rewritten first
from letopis.store.testing.conformance import StoreConformance  # noqa: E402
from letopis.store.testing.content import ContentConformance  # noqa: E402
from letopis.store.testing.delivery import DeliveryConformance  # noqa: E402
from letopis.store.testing.destination_store import DestinationStore  # noqa: E402
from letopis.store.testing.forks import ForkConformance  # noqa: E402
from letopis.store.testing.identifiers import IdentifierConformance  # noqa: E402
from letopis.store.testing.outbox import Outbox  # noqa: E402
from letopis.store.testing.reads import ReadConformance  # noqa: E402
from letopis.store.testing.records import RecordConformance  # noqa: E402
from letopis.store.testing.redaction import RedactionConformance  # noqa: E402
from letopis.store.testing.state import StateConformance  # noqa: E402
from letopis.store.testing.statistics import StatisticsConformance  # noqa: E402
from letopis.store.testing.suite import DestinationStoreConformance  # noqa: E402
from letopis.store.testing.time_travel import TimeTravelConformance  # noqa: E402
from letopis.store.testing.vocabulary import ConversationConformance, MessageConformance, OwnerConformance  # noqa: E402

__all__ = (
    "Capability",
    "ContentConformance",
    "ConversationConformance",
    "DeliveryConformance",
    "DestinationStore",
    "DestinationStoreConformance",
    "ForkConformance",
    "IdentifierConformance",
    "MessageConformance",
    "Outbox",
    "OwnerConformance",
    "ReadConformance",
    "RecordConformance",
    "RedactionConformance",
    "StateConformance",
    "StatisticsConformance",
    "StoreConformance",
    "TimeTravelConformance",
    "requires",
)
