"""Projections of one's own: what a program makes of the log, in tables that it keeps beside those of Letopis."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.errors import ConfigurationError
from letopis.store.events import RecordedEvent
from letopis.store.faults import FaultClass, StoreFault, translated

MAX_VERSION: Final = 2**31 - 1
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*")
_LONGEST: Final = 64
_OURS: Final = frozenset({"search", "letopis"})
# A projection is not to blame for what the database does to everybody.
_PASSING: Final = frozenset({FaultClass.UNAVAILABLE, FaultClass.CONFLICT, FaultClass.UNKNOWN_OUTCOME})


class Projection(ABC):
    """Something that is made of the events of the log, and kept in tables of the caller's own.

    *Inline*, given to ``ConversationStore(projections=...)``, it is written in the transaction that records the events,
    so that it is never behind. *Catch-up*, given to :meth:`ConversationStore.projector`, it reads the log in a
    transaction of its own, and the bot does not wait for it. Either way a checkpoint moves in the same transaction as
    what is written, so every event takes effect exactly once, whatever is killed, and however many processes run it.

    :cvar name: dotted lower-case words, at most 64 characters.
    :cvar version: raised when the rules change; it then reads the log from the beginning beside the older version. Have
        it write to tables of its own (``orders_v2``), or to rows that carry the version.
    """

    name: str
    version: int = 1

    @abstractmethod
    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        """Take in events, by statements on ``connection``, whose transaction is open and not to be ended here.

        They come in the order of their log partition, without gaps, each once. What was redacted before this was read
        comes without its content (``digest`` is ``None``); what is redacted later is told by ``message.redacted`` or
        ``conversation.deleted``, and a projection that copied words has to take them out then. An event that came too
        late carries ``letopis.superseded`` in its metadata and had no effect.

        What must be done outside exactly once is written down here as a row to be done, unless ``replaying``.

        :param replaying: whether it was done before: by an older version of this projection, or before there was any.
        """

    async def effects(self, events: Sequence[RecordedEvent]) -> None:  # noqa: B027 - most projections have none
        """Do what is no statement: send, call, invalidate. Only of a catch-up projection; by default nothing.

        Called after the commit with the events that were not replayed, *at most once*: a process that dies between the
        commit and the end of this leaves them undone. What it raises ends the step; the events are not given again.
        """


def has_effects(projection: Projection) -> bool:
    """Whether a projection does anything outside the database."""
    return type(projection).effects is not Projection.effects


def checked(projection: Projection) -> Projection:
    """Return ``projection`` if it can be kept account of.

    :raises ConfigurationError: it is none, or its name or version is wrong.
    """
    if not isinstance(projection, Projection):
        raise ConfigurationError(f"a projection must be a Projection, not {type(projection).__name__}")
    name, version = getattr(projection, "name", None), projection.version
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or len(name) > _LONGEST:
        raise ConfigurationError(
            f"{type(projection).__name__}.name must be dotted lower-case words of at most {_LONGEST} characters"
        )
    if name.split(".")[0] in _OURS:
        raise ConfigurationError(f"the projection name {name!r} is kept for Letopis: take another one")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        raise ConfigurationError(f"the version of the projection {name!r} must be a whole number from 1")
    return projection


def checked_inline(projections: Iterable[Projection]) -> tuple[Projection, ...]:
    """Return inline projections in the order in which every process takes their locks.

    :raises ConfigurationError: one is wrong, is there twice, or has effects.
    """
    given: object = projections
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"projections must be a sequence of Projection, not {type(projections).__name__}")
    ordered = sorted((checked(one) for one in projections), key=lambda one: (one.name, one.version))
    for one, other in pairwise(ordered):
        if (one.name, one.version) == (other.name, other.version):
            raise ConfigurationError(f"the projection {one.name!r} is there twice in version {one.version}")
    for one in ordered:
        if has_effects(one):
            raise ConfigurationError(f"the projection {one.name!r} has effects: run it by projector(), not inline")
    return tuple(ordered)


@contextmanager
def blamed(projection: Projection) -> Iterator[None]:
    """Say of what goes wrong inside that it is this projection's, unless the database fails everybody.

    :raises StoreFault: chained to what the projection raised.
    """
    try:
        with translated():
            yield
    except Exception as error:
        if isinstance(error, StoreFault) and error.fault_class in _PASSING:
            raise
        what = error.code if isinstance(error, StoreFault) else type(error).__name__
        raise StoreFault(
            fault_class=FaultClass.UNCLASSIFIED,
            code="projection",
            reason=f"the projection {projection.name!r}, version {projection.version}, failed ({what}): mend its code "
            "or its tables",
        ) from error
