"""Define projections: what a program derives from the log, in tables that it keeps beside those of Letopis."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import ConfigurationError
from letopis.store.model.events import RecordedEvent

MAX_VERSION: Final = 2**31 - 1
MAX_NAME_LENGTH: Final = 64
EVENTS_PER_BATCH: Final = 250
"""Events that a projector applies in one transaction by default."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*")
_RESERVED_NAMES: Final = frozenset({"search", "letopis"})
TRANSIENT_CLASSES: Final = frozenset({FaultClass.UNAVAILABLE, FaultClass.CONFLICT, FaultClass.UNKNOWN_OUTCOME})
"""Faults of the database that pass, and that no projection is charged with."""


class Projection(ABC):
    """What a program derives from the events of the log, kept in tables of its own.

    An *inline* projection, given to ``ConversationStore(projections=...)``, is written in the transaction that records
    the events, so that it is never behind. A *catch-up* projection, given to :meth:`ConversationStore.projector`, reads
    the log in a transaction of its own, and the bot does not wait for it. Either way a checkpoint moves in the same
    transaction as what is written, so every event takes effect exactly once, whatever process is killed, and however
    many processes run it.

    :cvar name: dotted lower-case words, at most 64 characters.
    :cvar version: raised when the rules change; the new version reads the log from the beginning beside the older one.
        Have it write to tables of its own (``orders_v2``), or to rows that carry the version.
    """

    name: str
    version: int = 1

    @abstractmethod
    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        """Apply events by statements on ``connection``, whose transaction is open and must not be ended here.

        They come in the order of their log partition, without gaps, each once. An event that was redacted before it is
        read comes without its content (``digest`` is ``None``); a later redaction is announced by ``message.redacted``
        or ``conversation.deleted``, and a projection that copied content has to erase it then. An event that came too
        late carries ``letopis.superseded`` in its metadata and had no effect.

        For a side effect that has to happen exactly once, write a row to be worked on, unless ``replaying``.

        :param replaying: whether it was done before: by an older version of this projection, or before there was any.
        """

    async def effects(self, events: Sequence[RecordedEvent]) -> None:  # noqa: B027 - most projections have none
        """Do what is no statement: send, call, invalidate. For catch-up projections only; by default nothing.

        Called after the commit with the events that were not replayed, *at most once*: a process that dies between the
        commit and the end of this leaves them undone. An exception ends the step; the events are not passed again.
        """


def has_effects(projection: Projection) -> bool:
    """Return True if a projection does anything outside the database."""
    return type(projection).effects is not Projection.effects


def check_projection(projection: Projection) -> Projection:
    """Return ``projection`` if its name and version can identify its checkpoints.

    :raises ConfigurationError: it is not a projection, or its name or version is wrong.
    """
    if not isinstance(projection, Projection):
        raise ConfigurationError(f"a projection must be a Projection, not {type(projection).__name__}")
    name, version = getattr(projection, "name", None), projection.version
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or len(name) > MAX_NAME_LENGTH:
        raise ConfigurationError(
            f"{type(projection).__name__}.name must be dotted lower-case words of at most {MAX_NAME_LENGTH} characters"
        )
    if name.split(".")[0] in _RESERVED_NAMES:
        raise ConfigurationError(f"the projection name {name!r} is reserved for Letopis: take another one")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        raise ConfigurationError(f"the version of the projection {name!r} must be a whole number from 1")
    return projection


def check_inline_projections(projections: Iterable[Projection]) -> tuple[Projection, ...]:
    """Return inline projections in the order in which every process takes their locks.

    :raises ConfigurationError: one is wrong, is given twice, or has effects.
    """
    given: object = projections
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"projections must be a sequence of Projection, not {type(projections).__name__}")
    ordered = sorted((check_projection(one) for one in projections), key=lambda one: (one.name, one.version))
    for one, other in pairwise(ordered):
        if (one.name, one.version) == (other.name, other.version):
            raise ConfigurationError(f"version {one.version} of the projection {one.name!r} is given twice: drop one")
    for one in ordered:
        if has_effects(one):
            raise ConfigurationError(f"the projection {one.name!r} has effects: run it by projector(), not inline")
    return tuple(ordered)


@contextmanager
def attributed_to(projection: Projection) -> Iterator[None]:
    """Turn an exception into a fault of this projection, unless it is a transient fault of the database.

    :raises StoreFault: chained to what the projection raised.
    """
    try:
        with translated():
            yield
    except Exception as error:
        if isinstance(error, StoreFault) and error.fault_class in TRANSIENT_CLASSES:
            raise
        what = error.code if isinstance(error, StoreFault) else type(error).__name__
        raise StoreFault(
            fault_class=FaultClass.UNCLASSIFIED,
            code="projection",
            reason=f"the projection {projection.name!r}, version {projection.version}, failed ({what}): fix its code "
            "or its tables",
        ) from error
