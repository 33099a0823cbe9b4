"""Put all tests of a destination store into one class."""

from __future__ import annotations

from letopis.store.testing.content import ContentConformance
from letopis.store.testing.delivery import DeliveryConformance
from letopis.store.testing.erasure import ErasureConformance, ForkErasureConformance
from letopis.store.testing.forks import ForkConformance
from letopis.store.testing.identifiers import IdentifierConformance
from letopis.store.testing.reads import ReadConformance
from letopis.store.testing.records import RecordConformance
from letopis.store.testing.redaction import RedactionConformance
from letopis.store.testing.state import StateConformance
from letopis.store.testing.statistics import StatisticsConformance
from letopis.store.testing.time_travel import TimeTravelConformance
from letopis.store.testing.vocabulary import ConversationConformance, MessageConformance, OwnerConformance


class DestinationStoreConformance(
    DeliveryConformance,
    ContentConformance,
    ReadConformance,
    IdentifierConformance,
    ConversationConformance,
    MessageConformance,
    OwnerConformance,
    StateConformance,
    RedactionConformance,
    ErasureConformance,
    ForkErasureConformance,
    ForkConformance,
    TimeTravelConformance,
    StatisticsConformance,
    RecordConformance,
):
    """Everything that a destination store promises.

    The name of a subclass begins with ``Test``, so that pytest collects it::

        class TestMyStore(DestinationStoreConformance):
            capabilities = frozenset({Capability.FORKS})

            @pytest.fixture
            async def store(self):
                async with MyStore.open() as opened:
                    yield opened
    """
