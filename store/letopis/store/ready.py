"""Ready: what a history store works with once its database has been looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store.apply import Applier
from letopis.store.catchup import Access
from letopis.store.dialects import Dialect
from letopis.store.erasing import Eraser
from letopis.store.errors import ConfigurationError
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.inline import Inline
from letopis.store.lineage import Lineage
from letopis.store.migration import STORE, Revision, State
from letopis.store.projections import Projection
from letopis.store.reads import Reader
from letopis.store.rebuild import Rebuilder
from letopis.store.search.finding import Finder
from letopis.store.search.index import index_for
from letopis.store.search.indexing import Indexing
from letopis.store.statistics import Counter
from letopis.store.timetravel import Past
from letopis.store.upcasters import Upcasters

UPGRADE_COMMAND: Final = "letopis db upgrade"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """All parts of a history store over one database, whose log is parted as is known now."""

    applier: Applier
    reader: Reader
    lineage: Lineage
    finder: Finder
    indexing: Indexing
    counter: Counter
    access: Access
    rebuilder: Rebuilder
    partitions: int


def check_options(*, partitions: object, upcasters: object, now: object) -> None:
    """Make sure that the options of a store are of their kinds.

    :raises ConfigurationError: one is not.
    """
    if not isinstance(partitions, int) or not 1 <= partitions <= 1024:
        raise ConfigurationError("partitions must be between 1 and 1024")
    if not isinstance(upcasters, Upcasters):
        raise ConfigurationError(f"upcasters must be Upcasters(...), not {type(upcasters).__name__}")
    if not callable(now):
        raise ConfigurationError(f"now must be a function that returns the time, not {type(now).__name__}")


def check_found(found: Revision, partitions: int) -> None:
    """Make sure that a database can be worked with as it was found.

    :raises StoreFault: ``MISCONFIGURED``, with what to do.
    """
    if found.state is not State.CURRENT:
        raise StoreFault(
            fault_class=FaultClass.MISCONFIGURED,
            code=f"schema-{found.state}",
            reason=found.advice(STORE, command=UPGRADE_COMMAND),
        )
    if partitions == 0:
        raise StoreFault(
            fault_class=FaultClass.MISCONFIGURED,
            code="partitions",
            reason="the counters of the log are gone (letopis_log_heads is empty): restore the database",
        )


def made_ready(
    engine: AsyncEngine,
    readers: AsyncEngine,
    dialect: Dialect,
    *,
    partitions: int,
    upcasters: Upcasters,
    projections: Sequence[Projection],
    now: Callable[[], int],
    whole: Callable[[Awaitable[Any]], Awaitable[Any]],
    erased: Callable[[], None],
) -> Ready:
    """Return the parts of a history store; does no I/O.

    :param readers: ``engine`` with transactions that only read.
    :param now: in UTC microseconds.
    :param whole: runs one transaction so that no cancellation tears it.
    :param erased: called after content was taken out of a file.
    """
    embedded = engine.dialect.name == "sqlite"
    index = index_for(engine.dialect.name)
    eraser = Eraser(dialect, index)
    cut_back = erased if embedded else lambda: None
    reader = Reader(dialect, partitions=partitions, upcasters=upcasters)
    return Ready(
        applier=Applier(
            engine,
            dialect,
            partitions=partitions,
            upcasters=upcasters,
            inline=Inline(projections, dialect),
            eraser=eraser,
            now=now,
            serial=embedded,
            erased=cut_back,
        ),
        reader=reader,
        lineage=Lineage(reader, Past(dialect, reader=reader, upcasters=upcasters)),
        finder=Finder(dialect, index, reader, partitions=partitions, upcasters=upcasters),
        indexing=Indexing(engine, dialect, index, upcasters=upcasters, now=now),
        counter=Counter(dialect, partitions=partitions, upcasters=upcasters, reader=reader),
        access=Access(engine=engine, readers=readers, dialect=dialect, reader=reader, partitions=partitions, now=now),
        rebuilder=Rebuilder(engine, readers, dialect, upcasters=upcasters, eraser=eraser, erased=cut_back, whole=whole),
        partitions=partitions,
    )
